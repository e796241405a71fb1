"""What the volume can do to a download, and a download to the volume."""

import errno
import os
import re
import subprocess
import threading
import time

import pytest

from e2e.hub import HubServer
from moorage.download.volume import storage_error
from tests.process.download.support import Downloader, HubProcess, eventually, make_repo
from tests.support.eventually import SLACK

MB = 1_000_000


@pytest.fixture
def small_volume(tmp_path):
    """A file system of 30 MB; needs the right to mount, which the test container has."""
    folder = tmp_path / "volume"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=30M", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_volume_that_is_too_small_is_found_before_the_first_byte(hub, small_volume):
    done = Downloader(hub, small_volume / "models").run("acme/one")
    assert (done.reason, done.code) == ("InsufficientStorage", 21), done
    needed, free = map(
        float,
        re.search(
            r"need ([\d.]+)Mi more, the volume has ([\d.]+)Mi free; make the claim", done.result["message"]
        ).groups(),
    )
    assert 38.1 < needed < 43
    assert 24 < free < 30.1
    assert "models" not in done.result["message"].replace("models--", "")
    assert not hub.requests("resolve")


def test_a_sum_that_does_not_fit_is_found_before_the_first_byte(tmp_path, small_volume):
    make_repo(tmp_path / "root", "acme/m", {}, files={f"{i}.gguf": {"size": 4 * MB, "seed": i} for i in range(9)})
    with HubServer(tmp_path / "root") as hub:
        done = Downloader(hub, small_volume / "models").run("acme/m")
        assert done.reason == "InsufficientStorage", done
        assert not hub.requests("resolve")


def test_a_volume_that_others_fill_meanwhile(tmp_path, small_volume):
    """Large files have their room reserved; small ones run into the full volume, say so, and go on later."""
    make_repo(tmp_path / "root", "acme/m", {}, files={f"{i:02}.gguf": {"size": 2 * MB, "seed": i} for i in range(10)})
    with HubServer(tmp_path / "root", rate=8 * MB) as hub:
        download = Downloader(hub, small_volume / "models")
        process = download.start("acme/m", "--connections", "2")
        eventually(lambda: len(list(small_volume.rglob("files/*"))) >= 2)
        hog = small_volume / "hog"
        subprocess.run(
            ["fallocate", "-l", str(os.statvfs(small_volume).f_bavail * 4096 - 3 * MB), str(hog)], check=True
        )
        done = download.wait(process)
        assert (done.reason, done.code) == ("InsufficientStorage", 21), done
        hog.unlink()
        hub.throttle.rate = 0
        done = download.run("acme/m")
        assert done.code == 0, done
        assert hub.sent(".gguf") < 26 * MB


def test_a_quota_is_no_space_too(tmp_path):
    """EDQUOT, whose words are other ones; both numbers are not known then."""
    for code, words in ((errno.EDQUOT, "quota exceeded"), (errno.ENOSPC, "No space left on device")):
        error = storage_error(OSError(code, os.strerror(code)), "a.gguf")
        assert error.reason == "InsufficientStorage"
        assert error.message.startswith("no space left on the volume for a.gguf")
        assert words in error.message


def test_reserved_room_cannot_be_taken(tmp_path, small_volume):
    make_repo(tmp_path / "root", "acme/m", {}, files={"m.gguf": {"size": 20 * MB, "seed": 1}})
    with HubServer(tmp_path / "root", rate=10 * MB) as hub:
        download = Downloader(hub, small_volume / "models")
        process = download.start("acme/m")
        eventually(lambda: hub.sent("m.gguf") > 5 * MB)
        hog = subprocess.run(["fallocate", "-l", "20M", str(small_volume / "hog")], check=False, capture_output=True)
        assert hog.returncode != 0
        assert download.wait(process).code == 0


def test_a_volume_that_cannot_be_written(hub, small_volume):
    subprocess.run(["mount", "-o", "remount,ro", str(small_volume)], check=True)
    done = Downloader(hub, small_volume / "models").run("acme/one")
    assert (done.reason, done.code) == ("StorageError", 24), done
    assert "Read-only" in done.result["message"]


