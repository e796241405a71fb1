"""Every benchmark says what it does when asked, instead of doing it; a part measured anew replaces itself alone."""

import importlib
from pathlib import Path

import pytest

from benchmarks.proxies.page import block, renew

BENCHMARKS = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_is_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr("sys.argv", [name, "--help"])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: ")


def test_a_part_that_is_measured_anew_leaves_the_others_alone(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n" + block("one", ["- 1"]) + block("two", ["- 2"]))
    renew(page, {"one": ["- 11"], "three": ["- 3"]}, "Later.")
    assert page.read_text() == "# Page\n\n" + "".join(
        [block("one", ["- 11", "  *Later.*"]), block("two", ["- 2"]), block("three", ["- 3", "  *Later.*"])]
    )
