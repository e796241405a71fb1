"""Every fault of tests/process/download/FAULTS.md has a test."""

import re
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "process/download"
ROWS = [line for line in (FOLDER / "FAULTS.md").read_text().splitlines() if line.startswith("| ") and "::" in line]


def test_every_named_test_exists():
    assert len(ROWS) > 80
    missing = []
    for row in ROWS:
        fault, _, outcome, named = (cell.strip() for cell in row.strip("|").split(" | "))
        assert fault, row
        assert outcome, row
        file, test, case = re.fullmatch(r"`(\S+\.py)::(\w+)(?:\[(.+)\])?`", named).groups()
        text = (FOLDER / file).read_text()
        if f"def {test}(" not in text or (case and f'"{case}"' not in text):
            missing.append(named)
    assert not missing