def test_two_writers_the_second_waits_and_finds_everything(hub, download, model_bytes):
    hub.throttle.rate = 20 * MB
    first = download.start("acme/one")
    eventually(lambda: hub.sent("model.gguf") > 5 * MB)
    second = download.start("acme/one")
    assert download.wait(first).code == 0
    assert download.wait(second).code == 0
    assert hub.sent("model.gguf") == 40 * MB
    download.check({"model.gguf": model_bytes})


def test_two_writers_the_wait_has_an_end(hub, download):
    hub.throttle.rate = 1 * MB
    first = download.start("acme/one")
    eventually(lambda: hub.sent("model.gguf") > MB)
    second = download.run("acme/one", "--lock-wait", "0.3")
    assert (second.reason, second.code) == ("VolumeBusy", 37), second
    hub.throttle.rate = 0
    assert download.wait(first).code == 0


def test_the_killed_writer_leaves_no_lock(hub, download):
    hub.throttle.rate = 10 * MB
    first = download.start("acme/one")
    eventually(lambda: hub.sent("model.gguf") > 5 * MB)
    first.kill()
    first.communicate()
    hub.throttle.rate = 0
    started = time.monotonic()
    assert download.run("acme/one").code == 0
    assert time.monotonic() - started < SLACK


def test_ten_thousand_small_files(tmp_path):
    """And one more on the next commit: only that one is fetched, though git's hash is all the hub says of them."""
    files = {f"{i % 100}/{i}.txt": b"%d" % i for i in range(10_000)}
    make_repo(tmp_path / "root", "acme/m", files)
    with HubProcess(tmp_path / "root") as hub:
        download = Downloader(hub, tmp_path / "models")
        done = download.run("acme/m", "--connections", "4", timeout=300)
        assert done.code == 0, done.result["message"]
        before = download.check(files)
        fetched = eventually(lambda: len(f := [r for r in hub.requests() if "/resolve/" in r["path"]]) == 10_000 and f)
        assert len({r["connection"] for r in fetched}) == 4
        make_repo(tmp_path / "root", "acme/m", {"README.md": b"new"})
        done = download.run("acme/m", timeout=300)
        assert done.code == 0, done.result["message"]
        # The hub notes a request when it has answered, which may be after the process has ended.
        eventually(lambda: len([r for r in hub.requests() if "/resolve/" in r["path"]]) == 10_001)
        after = download.dest / done.result["commit"]
        assert (before / "7/7.txt").stat().st_ino == (after / "7/7.txt").stat().st_ino
        assert (after / "README.md").read_bytes() == b"new"


def test_a_stopped_run_of_small_files_keeps_what_it_has(tmp_path):
    files = {f"{i}.txt": b"%d" % i for i in range(300)}
    make_repo(tmp_path / "root", "acme/m", files)
    with HubServer(tmp_path / "root", rescan=3600) as hub:
        slow = hub.rule("slow", "/resolve/", seconds=0.05, count=None)
        download = Downloader(hub, tmp_path / "models")
        process = download.start("acme/m", "--connections", "4")
        eventually(lambda: len(hub.requests("/resolve/")) > 100)
        process.kill()
        process.communicate()
        slow.count = 0
        assert download.run("acme/m").code == 0
        download.check(files)
        assert len(hub.requests("/resolve/")) <= 310


def test_odd_but_honest_names(tmp_path):
    files = {
        "with space/ä ö #?%.gguf": b"1",
        "日本語/モデル.gguf": b"22",
        "a[1]{2}(3).txt": b"333",
        "+&=;,'!~$@:.x": b"4",
    }
    make_repo(tmp_path / "root", "acme/m", files)
    with HubServer(tmp_path / "root") as hub:
        download = Downloader(hub, tmp_path / "models")
        done = download.run("acme/m")
        assert done.code == 0, done
        download.check(files)
        one = Downloader(hub, tmp_path / "one")
        assert one.run("acme/m", "--file", "a[1]{2}(3).txt").code == 0
        one.check({"a[1]{2}(3).txt": b"333"})


