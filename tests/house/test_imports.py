"""What the operator process does not import: each of these is memory that it would keep for as long as it runs."""

import subprocess
import sys

import pytest

_LIST = "import sys, moorage.control.main; print('\\n'.join(sys.modules))"


@pytest.fixture(scope="module")
def imported() -> set[str]:
    done = subprocess.run([sys.executable, "-c", _LIST], capture_output=True, text=True, check=True, timeout=300)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "stranger",
    [
        "httptools",
        "huggingface_hub",
        "kubernetes.aio.client.api",
        "kubernetes.client.api",
        "kubernetes.client.api_client",
        "moorage.agent",
        "moorage.bench",
        "moorage.download",
        "moorage.explain",
        "moorage.gateway",
        "moorage.people",
        "moorage.render",
        "pydantic.v1",
        "pynvml",
        "requests",
    ],
)
def test_the_operator_does_not_import(imported: set[str], stranger: str):
    assert "moorage.control.operator" in imported
    assert not sorted(m for m in imported if m == stranger or m.startswith(f"{stranger}."))


def test_the_clients_models_are_those_that_kopf_asks_for(imported: set[str]):
    """There are 700 of them, 20 MiB; kopf looks at three to know them from its own dicts."""
    models = {m for m in imported if m.startswith(("kubernetes.client.models.", "kubernetes.aio.client.models."))}
    assert len(models) <= 3, sorted(models)
