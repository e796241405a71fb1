"""Answers of pods, which may be anybody's program: read up to a bound, and no further."""

import aiohttp

LIMIT_BYTES = 64 * 1024


async def read(answer: aiohttp.ClientResponse) -> bytes:
    """The body of `answer`; ValueError where it is longer than LIMIT_BYTES."""
    body = b""
    async for chunk in answer.content.iter_any():
        body += chunk
        if len(body) > LIMIT_BYTES:
            answer.close()
            raise ValueError(f"the answer is longer than {LIMIT_BYTES} bytes")
    return body
