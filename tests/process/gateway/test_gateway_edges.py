"""Requests at the edges of HTTP/1.1, each with the answer it gets, and whether its connection goes on."""

import gzip
import json

import pytest

from tests.process.gateway.support import CHAT, OK, RawEngine, always, chat, get, model, serving

BODY = json.dumps(chat()).encode()
HOST = b"Host: g\r\n"
H2C = b"Connection: upgrade\r\nUpgrade: h2c\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
TOO_LARGE = "request_header_fields_too_large"
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)


def request(target: str = CHAT, extra: bytes = b"", body: bytes = BODY, method: str = "POST") -> bytes:
    """A request with a length; `extra` are more header lines."""
    length = b"Content-Length: %d\r\n" % len(body)
    return f"{method} {target} HTTP/1.1\r\n".encode("latin-1") + HOST + extra + length + b"\r\n" + body


def chunked(body: bytes, coding: bytes = CHUNKED) -> bytes:
    return f"POST {CHAT} HTTP/1.1\r\n".encode() + HOST + coding + body


SERVED = {
    "absolute form": request(f"http://other:81{CHAT}"),
    "absolute form with a name and a password": request(f"http://u:p@other{CHAT}"),
    "a query": request(f"{CHAT}?api-version=1"),
    "empty lines before": b"\r\n\r\n" + request(),
    "leave asked for, and not waited for": request(extra=b"Expect: 100-continue\r\n"),
    "a websocket offered": request(extra=b"Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\n"),
    "h2c offered, in chunks": chunked(H2C + CHUNKED + CHUNKS, b""),
    "another method wished for": request(extra=b"X-HTTP-Method-Override: DELETE\r\n"),
    "a length named as a connection's": request(extra=b"Connection: content-length\r\n"),
    "a coding in capitals": chunked(CHUNKS, CHUNKED.upper()),
    "chunk extensions": chunked(b'%x;a=b;c="d\\"e"\r\n%b\r\n0;f\r\n\r\n' % (len(BODY), BODY)),
    "a chunk size with zeros": chunked(b"000%x\r\n%b\r\n000\r\n\r\n" % (len(BODY), BODY)),
    "letters beyond ASCII in a header": request(extra=b"User-Agent: caf\xc3\xa9\r\n"),
    "a lookalike of a coding": request(extra=b"Transfer_Encoding: chunked\r\n"),
}

REFUSED = {  # status, code
    "OPTIONS": (405, "method_not_allowed", request(method="OPTIONS", body=b"")),
    "OPTIONS of everything": (404, "unknown_url", request("*", method="OPTIONS", body=b"")),
    "TRACE": (405, "method_not_allowed", request(method="TRACE", body=b"")),
    "a percent-encoded slash": (404, "unknown_url", request("/v1/chat%2Fcompletions")),
    "a percent-encoded path": (404, "unknown_url", request("/%76%31/chat/completions")),
    "dots": (404, "unknown_url", request(f"/v1/..{CHAT}")),
    "two slashes": (404, "unknown_url", request(f"/{CHAT}")),
    "a slash behind": (404, "unknown_url", request(f"{CHAT}/")),
    "a path parameter": (404, "unknown_url", request(f"{CHAT};x=1")),
    "another scheme": (404, "unknown_url", request(f"ftp://other{CHAT}")),
    "an engine's own path": (404, "unknown_url", request("/slots")),
    "an engine's own path in absolute form": (404, "unknown_url", request("http://other/slots")),
    "a fragment": (404, "unknown_url", request(f"{CHAT}#x")),
    "no length": (400, "invalid_json", request(body=b"")),
    "a byte order mark": (400, "invalid_json", request(body=b"\xef\xbb\xbf" + BODY)),
    "UTF-16": (400, "invalid_json", request(body=BODY.decode().encode("utf-16"))),
}

ENDED = {  # and closed, whatever follows
    "no such method": (400, "malformed_request", request(method="BREW")),
    "a method in small letters": (400, "malformed_request", request(method="post")),
    "another protocol": (400, "malformed_request", request().replace(b"HTTP/1.1", b"ICY/1.1")),
    "a relative target": (400, "malformed_request", request("v1/models")),
    "a tab in the target": (400, "malformed_request", request(f"{CHAT}\tx")),
    "a byte beyond ASCII in the target": (400, "malformed_request", request(f"{CHAT}\xff")),
    "a control character in a header": (400, "malformed_request", request(extra=b"User-Agent: a\x01b\r\n")),
    "a folded trailer": (400, "malformed_request", chunked(CHUNKS[:-2] + b"X: a\r\n b\r\n\r\n")),
    "a trailer without colon": (400, "malformed_request", chunked(CHUNKS[:-2] + b"x\r\n\r\n")),
    "a coding in the trailer": (400, "malformed_request", chunked(CHUNKS[:-2] + CHUNKED)),
    "space before an extension": (400, "malformed_request", chunked(b"2 ;a=b\r\n{}\r\n0\r\n\r\n")),
    "a chunk size with an underscore": (400, "malformed_request", chunked(b"1_0\r\n" + BODY)),
    "a coding with a parameter": (400, "malformed_request", chunked(CHUNKS, b"Transfer-Encoding: chunked;q=1\r\n\r\n")),
    "a coding in quotes": (400, "malformed_request", chunked(CHUNKS, b'Transfer-Encoding: "chunked"\r\n\r\n')),
    "an empty coding and a length": (400, "malformed_request", request(extra=b"Transfer-Encoding:\r\n")),
    "an upgrade with both framings": (400, "malformed_request", request(extra=H2C + CHUNKED[:-2])),
    "leave asked for twice": (400, "malformed_request", request(extra=b"Expect: 100-continue\r\n" * 2)),
    "more than leave asked for": (417, "expectation_failed", request(extra=b"Expect: 100-continue, x\r\n")),
    "gzip": (415, "unsupported_content_encoding", request(CHAT, b"Content-Encoding: gzip\r\n", gzip.compress(BODY))),
    "one header five thousand times": (431, TOO_LARGE, request(extra=b"X: y\r\n" * 5000)),
    "one long header again and again": (431, TOO_LARGE, request(extra=b"X: %b\r\n" % (b"y" * 1000) * 80)),
}  # fmt: skip


@pytest.mark.parametrize("data", SERVED.values(), ids=SERVED.keys())
async def test_unusual_requests_are_served_and_the_next_one_too(data):
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.send(data + get("/v1/models"))
        reply = await client.reply()
        assert (reply.status, reply.json) == (200, OK)
        assert (await client.reply()).json["object"] == "list"
        assert engine.requests[0].line == f"POST {CHAT} HTTP/1.1"
        assert engine.requests[0].body == chat()


@pytest.mark.parametrize(("status", "code", "data"), REFUSED.values(), ids=REFUSED.keys())
async def test_what_is_refused_leaves_the_connection_as_it_was(status, code, data):
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.send(data + get("/v1/models"))
        reply = await client.reply()
        assert (reply.status, reply.error["code"]) == (status, code)
        assert "connection" not in reply.headers
        assert (await client.reply()).json["object"] == "list"
        assert engine.requests == []


@pytest.mark.parametrize(("status", "code", "data"), ENDED.values(), ids=ENDED.keys())
async def test_what_could_be_read_in_two_ways_ends_the_connection(status, code, data):
    async with RawEngine(always(OK)) as engine, serving([model("m", engine)]) as bed, bed.client() as client:
        await client.send(data + get("/v1/models"))
        reply = await client.reply()
        assert (reply.status, reply.error["code"], reply.headers["connection"]) == (status, code, "close")
        assert await client.closed() == b""
        assert engine.requests == []
