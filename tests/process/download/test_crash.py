"""The process dies at any change of a name on the volume: nothing half is published, and the next run ends well."""

import logging
import os
import pathlib
import shutil
import threading

import pytest

from e2e.hub import HubServer
from moorage.download import content as contents
from moorage.download.run import Run
from moorage.download.settings import Settings
from moorage.download.source import HubSource
from moorage.sources import Access, HostPolicy, Repository, Selection
from tests.process.download.support import make_repo

LARGE = bytes(range(256)) * 8192
FILES = {"a.gguf": LARGE, "copy/of/a.gguf": LARGE, "config.json": b"{}", "manifest.json": b"[]"}
CHANGES = [(pathlib.Path, n) for n in ("replace", "rename", "unlink", "mkdir", "chmod")]
CHANGES += [(os, "link"), (shutil, "rmtree"), (os, "ftruncate")]


class Death(BaseException):
    """Not an Exception: nothing may handle it."""


class Grim:
    """Lets `lives` changes of names pass, then ends every one."""

    def __init__(self, patch, run, lives):
        self.lives, self.run, self.changes = lives, run, 0
        for owner, name in CHANGES:
            patch.setattr(owner, name, self.guard(getattr(owner, name)))

    def guard(self, real):
        def change(*args, **kwargs):
            self.changes += 1
            if self.changes > self.lives:
                self.run.stopped.set()
                raise Death
            return real(*args, **kwargs)

        return change


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    make_repo(root, "acme/m", FILES)
    with HubServer(root, rescan=3600) as server:
        yield server


@pytest.fixture(autouse=True)
def _quiet(monkeypatch):
    monkeypatch.setattr(contents, "SMALL", 1000)  # so that a.gguf gets state files
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    logging.getLogger("moorage.download").setLevel(logging.ERROR)


def make_run(hub, dest):
    settings = Settings(dest, connections=2, retries=1, policy=HostPolicy(allow_loopback=True), lock_wait=3)
    source = HubSource(Repository("acme/m", endpoint=hub.url), Selection(), Access())
    return Run(settings, source)


def published(dest):
    return [p for p in dest.glob("[0-9a-f]*") if p.is_dir()]


def complete(folder):
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found.pop(".moorage-manifest.json")
    return found == FILES


def test_death_at_every_change_of_a_name(hub, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        run = make_run(hub, tmp_path / "whole")
        grim = Grim(patch, run, lives=10_000)
        run.go()
    assert grim.changes > 20
    for lives in range(grim.changes):
        dest = tmp_path / str(lives)
        with pytest.MonkeyPatch.context() as patch:
            run = make_run(hub, dest)
            Grim(patch, run, lives)
            with pytest.raises(BaseException):  # noqa: B017 - a dead thread ends the run as stopped
                run.go()
        assert all(complete(folder) for folder in published(dest)), lives
        make_run(hub, dest).go()
        (folder,) = published(dest)
        assert complete(folder), lives
        assert not [p for p in (dest / ".moorage").rglob("*") if p.name != "lock"], lives
