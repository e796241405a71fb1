"""Build Moorage's images on a machine without a container registry.

    python3 images/build.py [--print-json] [NAME ...]

The `Containerfile` of each image says the same on public base images, for `docker build` and the outside world.
Here the root file systems come from Debian's packages (`mmdebstrap`), the images from `buildah`, and each ends as an
archive in the cache (`$MOORAGE_CACHE`, else `$XDG_CACHE_HOME/moorage`, else `~/.cache/moorage`, folder `images`) for
`ctr -n k8s.io images import`, `docker load` and their like. An image is a chain of layers. The tag of each is a hash
of everything that it is made from, so a changed file gives a new tag, pull policy IfNotPresent is right, and nothing
is built twice. Standard library only: it runs before there is a virtual environment.
"""

import argparse
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

if not __package__:  # run as a script: only this folder is on the search path
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from images.recipes import BY_NAME, IMAGES, LAYERS, ON_DEMAND, ROOT, BuildError, Layer, run, source_files

REGISTRY = "moorage.local"
HERE = Path(__file__).resolve().parents[1]
KNOWN = (*IMAGES, *ON_DEMAND)
ARCHIVES_KEPT = 3


def tag(layer: Layer) -> str:
    """Return 12 hex digits that change whenever a layer's recipe, files or parent change."""
    digest = hashlib.sha256((HERE / layer.recipe).read_bytes())
    digest.update(f"{layer.name} {platform.machine()} {tag(BY_NAME[layer.parent]) if layer.parent else ''}".encode())
    for name in layer.inputs:
        for path in source_files(ROOT / name):
            content = path.read_bytes()
            digest.update(f"\0{path.relative_to(ROOT)}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()[:12]


def reference(layer: Layer) -> str:
    """Return the name under which a layer's image is known to buildah, containerd and manifests."""
    return f"{REGISTRY}/{layer.name}:{tag(layer)}"


def archive(cache: Path, ref: str) -> Path:
    """Return the path of an image's archive in the cache."""
    return cache / (ref.rpartition("/")[2].replace(":", "-") + ".tar")


def cache_folder(environment: dict[str, str]) -> Path:
    """Return the folder for archives and layers, following the XDG base directory specification."""
    default = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moorage"
    return Path(environment.get("MOORAGE_CACHE") or default) / "images"


def prune(cache: Path, name: str) -> list[Path]:
    """Remove all but the newest archives of one image (a large one's newest) and return those removed."""
    pattern = re.compile(re.escape(name) + r"-[0-9a-f]{12}\.tar")
    archives = [path for path in cache.glob(f"{name}-*.tar") if pattern.fullmatch(path.name)]
    old = sorted(archives, key=lambda path: path.stat().st_mtime, reverse=True)[
        1 if name in ON_DEMAND else ARCHIVES_KEPT :
    ]
    for path in old:
        path.unlink()
    return old


@dataclass(frozen=True)
class Buildah:
    """Buildah with a storage of its own below `cache`, so that nothing else on the machine is touched."""

    cache: Path

    @cached_property
    def _command(self) -> list[str]:
        for driver in ("overlay", "vfs"):
            folders = ["--root", str(self.cache / driver), "--runroot", str(self.cache / f"{driver}-run")]
            command = ["buildah", "--storage-driver", driver, *folders]
            if subprocess.run([*command, "info"], capture_output=True, check=False).returncode == 0:
                return command
        raise BuildError("buildah can use neither the overlay nor the vfs storage driver here")

    def __call__(self, *arguments: str) -> str:
        """Run a subcommand and return what it printed."""
        return run([*self._command, *arguments])

    def has(self, image: str) -> bool:
        """Say whether an image is in the storage."""
        command = [*self._command, "inspect", "--type", "image", image]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def keep_only(self, images: set[str]) -> None:
        """Remove all other images from the storage: layers of former recipes, and what is in an archive by now."""
        names = self("images", "--noheading", "--format", "{{.Name}}:{{.Tag}}").split()
        for name in set(names) - images:
            self("rmi", name)

    def commit(self, layer: Layer, tree: Path, *, parent: str, ref: str) -> None:
        """Make the image `ref` of a layer from its parent's and a tree of files."""
        container = self("from", "--pull-never", parent).strip()
        try:
            self("add", "--quiet", container, str(tree), "/")
            if layer.settings:
                self("config", *layer.settings, container)
            if layer.finish:
                printed = self("run", "--isolation", "chroot", "--user", "0:0", container, "--", *layer.finish)
                if layer.check:
                    layer.check(printed)
            self("commit", "--quiet", "--timestamp", "0", container, ref)
        finally:
            self("rm", container)


@contextmanager
def _step(what: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    print(f"images: {what} ({time.monotonic() - start:.1f} s)", file=sys.stderr, flush=True)


def install_tools(layer: Layer) -> None:
    """Install mmdebstrap, buildah and what building `layer` itself takes with apt-get where they are missing."""
    tools = {"mmdebstrap": "mmdebstrap", "buildah": "buildah", **layer.tools}
    missing = sorted({package for program, package in tools.items() if not shutil.which(program)})
    if not missing:
        return
    if os.geteuid() or not shutil.which("apt-get"):
        raise BuildError(f"missing: {', '.join(missing)}; install them, or run this as root on Debian")
    print(f"images: installing with apt-get: {', '.join(missing)}", file=sys.stderr, flush=True)
    with _step(f"installed {', '.join(missing)}"):
        run(["apt-get", "update", "--quiet"])
        run(["apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *missing])


def build_layer(buildah: Buildah, layer: Layer) -> str:
    """Return the name of a layer's image, building it and those below it unless they are in the storage."""
    parent = build_layer(buildah, BY_NAME[layer.parent]) if layer.parent else "scratch"
    ref = reference(layer)
    if buildah.has(ref):
        return ref
    with _step(f"layer {ref}"), tempfile.TemporaryDirectory(dir=buildah.cache) as work:
        tree = Path(work) / "tree"
        tree.mkdir(mode=0o755)
        layer.assemble(tree)
        if reference(layer) != ref:
            raise BuildError(f"the files of {layer.name} changed while they were copied; run this again")
        buildah.commit(layer, tree, parent=parent, ref=ref)
    return ref


def build_image(cache: Path, layer: Layer) -> tuple[str, Path]:
    """Return an image's name and archive, building what is missing."""
    ref = reference(layer)
    target = archive(cache, ref)
    if target.exists():
        target.touch()  # so that pruning keeps what is in use
        return ref, target
    install_tools(layer)
    buildah = Buildah(cache)
    buildah("rm", "--all")  # what a killed build left
    ref = build_layer(buildah, layer)
    target = archive(cache, ref)
    partial = target.with_suffix(".partial")
    with _step(f"archive {target}"):
        partial.unlink(missing_ok=True)
        # Not an OCI archive: its layers are always compressed, which takes ten times as long.
        buildah("push", "--quiet", "--disable-compression", ref, f"docker-archive:{partial}:{ref}")
        partial.rename(target)
    buildah.keep_only({reference(below) for below in LAYERS if below.name not in KNOWN})
    prune(cache, layer.name)
    return ref, target


def main(arguments: list[str] | None = None) -> int:
    """Build the images named on the command line (all by default) and say where their archives are."""
    parser = argparse.ArgumentParser(description="Build Moorage's images without a registry.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(KNOWN)}; by default all but the last")
    parser.add_argument("--print-json", action="store_true", help='{"NAME": {"ref": ..., "archive": ...}}')
    options = parser.parse_args(arguments)
    unknown = set(options.names) - set(KNOWN)
    if unknown:
        parser.error(f"no such image: {', '.join(sorted(unknown))}")
    cache = cache_folder(dict(os.environ))
    cache.mkdir(parents=True, exist_ok=True)
    built = {}
    try:
        with (cache / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for name in options.names or IMAGES:
                ref, path = build_image(cache, BY_NAME[name])
                built[name] = {"ref": ref, "archive": str(path)}
    except BuildError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    if options.print_json:
        print(json.dumps(built, indent=2))
    else:
        for image in built.values():
            print(f"{image['ref']} {image['archive']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
