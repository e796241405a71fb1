"""`moorage download` where nothing goes wrong, and where it is stopped."""

import json
import os
import random
import signal
import time
import urllib.request
from pathlib import Path

import pytest

from e2e.hub import HubServer
from moorage.sizing.gguf import read_gguf_header
from tests.process.download.support import Downloader, eventually, make_repo
from tests.support.eventually import SLACK
from tests.unit.model_shapes import Model

_HEADER = Model("llama", "Q4_K_M", layers=1, embedding=256, heads=2, kv_heads=2, head=128, ff=256, vocab=32).header
GGUF = _HEADER.ljust(read_gguf_header(_HEADER).end, b"\0")


PATIENT = ("--request-timeout", "600", "--stall-timeout", "600")
"""What ends early with these is not ended by them."""


@pytest.fixture
def slow(hub):
    """40 MB in about four seconds."""
    hub.throttle.rate = 10_000_000
    return hub


def test_downloads_verifies_publishes(download, hub, model_bytes):
    done = download.run("acme/model")
    assert (done.code, done.reason) == (0, "Complete"), done
    folder = download.check({"config.json": b'{"a": 1}', "model.gguf": model_bytes})
    assert folder.name == done.result["commit"]
    assert done.result["bytes"] == 40_000_008
    assert done.result["formats"] == {"GGUF": ["model.gguf"]}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["files"] == done.result["files"]
    assert all(len(f["sha256"]) == 64 for f in manifest["files"])
    assert hub.sent("model.gguf") == 40_000_000


def test_a_second_run_fetches_nothing(download, hub, model_bytes):
    download.run("acme/model")
    hub.log.clear()
    again = download.run("acme/model")
    assert again.code == 0
    assert not hub.requests("resolve")
    download.check({"config.json": b'{"a": 1}', "model.gguf": model_bytes})


@pytest.mark.parametrize(("verify", "noticed"), [("full", True), ("size", False)])
def test_a_wrong_published_file_is_replaced(download, hub, model_bytes, verify, noticed):
    folder = download.dest / download.run("acme/model").result["commit"]
    with (folder / "model.gguf").open("r+b") as file:
        file.seek(20_000_000)
        file.write(b"oops")
    assert download.run("acme/model", "--verify", verify).code == 0
    assert ((folder / "model.gguf").read_bytes() == model_bytes) is noticed


def test_a_truncated_published_file_is_replaced(download, model_bytes):
    folder = download.dest / download.run("acme/model").result["commit"]
    os.truncate(folder / "model.gguf", 1000)
    (folder / "config.json").unlink()
    assert download.run("acme/model", "--verify", "size").code == 0
    download.check({"config.json": b'{"a": 1}', "model.gguf": model_bytes})


def test_one_connection_and_no_verification(download, model_bytes):
    done = download.run("acme/one", "--connections", "1", "--verify", "none")
    assert done.code == 0, done
    download.check({"model.gguf": model_bytes})


def test_sigterm_ends_at_once_and_the_next_run_goes_on(download, slow, model_bytes):
    process = download.start("acme/one", *PATIENT)
    eventually(lambda: slow.sent("model.gguf") > 15_000_000)
    process.send_signal(signal.SIGTERM)
    stopped = download.wait(process)
    assert (stopped.code, stopped.reason) == (143, "Interrupted"), stopped
    assert stopped.seconds < SLACK
    assert stopped.result["bytes"] > 10_000_000
    assert not download.published()
    slow.throttle.rate = 0
    assert download.run("acme/one").code == 0
    download.check({"model.gguf": model_bytes})
    assert slow.sent("model.gguf") < 1.1 * 40_000_000


def test_sigterm_as_process_one(download, slow):
    """A container's first process ignores signals it has no handler for."""
    process = download.start("", command=["unshare", "--pid", "--fork", *download.command("acme/one", *PATIENT)])
    eventually(lambda: slow.sent("model.gguf") > 5_000_000)
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    stopped = download.wait(process)
    assert (stopped.code, stopped.reason) == (143, "Interrupted"), stopped
    assert stopped.seconds < SLACK


@pytest.mark.parametrize("path", ["/revision/", "/tree/", "/resolve/", "/cdn/"])
def test_sigterm_while_a_server_is_silent(download, hub, path):
    hub.rule("hang", path, count=None)
    process = download.start("acme/one", *PATIENT)
    eventually(lambda: hub.requests(path.strip("/")))
    process.send_signal(signal.SIGTERM)
    stopped = download.wait(process)
    assert (stopped.code, stopped.reason) == (143, "Interrupted")
    assert stopped.seconds < SLACK


