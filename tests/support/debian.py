"""Programs of Debian packages for tests, unpacked once into the cache without being installed."""

import fcntl
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from images.build import cache_folder
from images.recipes import debian_mirror


def unpacked(
    name: str,
    suite: str,
    packages: Sequence[str],
    *,
    options: Sequence[str] = (),
    finish: Callable[[Path], object] = lambda _root: None,
) -> Path:
    """The root file system `name` in the cache, made on first use; `finish` may trim it, or raise to refuse it."""
    cache = cache_folder(dict(os.environ)).parent / "oracle"
    cache.mkdir(parents=True, exist_ok=True)
    root = cache / name
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.is_dir():
            fresh = root.with_name("fresh")
            shutil.rmtree(fresh, ignore_errors=True)
            mirror = debian_mirror()
            command = ["mmdebstrap", "--quiet", "--variant=extract", *options, f"--include={','.join(packages)}"]
            where = [suite, str(fresh)] + ([mirror] if mirror else [])
            subprocess.run([*command, *where], check=True, stdin=subprocess.DEVNULL)
            finish(fresh)
            fresh.rename(root)
    return root
