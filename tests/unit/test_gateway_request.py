"""Bytes to requests, without a socket: the same whatever the cuts, and never an error that is not a refusal."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage.gateway.request import Refused, RequestReader
from moorage.gateway.settings import Settings

LIMITS = Settings(max_head_bytes=4096, max_headers=20, max_body_bytes=2000)
BODY = json.dumps({"model": "m"}).encode()

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5;ext=1\r\n{\"mod\r\n8\r\nel\":\"m\"}\r\n0\r\nX-T: t\r\n\r\n"
)  # fmt: skip
GET = b"GET /v1/models?x=1 HTTP/1.1\r\nHost: g\r\n\r\n"
UPGRADE = POST.replace(b"Host: g\r\n", b"Host: g\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n")


def read(*pieces: bytes) -> tuple[list[tuple[object, ...]], int]:
    """The requests in `pieces`, and the status of the refusal that ends them (0: none)."""
    reader = RequestReader(LIMITS, lambda _: None)
    status = 0
    try:
        for piece in pieces:
            reader.feed(piece)
    except Refused as refused:
        status = refused.refusal.status
    found = [
        (r.method, r.path, r.headers, bytes(r.body), r.refusal and r.refusal.status, r.keep_alive)
        for r in reader.complete
    ]
    return found, status


def test_requests_in_a_row_are_all_read():
    found, status = read(POST + CHUNKED + GET + UPGRADE + POST)
    assert status == 0
    assert [entry[0] for entry in found] == [b"POST", b"POST", b"GET", b"POST", b"POST"]
    assert [entry[3] for entry in found] == [BODY, b'{"model":"m"}', b"", BODY, BODY]
    assert found[2][1] == b"/v1/models"


def test_trailers_are_not_headers():
    assert b"x-t" not in read(CHUNKED)[0][0][2]


def test_nothing_is_read_after_connection_close():
    found, status = read(POST.replace(b"Host: g", b"Host: g\r\nConnection: close") + POST)
    assert (len(found), status, found[0][5]) == (1, 400, False)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([POST, CHUNKED, GET, UPGRADE]), min_size=1, max_size=4), st.data())
def test_cuts_change_nothing(requests, data):
    whole = b"".join(requests)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(whole) - 1), max_size=12)))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert read(*pieces) == read(whole)


def test_a_byte_at_a_time_is_the_same_too():
    for request in (POST, CHUNKED, GET, UPGRADE):
        assert read(*[bytes([byte]) for byte in request]) == read(request)


mutations = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.sampled_from(
            [
                b"",
                b"\r",
                b"\n",
                b"\r\n",
                b"\0",
                b" ",
                b"\t",
                b":",
                b",",
                b"0",
                b"\xff",
                b"chunked",
                b"Content-Length: 0\r\n",
            ]
        ),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=600, deadline=None)
@given(st.sampled_from([POST, CHUNKED, UPGRADE]), mutations, st.data())
def test_damaged_requests_are_read_alike_however_they_are_cut(request_bytes, changes, data):
    """What arrives in one packet and what arrives in five must never be two different requests."""
    damaged = request_bytes + POST
    for place, insert, removed in changes:
        damaged = damaged[:place] + insert + damaged[place + removed :]
    whole, status = read(damaged)
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(damaged) - 1)), max_size=5)))
    pieces = [damaged[start:end] for start, end in zip([0, *cuts], [*cuts, len(damaged)], strict=True)]
    cut, cut_status = read(*[piece for piece in pieces if piece])
    assert (cut, cut_status) == (whole, status)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_requests_or_refused(data):
    read(data)
    read(POST + data)
    read(CHUNKED[:90] + data)


@pytest.mark.parametrize(("size", "status"), [(2000, None), (2001, 413)])
def test_the_body_limit_holds_for_both_framings(size, status):
    head = b"POST / HTTP/1.1\r\nHost: g\r\n"
    sized = head + b"Content-Length: %d\r\n\r\n" % size + b"x" * size
    chunks = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n"
    for request in (sized, chunks):
        found, _ = read(request)
        assert found[0][4] == status
        assert len(found[0][3]) == (0 if status else size)


def test_a_body_in_single_bytes_costs_one_buffer():
    reader = RequestReader(LIMITS, lambda _: None)
    reader.feed(b"POST / HTTP/1.1\r\nHost: g\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 1000)
    assert isinstance(reader.current.body, bytearray)
    assert len(reader.current.body) == 1000
