"""The generated pages of docs/reference say what the code says, and no page links to nothing."""

import importlib.util
import re
from pathlib import Path

import pytest

from moorage.api.conditions import REASON_HELP, Reason
from moorage.api.crd import KINDS
from moorage.planning.model_pass import PERSON

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs/reference"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *ROOT.glob("images/*.md"), *ROOT.glob("crds/*.md")]


def generated() -> dict[str, str]:
    """What `docs/generate.py` makes now; it is a script, not a module of a package."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs/generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    made: dict[str, str] = module.pages()
    return made


@pytest.mark.parametrize(("name", "text"), generated().items(), ids=list(generated()))
def test_page_is_as_the_code_makes_it(name: str, text: str):
    assert (REFERENCE / name).read_text() == text, f"docs/reference/{name} is out of date: run `make docs`"


def test_every_reason_has_a_line():
    assert set(REASON_HELP) == set(Reason)
    page = generated()["reasons.md"]
    assert re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE) != []
    assert set(re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)) == {str(reason) for reason in Reason}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_no_field_is_without_a_meaning(kind):
    rows = re.findall(r"^\| `[^`]+` \| .* \|$", generated()[f"{kind.plural}.md"], flags=re.MULTILINE)
    assert rows
    assert [row for row in rows if row.endswith("|  |")] == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path):
    dead = []
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", prose):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            dead.append(target)
    assert not dead


def test_every_decision_is_in_the_index():
    folder = ROOT / "docs/adr"
    index = (folder / "README.md").read_text()
    titles = {page.name: page.read_text().splitlines()[0].partition(". ")[2] for page in folder.glob("[0-9]*.md")}
    assert titles
    assert {name: title for name, title in titles.items() if f"[{title}]({name})" not in index} == {}


def test_troubleshooting_speaks_of_reasons_that_exist_and_of_all_that_wait_for_a_person():
    page = (ROOT / "docs/how-to/troubleshooting.md").read_text()
    headings = [title.split(", ") for title in re.findall(r"^### (\w+(?:, \w+)*)$", page, flags=re.MULTILINE)]
    named = {reason for reasons in headings for reason in reasons}
    assert named - {str(reason) for reason in Reason} == set()
    assert {str(reason) for reason in PERSON} - named == set()
