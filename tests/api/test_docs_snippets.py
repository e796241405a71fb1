"""Every YAML block of the documentation is an object that a real API server takes, fields checked strictly."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.api

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NAMESPACE = "docs-snippets"


def snippets() -> Iterator[tuple[str, str]]:
    """(page:line, text) of every block fenced as yaml."""
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(r"^```ya?ml\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            yield f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, block.start()) + 1}", block[1]


SNIPPETS = list(snippets())


@pytest.fixture(scope="module")
def kubectl(api_cluster: Any):
    api_cluster.kubectl("create", "namespace", NAMESPACE)

    def run(text: str) -> Any:
        apply = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
        return api_cluster.kubectl("--namespace", NAMESPACE, *apply, input=text, check=False)

    return run


def test_the_readme_and_the_guides_have_examples():
    assert {where.partition(":")[0] for where, _ in SNIPPETS} >= {
        "README.md",
        "docs/how-to/first-model.md",
        "docs/how-to/gitops.md",
    }


@pytest.mark.parametrize(("where", "text"), SNIPPETS, ids=[where for where, _ in SNIPPETS])
def test_example_is_accepted(kubectl: Any, where: str, text: str):
    done = kubectl(text)
    assert done.returncode == 0, f"{where}: {done.stderr}"
    names = [document["metadata"]["name"] for document in yaml.safe_load_all(text)]
    assert [name for name in names if name not in done.stdout] == []


def test_a_wrong_field_is_noticed(kubectl: Any):
    """The check can fail: the README's first Model with a field misspelt."""
    where, text = SNIPPETS[0]
    assert where.startswith("README.md")
    done = kubectl(text.replace("quantization:", "quantisation:"))
    assert done.returncode != 0
    assert "quantisation" in done.stderr
