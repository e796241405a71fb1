"""Kept connections: used while they are young, never after, whatever else closes them."""

from dataclasses import dataclass, field

import pytest

from moorage.gateway.settings import Settings
from moorage.gateway.upstream import Dial, EngineConnection, EngineEndpoint


@dataclass
class FakeTransport:
    written: list[bytes] = field(default_factory=list)
    unsent: int = 0
    closed: bool = False

    def write(self, data):
        self.written.append(data)

    def abort(self):
        self.closed = True

    close = abort

    def is_closing(self):
        return self.closed

    def get_write_buffer_size(self):
        return self.unsent


@dataclass
class Heard:
    heads: list = field(default_factory=list)
    pieces: list = field(default_factory=list)
    broken: list = field(default_factory=list)

    def on_head(self, status, headers):
        self.heads.append((status, headers))

    def on_data(self, data, last):
        self.pieces.append((data, last))

    def on_broken(self, why, answered):
        self.broken.append((why, answered))


def connected(**settings) -> tuple[EngineEndpoint, EngineConnection, FakeTransport]:
    endpoint = EngineEndpoint("127.0.0.1:1", Settings(**settings))
    connection, transport = EngineConnection(endpoint), FakeTransport()
    connection.connection_made(transport)
    return endpoint, connection, transport


async def call(endpoint: EngineEndpoint, now: float) -> object:
    made = endpoint.call(b"HEAD", b"BODY", Heard(), now)
    if isinstance(made, Dial):
        made.abort()
    return made


@pytest.mark.parametrize(("age", "used"), [(0.0, True), (3.99, True), (4.0, False), (4.9, False), (3600.0, False)])
async def test_a_connection_is_used_again_for_less_than_four_seconds(age, used):
    endpoint, connection, transport = connected()
    endpoint.keep(connection)
    made = await call(endpoint, connection.idle_since + age)
    assert (made is connection) is used
    assert transport.closed is not used
    assert transport.written == ([b"HEADBODY"] if used else [])


async def test_the_youngest_is_used_first():
    endpoint, old, _ = connected()
    young = EngineConnection(endpoint)
    young.connection_made(FakeTransport())
    endpoint.keep(old)
    endpoint.keep(young)
    assert await call(endpoint, young.idle_since) is young


async def test_a_connection_that_closed_meanwhile_is_not_used():
    endpoint, connection, transport = connected()
    endpoint.keep(connection)
    transport.closed = True
    assert isinstance(await call(endpoint, connection.idle_since), Dial)


async def test_a_retired_endpoint_keeps_nothing():
    endpoint, connection, transport = connected()
    endpoint.keep(connection)
    endpoint.retire()
    assert transport.closed
    other = EngineConnection(endpoint)
    other.connection_made(FakeTransport())
    endpoint.keep(other)
    assert not other.usable


def test_a_response_cut_at_every_byte_is_the_same_response():
    head = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nx-a: 2\r\nTransfer-Encoding: chunked\r\n\r\n"
    answer = head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: u\r\n\r\n"
    for cut in range(1, len(answer)):
        endpoint, connection, _ = connected()
        heard = Heard()
        connection.send(b"", b"", heard)
        connection.data_received(answer[:cut])
        connection.data_received(answer[cut:])
        assert heard.heads == [(200, {b"x-a": b"1, 2", b"transfer-encoding": b"chunked"})]
        assert b"".join(data for data, _ in heard.pieces) == b"abcde"
        assert [last for _, last in heard.pieces].count(True) == 1
        assert heard.pieces[-1][1]
        assert connection.usable
        assert endpoint._idle == [connection]


def test_bytes_that_nobody_asked_for_end_a_connection():
    endpoint, connection, transport = connected()
    endpoint.keep(connection)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    assert transport.closed
    assert not connection.usable


def test_a_connection_with_an_unsent_rest_is_not_kept():
    endpoint, connection, transport = connected()
    heard = Heard()
    connection.send(b"HEAD", b"BODY", heard)
    transport.unsent = 1
    connection.data_received(b"HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n")
    assert heard.pieces == [(b"", True)]
    assert endpoint._idle == []
    assert transport.closed


def test_after_abort_nothing_is_heard():
    _, connection, transport = connected()
    heard = Heard()
    connection.send(b"", b"", heard)
    connection.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\na")
    connection.abort()
    connection.connection_lost(None)
    assert transport.closed
    assert (heard.pieces, heard.broken) == ([(b"a", False)], [])