@pytest.mark.parametrize(
    "path", ["../evil", "/etc/evil", "a/../../evil", "a\\evil", ".moorage/parts/x", "x\nx", "a//b"]
)
def test_hostile_names_write_nothing(tmp_path, path):
    make_repo(tmp_path / "root", "acme/m", {"a.gguf": b"x"}, lies={"a.gguf": {"path": path}})
    with HubServer(tmp_path / "root") as hub:
        done = Downloader(hub, tmp_path / "models").run("acme/m")
    assert (done.reason, done.code) == ("UnsafeName", 20), done
    assert not (tmp_path / "evil").exists()
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ({"size": 5}, "SizeMismatch"),
        ({"size": 5000}, "SizeMismatch"),
        ({"size": 20 * MB}, "SizeMismatch"),
        ({"sha256": "0" * 64}, "ChecksumMismatch"),
        ({"size": 1 << 49, "sha256": "0" * 64}, "InsufficientStorage"),
        ({"size": 1 << 60}, "NotAHub"),
        ({"size": -1}, "NotAHub"),
    ],
)
def test_lying_metadata(tmp_path, lie, reason):
    make_repo(tmp_path / "root", "acme/m", {"a.gguf": b"x" * 1000}, lies={"a.gguf": lie})
    with HubServer(tmp_path / "root") as hub:
        download = Downloader(hub, tmp_path / "models")
        done = download.run("acme/m", "--retries", "2")
        assert done.reason == reason, done
        assert done.seconds < 5
        assert not download.published()
        assert hub.sent("a.gguf") <= 2000


def test_a_git_hash_is_checked_too(tmp_path):
    make_repo(tmp_path / "root", "acme/m", {"config.json": b"{}"}, lies={"config.json": {"oid": "1" * 40}})
    with HubServer(tmp_path / "root") as hub:
        done = Downloader(hub, tmp_path / "models").run("acme/m")
    assert done.reason == "ChecksumMismatch", done


def test_links_on_the_volume_lead_nowhere(hub, tmp_path):
    """Somebody with access to the volume plants links: nothing outside is written, and nothing linked is believed."""
    download = Downloader(hub, tmp_path / "models")
    commit = download.run("acme/model").result["commit"]
    outside = tmp_path / "outside"
    outside.write_bytes((download.dest / commit / "model.gguf").read_bytes())
    for name in ("model.gguf", "config.json"):
        (download.dest / commit / name).unlink()
        (download.dest / commit / name).symlink_to(outside)
    before = outside.stat().st_mtime_ns
    assert download.run("acme/model").code == 0
    assert outside.stat().st_mtime_ns == before
    assert not any(p.is_symlink() for p in download.dest.rglob("*"))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/precious").touch()
    (download.dest / ".moorage/parts").symlink_to(tmp_path / "elsewhere")
    refused = download.run("acme/model", "--revision", commit)
    assert refused.reason == "StorageError", refused
    assert "symbolic link" in refused.result["message"]
    assert (tmp_path / "elsewhere/precious").exists()


def test_leftovers_of_another_selection_make_room(tmp_path, small_volume):
    files = {f"{name}.gguf": {"size": 20 * MB, "seed": seed} for seed, name in enumerate("ab")}
    make_repo(tmp_path / "root", "acme/m", {}, files=files)
    with HubServer(tmp_path / "root", rate=20 * MB) as hub:
        download = Downloader(hub, small_volume / "models")
        process = download.start("acme/m", "--file", "a.gguf")
        eventually(lambda: hub.sent("a.gguf") > 5 * MB)
        process.kill()
        process.communicate()
        done = download.run("acme/m", "--file", "b.gguf")
        assert done.code == 0, done
        assert [p.name for p in small_volume.rglob("*.gguf")] == ["b.gguf"]


def test_nothing_is_visible_before_all_is_verified(hub, download):
    hub.throttle.rate = 15 * MB
    process = download.start("acme/model")
    early, done = [], threading.Event()

    def watch():
        while not done.is_set():
            for folder in download.dest.glob("[0-9a-f]*"):
                early.append(sorted(p.name for p in folder.iterdir()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    assert download.wait(process).code == 0
    done.set()
    watcher.join()
    assert all(names == ["config.json", "manifest.json", "model.gguf"] for names in early)