def test_kill_loses_nothing_but_what_was_on_the_wire(download, slow, model_bytes):
    for share in (0.2, 0.5, 0.8):
        process = download.start("acme/one")
        eventually(lambda share=share: slow.sent("model.gguf") > share * 40_000_000)
        process.kill()
        process.communicate()
    slow.throttle.rate = 0
    done = download.run("acme/one")
    assert done.code == 0, done
    download.check({"model.gguf": model_bytes})
    assert slow.sent("model.gguf") < 1.25 * 40_000_000


@pytest.mark.parametrize("seed", range(8))
def test_killed_at_a_random_time(download, hub, model_bytes, seed):
    """benchmarks/download.py does it fifty times each with 40 MB and 2 GB."""
    hub.throttle.rate = 20_000_000
    process = download.start("acme/one")
    eventually(lambda: hub.requests("/revision/"))
    time.sleep(random.Random(seed).uniform(0.0, 1.1))
    process.kill()
    process.communicate()
    assert all((folder / "model.gguf").read_bytes() == model_bytes for folder in download.published())
    done = download.run("acme/one")
    assert done.code == 0, done
    download.check({"model.gguf": model_bytes})
    assert hub.sent("model.gguf") < 1.25 * 40_000_000


JUMPING = """
import datetime, random, sys, time
import moorage.download.wire as wire
real = time.time
def jump():
    return real() + random.choice((-86400, 3600, 1e8))
class Jumping(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(jump(), tz)
time.time, wire.datetime = jump, Jumping
from moorage.cli import main
sys.argv[0] = "moorage"
main()
"""


def test_clocks_that_jump_change_nothing(download, hub, model_bytes):
    """Waits, limits and speeds go by the monotonic clock; a date in Retry-After by the clock of the server."""
    later = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 2))
    hub.rule("status", "/cdn/", status=503, headers={"Retry-After": later})
    hub.throttle.rate = 30_000_000
    command = download.command("acme/one")
    assert command[1:3] == ["-m", "moorage"]
    started = time.monotonic()
    done = download.run("", command=[command[0], "-c", JUMPING, *command[3:]])
    assert done.code == 0, done
    download.check({"model.gguf": model_bytes})
    assert time.monotonic() - started < 2 * SLACK, "and not an hour"


def test_progress_is_told_and_never_goes_back(download, slow, free_port):
    process = download.start("acme/one", "--status-port", str(free_port))
    seen = []

    def look():
        try:
            before = slow.sent("model.gguf")
            with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/progress", timeout=SLACK) as answer:
                snapshot = json.load(answer)
            seen.append((before, slow.sent("model.gguf"), snapshot))
        except OSError:
            return process.poll() is not None
        return process.poll() is not None

    eventually(look)
    download.wait(process)
    done = [s["bytes"]["done"] for _, _, s in seen]
    assert done == sorted(done)
    assert len(set(done)) >= 4
    busy = [row for row in seen if row[2]["phase"] == "Downloading" and row[2]["bytesPerSecond"]]
    for before, after, snapshot in busy:
        assert snapshot["bytes"]["total"] == 40_000_000
        assert before - snapshot["bytes"]["done"] < 25_000_000
        most, least = ((40_000_000 - sent) / 10_000_000 for sent in (before, after))
        assert least - 3 < snapshot["remainingSeconds"] < most + 3
    assert {s["phase"] for _, _, s in seen} >= {"Downloading"}


def test_termination_message(download, tmp_path):
    log = tmp_path / "termination-log"
    log.touch()
    done = download.run("acme/nothing", env={"MOORAGE_TERMINATION_LOG": str(log)})
    told = json.loads(log.read_bytes())
    assert told["reason"] == done.reason == "RepoNotFoundOrPrivate"
    assert done.code == 10
    assert "files" not in told


def test_manifest_only_needs_no_folder(download, hub):
    done = download.run("acme/model", "--manifest-only", "--include", "*.gguf")
    assert done.code == 0
    assert [(f["path"], f["sizeBytes"]) for f in done.result["files"]] == [("model.gguf", 40_000_000)]
    assert not download.dest.exists()
    assert not hub.requests("resolve")


def test_inspect(download, tmp_path):
    (tmp_path / "x/sub").mkdir(parents=True)
    (tmp_path / "x/a.gguf").write_bytes(GGUF)
    (tmp_path / "x/sub/b.safetensors").write_bytes(b"12")
    command = [*download.command("x")[:4], "--inspect", str(tmp_path / "x")]
    done = download.run("", command=command)
    assert done.code == 0, done
    assert done.result["formats"] == {"GGUF": ["a.gguf"], "Safetensors": ["sub/b.safetensors"]}
    assert done.result["layout"] == "Plain"
    missing = download.run("", command=[*command[:-1], str(tmp_path / "nothing")])
    assert (missing.code, missing.reason) == (15, "FileNotFound")


