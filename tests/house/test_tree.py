"""Rules about the tree itself."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "operator").rglob("*.py"))


def test_operator_folder_is_not_a_package():
    assert not (ROOT / "operator" / "__init__.py").exists(), "it would shadow the standard library's operator module"


def test_modules_have_at_most_400_lines():
    long = {str(m.relative_to(ROOT)): n for m in MODULES if (n := len(m.read_text().splitlines())) > 400}
    assert not long


def test_functions_have_at_most_50_lines():
    long = []
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > 50:
                    long.append(f"{module.relative_to(ROOT)}:{node.lineno} {node.name}: {lines} lines")
    assert not long


def test_metrics_client_is_imported_only_in_metrics_modules():
    offenders = [
        str(m.relative_to(ROOT)) for m in MODULES if m.name != "metrics.py" and "prometheus_client" in m.read_text()
    ]
    assert not offenders
