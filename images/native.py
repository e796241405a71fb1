"""Compile the gateway's data path with mypyc: `python images/native.py FOLDER`.

FOLDER gets extension modules that the interpreter prefers to the Python files they are made from, once both lie in one
folder; without them the same files are interpreted, at twice the CPU (docs/adr/0026-compiled-data-path.md). Takes
mypy, a C compiler and Python's headers.
"""

import os
import sys
import tempfile
from pathlib import Path

from mypyc.build import mypycify
from setuptools import setup

SOURCES = Path(__file__).resolve().parents[1] / "operator"
MODULES = (
    *("answer", "demand", "events", "exchange", "fleet", "health", "keys", "limits", "proxy", "refusals", "request"),
    *("rewrite", "routes", "server", "settings", "stats", "upstream"),
)
# Types are `make check`'s affair; here they only have to be found.
TYPES = ("--config-file=", "--explicit-package-bases", "--ignore-missing-imports", "--follow-imports=silent")


def main(folder: Path) -> None:
    """Put the extension modules into `folder`."""
    os.chdir(SOURCES)  # mypy names modules by their paths
    with tempfile.TemporaryDirectory() as work:
        files = [f"moorage/gateway/{module}.py" for module in MODULES]
        options = [*TYPES, f"--cache-dir={work}/types", *files]
        extensions = mypycify(options, opt_level="2", debug_level="0", target_dir=work, group_name="moorage_gateway")
        command = ["--quiet", "build_ext", f"--build-lib={folder}", f"--build-temp={work}"]
        setup(name="moorage-native", ext_modules=extensions, script_args=command)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
