"""docs/reference/bench.md says what the code does."""

import re
from pathlib import Path

from moorage.bench.main import command
from moorage.bench.verdict import EXIT_CODES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "bench.md").read_text()


def test_every_reason_stands_beside_its_exit_code():
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", PAGE, flags=re.MULTILINE)
    assert {reason: int(code) for code, reason in rows} == {reason.value: code for reason, code in EXIT_CODES.items()}


def test_help_has_every_exit_code():
    assert command.help is not None
    codes = {int(code) for code in re.findall(r"^\s+(\d+) {2,4}\w", command.help, flags=re.MULTILINE)}
    assert codes == {0, *EXIT_CODES.values()}


def test_every_option_and_its_default_is_documented():
    options = PAGE.split("## Options")[1].split("## What is sent")[0]
    for parameter in command.params:
        longest = max(parameter.opts, key=len)
        if longest == "--output":
            longest = "-o"
        row = next((line for line in options.splitlines() if f"`{longest}" in line), None)
        assert row, f"{longest} is not documented"
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            assert f"| {parameter.default:g} |" in row, longest
