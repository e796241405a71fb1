"""A page of results in parts, each of which can be measured anew without the others."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

_PART = re.compile(r"<!-- (\w+) -->\n(.*?)<!-- /\1 -->\n", re.DOTALL)


def provenance() -> str:
    """Commit, load average and CPUs of this moment."""
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    crowded = " OTHER WORK KEPT THE MACHINE BUSY: times and rates mean little, CPU is dearer for all."
    text = f"Commit {run.stdout.strip()}; load average before it {load:.1f} on {cpus} CPUs."
    return text + (crowded if load > cpus else "")


def block(name: str, lines: list[str]) -> str:
    """One part of a page."""
    return f"<!-- {name} -->\n" + "\n".join(lines) + f"\n<!-- /{name} -->\n"


def renew(page: Path, parts: Mapping[str, list[str]], when: str) -> None:
    """Put `parts` in the place of those of the same names, each with its own note of `when` it was measured."""
    text = page.read_text()
    known = {found[1] for found in _PART.finditer(text)}
    for name, lines in parts.items():
        fresh = block(name, [*lines, f"  *{when}*"])
        if name in known:
            text = _PART.sub(lambda found, n=name, new=fresh: new if found[1] == n else found[0], text)
        else:
            text += fresh
    page.write_text(text)