def test_inspect_a_hugging_face_cache(download, tmp_path):
    commit, cache = "c" * 40, tmp_path / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "snapshots" / commit).mkdir(parents=True)
    blob = GGUF
    (cache / "blobs/abc").write_bytes(blob)
    (cache / "refs/main").write_text(commit)
    (cache / "snapshots" / commit / "m.gguf").symlink_to("../../blobs/abc")
    command = [*download.command("x")[:4], "--inspect", str(cache)]
    done = download.run("", command=command)
    assert done.result["files"] == [{"path": "m.gguf", "sizeBytes": len(blob), "sha256": None}]
    assert (done.result["layout"], done.result["folder"]) == ("HuggingFaceCache", f"snapshots/{commit}")
    assert download.run("", command=[*command, "--revision", "v2"]).reason == "RevisionNotFound"


def test_inspect_compares_with_a_manifest(download):
    folder = download.dest / download.run("acme/model", "--include", "*.json").result["commit"]
    command = [*download.command("x")[:4], "--inspect", str(folder)]
    assert download.run("", command=command).code == 0
    (folder / "config.json").write_bytes(b'{"a": 2}')
    assert download.run("", command=command).reason == "ChecksumMismatch"
    assert download.run("", command=[*command, "--verify", "size"]).code == 0
    os.truncate(folder / "config.json", 5)
    assert download.run("", command=[*command, "--verify", "size"]).reason == "SizeMismatch"


def test_inspect_reads_nothing_outside_for_a_manifest_of_somebody_else(download, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "secret").write_bytes(b"12345")
    (tmp_path / "x/a.bin").write_bytes(b"1")
    manifest = {"moorage": 1, "commit": "c", "files": [{"path": "../secret", "sizeBytes": 5, "sha256": None}]}
    (tmp_path / "x/manifest.json").write_text(json.dumps(manifest))
    done = download.run("", command=[*download.command("x")[:4], "--inspect", str(tmp_path / "x")])
    assert (done.reason, done.code) == ("UnsafeName", 20), done


def test_plain_url(download, hub, model_bytes):
    commit = download.run("acme/one", "--manifest-only").result
    url = f"{hub.url}/acme/one/resolve/main/model.gguf"
    sha256 = commit["files"][0]["sha256"]
    base = [*download.command("x")[:7], "--url", url, "--sha256", sha256]
    done = download.run("", command=base, env={"HF_TOKEN": "hf_secret"})
    assert done.code == 0, done
    assert (download.dest / sha256 / "model.gguf").read_bytes() == model_bytes
    assert not any(r["authorization"] for r in hub.requests("model.gguf"))


def test_usage_errors(download):
    assert download.run("acme/one", "--url", "http://x").code == 2
    assert download.run("acme/one", "--connections", "0").code == 2


def test_moved_branch_keeps_equal_files(tmp_path):
    """A new commit with one new file: the large one is neither fetched again nor copied."""
    root = tmp_path / "root"
    data = os.urandom(9_000_000)
    make_repo(root, "acme/m", {"big.gguf": data})
    with HubServer(root) as hub:
        download = Downloader(hub, tmp_path / "models")
        first = download.run("acme/m").result["commit"]
        make_repo(root, "acme/m", {"README.md": b"hello"})
        done = download.run("acme/m")
        assert done.code == 0, done
        second = done.result["commit"]
        assert second != first
        assert hub.sent("big.gguf") == len(data)
        both = [download.dest / commit / "big.gguf" for commit in (first, second)]
        assert both[0].stat().st_ino == both[1].stat().st_ino
        assert both[1].read_bytes() == data


def test_equal_files_are_fetched_once(tmp_path):
    root = tmp_path / "root"
    data = os.urandom(100_000)
    make_repo(root, "acme/m", {"a.gguf": data, "b/c.gguf": data, "empty.txt": b"", "manifest.json": b"{}"})
    with HubServer(root) as hub:
        download = Downloader(hub, tmp_path / "models")
        done = download.run("acme/m")
        assert done.code == 0, done
        folder = download.check({"a.gguf": data, "b/c.gguf": data, "empty.txt": b"", "manifest.json": b"{}"})
        assert (folder / "manifest.json").read_bytes() == b"{}"
        assert (folder / ".moorage-manifest.json").exists()
        assert hub.sent(".gguf") == len(data)
        assert download.run("acme/m").code == 0
        (folder / "empty.txt").write_bytes(b"x")
        command = [*download.command("x")[:4], "--inspect", str(folder)]
        assert download.run("", command=command).reason == "SizeMismatch"
