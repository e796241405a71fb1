"""Engines for proxies to stand in front of: nginx for short answers, a paced one for streams, a silent one.

nginx answers with constants, so that the engine never is what limits a measurement. The paced one writes into each
chunk when it did (`perf_counter_ns`, one clock for all processes).
"""

import asyncio
import contextlib
import json
import re
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ANSWER = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "x" * 400}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 200, "completion_tokens": 100, "total_tokens": 300},
})  # fmt: skip
_CHUNK = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"content":"%020d"},"finish_reason":null}]}\n\n'
_NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_buffer_size 256k; keepalive_requests 1000000000; client_body_temp_path {folder};
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ default_type application/json; return 200 '{answer}'; }}
    location /v1/completions {{ default_type text/event-stream; return 200 '{stream}'; }}
  }}
}}
"""


@contextlib.contextmanager
def short_answers(folder: Path, port: int) -> Iterator[str]:
    """An nginx that answers chats with ANSWER and completions with a stream of ten chunks and a usage chunk."""
    folder.mkdir()
    stream = b"".join(_CHUNK % n for n in range(10)).decode()
    stream += 'data: {"choices":[],"usage":{"prompt_tokens":200,"completion_tokens":10}}\n\ndata: [DONE]\n\n'
    text = _NGINX.format(folder=folder, port=port, answer=ANSWER, stream=stream.replace("\n", "\\n"))
    (folder / "nginx.conf").write_text(text)
    process = subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf"), "-p", str(folder)])
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@dataclass
class Paced:
    """An engine in this process: `chunks` chunks, one every `every` seconds; silent on requests that say so.

    `gone` gets the time (perf_counter) at which a silent request's connection was closed.
    """

    chunks: int = 200
    every: float = 0.02
    address: str = ""
    waiting: int = 0
    gone: list[float] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator["Paced"]:
        """Serve while the body runs."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"(?i)content-length: (\d+)", head)
                length = int(found[1]) if found else 0
                body = await reader.readexactly(length)
                await (self._silence(reader) if b"be silent" in body else self._stream(writer))
        writer.close()

    async def _silence(self, reader: asyncio.StreamReader) -> None:
        self.waiting += 1
        with contextlib.suppress(ConnectionError):
            await reader.read()
        self.gone.append(time.perf_counter())
        self.waiting -= 1
        raise ConnectionResetError

    async def _stream(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        began = time.perf_counter()
        for n in range(self.chunks):
            await asyncio.sleep(max(0.0, began + n * self.every - time.perf_counter()))
            chunk = _CHUNK % time.perf_counter_ns()
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        writer.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        await writer.drain()
