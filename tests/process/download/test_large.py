"""A file over 50 GB, which huggingface_hub 2.4 does not fetch over plain HTTP. Sparse: only its last piece is real."""

import ctypes
import os

import pytest

from e2e.hub import HubServer
from moorage.download import volume as volumes
from moorage.download.run import Run
from moorage.download.settings import Settings, Verify
from moorage.download.source import HubSource
from moorage.download.volume import Volume
from moorage.sources import Access, HostPolicy, Repository, Selection
from tests.process.download.support import Downloader, eventually, make_repo

SIZE = 60_000_000_007


@pytest.fixture
def hub(tmp_path):
    lies = {"m.gguf": {"sha256": "a" * 64}}  # hashing sixty gigabytes is not what this is about
    make_repo(tmp_path / "root", "acme/m", {}, files={"m.gguf": {"size": SIZE, "seed": 5}}, lies=lies)
    with HubServer(tmp_path / "root", rescan=3600) as server:
        yield server


@pytest.fixture
def _sparse(monkeypatch):
    """Room enough, and none of it taken."""
    monkeypatch.setattr(Volume, "check_room", lambda *_: None)
    monkeypatch.setattr(volumes, "_libc", ctypes.PyDLL(None))
    monkeypatch.setattr(volumes._libc, "fallocate", lambda *_: 0)


@pytest.mark.usefixtures("_sparse")
def test_the_end_of_a_file_over_fifty_gigabytes(hub, tmp_path, monkeypatch):
    load = Volume.load

    def nearly_done(self, content, connections):
        load(self, content, connections)
        for piece in content.pieces.pieces[:-1]:
            piece.record = (piece.size, 0)

    monkeypatch.setattr(Volume, "load", nearly_done)
    source = HubSource(Repository("acme/m", endpoint=hub.url), Selection(), Access())
    settings = Settings(tmp_path / "models", verify=Verify.SIZE, policy=HostPolicy(allow_loopback=True))
    facts = Run(settings, source).go()
    assert facts["bytes"] == SIZE
    (asked,) = hub.requests("m.gguf", server="cdn")
    start, end = map(int, asked["range"].removeprefix("bytes=").split("-"))
    assert start > 59_900_000_000
    assert end == SIZE - 1
    published = tmp_path / "models" / facts["commit"] / "m.gguf"
    assert published.stat().st_size == SIZE
    content = hub.store.revision("acme/m", "main").entries["m.gguf"].content
    with published.open("rb") as file:
        assert os.pread(file.fileno(), end - start + 1, start) == content.read(start, end - start + 1)
        assert os.pread(file.fileno(), 100, start - 100) == bytes(100)


def test_its_plan_and_its_size_are_no_obstacle(hub, tmp_path):
    download = Downloader(hub, tmp_path / "models")
    planned = download.run("acme/m", "--manifest-only")
    assert (planned.code, planned.result["bytes"]) == (0, SIZE)
    room = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    hub.throttle.rate = 10_000_000
    process = download.start("acme/m")
    if room < SIZE + (8 << 20):
        done = download.wait(process)
        assert done.reason == "InsufficientStorage"
        assert "need 55.9Gi more" in done.result["message"]
    else:
        eventually(lambda: hub.sent("m.gguf") > 3_000_000)
        process.terminate()
        assert download.wait(process).code == 143
