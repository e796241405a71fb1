"""The piece map, and what is believed of it after a crash."""

import itertools
import os
import zlib
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moorage.download.content import Content, Identity, contents_of
from moorage.download.pieces import LARGEST_PIECE, Layout, LiveMap, Piece, PieceMap, believe, layout
from moorage.download.retry import Patience
from moorage.download.volume import Volume
from moorage.sources import RepoFile

BUFFER = memoryview(bytearray(7))


@given(st.integers(1, 1 << 41), st.integers(1, 64))
def test_layouts(size, connections):
    cut = layout(size, connections)
    assert cut.sound
    pieces = PieceMap("k", size, cut).pieces
    assert [p.index for p in pieces] == list(range(len(pieces)))
    assert pieces[0].start == 0
    assert all(a.start + a.size == b.start for a, b in itertools.pairwise(pieces))
    assert pieces[-1].start + pieces[-1].size == size
    assert all((1 << 20) <= p.size <= LARGEST_PIECE for p in pieces[:-1])


@pytest.mark.parametrize(
    ("size", "connections", "sizes"),
    [
        (40_000_000, 8, {5_046_272: 7, 4_676_096: 1}),
        (640_000_000, 8, {40_042_496: 8, 10_010_624: 31, 9_330_688: 1}),
        (40_000_000, 1, {10_010_624: 3, 9_968_128: 1}),
        (3_000_000, 8, {1_048_576: 2, 902_848: 1}),
    ],
)
def test_connections_finish_together(size, connections, sizes):
    assert Counter(p.size for p in PieceMap("k", size, layout(size, connections)).pieces) == sizes


@given(st.integers(0, 5000), st.integers(1, 700), st.integers(0, 5), st.integers(1, 700))
def test_pieces_cover_the_file_once(size, each, whole, last):
    cut = Layout(each, whole * each, min(last, each))
    assert cut.sound
    pieces = PieceMap("k", size, cut).pieces
    assert sum(p.size for p in pieces) == size
    assert all(p.size > 0 for p in pieces)


def test_a_file_over_fifty_gigabytes():
    pieces = PieceMap("k", 60 * 10**9, layout(60 * 10**9, 8)).pieces
    assert pieces[-1].start + pieces[-1].size == 60 * 10**9
    assert len(pieces) < 1000


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    fd = os.open(tmp_path_factory.mktemp("disk") / "part", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def record(data, done):
    return (done, zlib.crc32(data[:done]))


@given(st.binary(min_size=1, max_size=60), st.data())
def test_after_a_power_failure_no_more_is_believed_than_the_disk_holds(disk, data, draw):
    """`.state` is never ahead of the data; `.live` may be, by anything."""
    saved = draw.draw(st.integers(0, len(data)))
    live = draw.draw(st.integers(saved, len(data)))
    reached = draw.draw(st.integers(saved, live))
    os.pwrite(disk, data[:reached].ljust(len(data), b"\0"), 0)
    piece = Piece(0, 0, len(data))
    piece.claims = tuple(sorted({record(data, saved), record(data, live)} - {(0, 0)}))
    believe(disk, piece, BUFFER)
    done, crc = piece.record
    assert done >= saved
    assert os.pread(disk, done, 0) == data[:done]
    assert crc == zlib.crc32(data[:done])
    if reached == live:
        assert done == live


@given(st.binary(min_size=2, max_size=60), st.data())
def test_a_changed_byte_is_noticed(disk, data, draw):
    at = draw.draw(st.integers(0, len(data) - 1))
    os.pwrite(disk, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], 0)
    piece = Piece(0, 0, len(data))
    piece.claims = (record(data, len(data)),)
    assert believe(disk, piece, BUFFER) is False
    assert (piece.record, piece.claims) == ((0, 0), ())


def test_a_file_that_ends_early_is_noticed(disk):
    os.ftruncate(disk, 3)
    piece = Piece(0, 0, 10)
    piece.claims = (record(bytes(10), 10),)
    believe(disk, piece, BUFFER)
    assert piece.record == (0, 0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    made = PieceMap("key", 2500, Layout(1000, 3000, 1000))
    for piece, done in zip(made.pieces, (1000, 400, 0), strict=True):
        piece.record = (done, done * 7)
    (folder / "s").write_bytes(made.encode(made.records()))
    return folder


def test_state_files_round_trip(saved):
    found = PieceMap.load("key", 2500, saved / "s", saved / "nothing")
    assert [p.claims for p in found.pieces] == [((1000, 7000),), ((400, 2800),), ()]
    assert [p.complete for p in found.pieces] == [True, False, False]


@pytest.mark.parametrize(("key", "size"), [("other", 2500), ("key", 2501)])
def test_another_file_s_state_is_not_used(saved, key, size):
    assert PieceMap.load(key, size, saved / "s", saved / "nothing") is None


@given(st.binary(max_size=400))
def test_no_state_file_breaks_the_reader(saved, junk):
    (saved / "junk").write_bytes(junk)
    assert PieceMap.load("key", 2500, saved / "junk", saved / "nothing") is None


@given(st.integers(0, 279))
def test_a_torn_state_file_is_not_used(saved, length):
    (saved / "torn").write_bytes((saved / "s").read_bytes()[:length])
    assert PieceMap.load("key", 2500, saved / "torn", saved / "nothing") is None


def test_the_live_map_is_on_disk_at_once(saved):
    made = PieceMap("key", 2500, Layout(1000, 3000, 1000))
    live = LiveMap(saved / "l", made)
    live.put(1, (500, 9))
    found = PieceMap.load("key", 2500, saved / "s", saved / "l")
    assert [p.claims for p in found.pieces] == [((1000, 7000),), ((400, 2800), (500, 9)), ()]
    live.close()


def test_state_is_saved_after_the_data_and_says_no_more_than_was_synced(tmp_path, monkeypatch):
    """Bytes that arrive while the disk is being synced are not in the state that is written then."""
    volume = Volume(tmp_path, "c" * 40)
    for folder in (volume.parts, volume.files):
        folder.mkdir(parents=True)
    content = Content(Identity(20 << 20, "a" * 64, None), ("m",), "http://x", Patience(1))
    volume.load(content, 1)
    volume.open_part(content)
    piece = content.pieces.pieces[0]
    piece.record = (5, 55)
    order = []

    def fdatasync(fd):
        order.append("data")
        assert not list(volume.parts.glob("*.state"))
        piece.record = (9, 99)

    monkeypatch.setattr("os.fdatasync", fdatasync)
    volume.save(content)
    assert order == ["data"]
    found = PieceMap.load(content.identity.key, content.size, *volume.parts.glob("*.state"), tmp_path / "nothing")
    assert found.pieces[0].claims == ((5, 55),)
    assert content.safe == 5
    content.close()


def test_equal_files_are_one_content():
    files = [RepoFile("a", 5, "1" * 64), RepoFile("b", 5, "1" * 64), RepoFile("c", 5, "2" * 64)]
    made = contents_of(files, {"a": "u/a", "b": "u/b", "c": "u/c"}, 6)
    assert [(c.paths, c.url) for c in made] == [(("a", "b"), "u/a"), (("c",), "u/c")]
