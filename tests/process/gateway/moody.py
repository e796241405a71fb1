"""An engine that does what the request's text says, and counts. Fast enough to stand behind a million requests."""

import asyncio
import json
import re
import socket
import struct
from collections import Counter
from typing import Self, cast

_USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
_CHUNK = {"choices": [{"index": 0, "delta": {"content": "x"}}]}
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: (\d+)")
_MOOD = re.compile(rb"mood:([a-z]+)")
_CHUNKED = b"content-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _whole(status: int, value: object) -> bytes:
    data = json.dumps(value).encode()
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status, len(data), data,
    )  # fmt: skip


def _event(value: object) -> bytes:
    text = b"data: %b\n\n" % (value if isinstance(value, bytes) else json.dumps(value).encode())
    return b"%x\r\n%b\r\n" % (len(text), text)


_HEAD = b"HTTP/1.1 200 OK\r\n" + _CHUNKED
_ONE = _event(_CHUNK)
_END = _event({"choices": [], "usage": _USAGE}) + _event(b"[DONE]") + b"0\r\n\r\n"
_BIG = _event({"choices": [{"index": 0, "delta": {"content": "x" * 20_000}}]})

AT_ONCE = {
    b"answers": _whole(200, {"object": "chat.completion", "choices": [], "usage": _USAGE}),
    b"streams": _HEAD + _ONE * 10 + _END,
    b"fails": _whole(500, {"error": {"message": "out of luck"}}),
    b"declines": _whole(422, {"error": {"message": "no"}}),
}
"""What needs no time. The other moods: `dawdles`, `resets` (before a byte), `breaks` (within a stream), `lies` (about
its length), `silent`, `endless`, `large` (a stream of 2 MB)."""
LARGE_EVENTS = 100


class Side(asyncio.Protocol):
    """One connection of the gateway."""

    def __init__(self, engine: "MoodyEngine") -> None:
        self._engine = engine
        self._buffer = b""
        self._left = 0  # events of a large stream
        self._blocked = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._engine.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._engine.open.discard(self)
        self._engine.silent.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            found = _LENGTH.search(self._buffer, 0, end + 2)
            end += 4 + (int(found[1]) if found else 0)
            if len(self._buffer) < end:
                return
            request, self._buffer = self._buffer[:end], self._buffer[end:]
            mood = _MOOD.search(request)
            assert mood is not None, request
            self._do(mood[1])

    def _do(self, mood: bytes) -> None:
        self._engine.requests[mood.decode()] += 1
        if mood in AT_ONCE:
            self._transport.write(AT_ONCE[mood])
        elif mood == b"dawdles":
            self._timer = asyncio.get_running_loop().call_later(0.4, self._transport.write, AT_ONCE[b"answers"])
        elif mood == b"silent":
            self._engine.silent.add(self)
        elif mood == b"resets":
            self._reset()
        elif mood == b"lies":
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}")
            self._transport.close()
        else:
            self._transport.write(_HEAD + _ONE)
            if mood == b"breaks":
                self._timer = asyncio.get_running_loop().call_later(0.01, self._reset)
            elif mood == b"endless":
                self._go_on()
            else:
                self._left = LARGE_EVENTS
                self._fill()

    def _reset(self) -> None:
        sock: socket.socket = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _go_on(self) -> None:
        if not self._blocked:
            self._transport.write(_ONE)
        self._timer = asyncio.get_running_loop().call_later(0.02, self._go_on)

    def _fill(self) -> None:
        while self._left and not self._blocked:
            self._left -= 1
            self._transport.write(_BIG + (b"" if self._left else _END))

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        self._fill()


class MoodyEngine:
    """The engine: `open` are its connections now, `silent` those with a request that gets no answer."""

    def __init__(self) -> None:
        self.open: set[Side] = set()
        self.silent: set[Side] = set()
        self.requests: Counter[str] = Counter()  # by mood
        self.address = ""

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Side(self), "127.0.0.1", 0, backlog=1024)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for side in list(self.open):
            side._transport.abort()
