"""The chart's alerts, judged by Prometheus' own promtool: valid, each with what fires it and what does not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.helm import CHART
from tests.support.prometheus import promtool

RULES = CHART / "rules/alerts.yaml"
CASES: list[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("alerts.yaml").read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def test_promtool_finds_nothing_wrong():
    done = promtool("check", "rules", RULES)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules())} rules found" in done.stdout


def test_each_alert_has_a_case_and_says_what_to_do():
    named = {alert["alertname"] for case in CASES for alert in case["firing"]}
    assert named == {rule["alert"] for rule in rules()}
    for rule in rules():
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_what_fires_and_what_does_not(case: dict[str, Any], tmp_path: Path):
    # As samples of ALERTS and not as `exp_alerts`, which would repeat the sentences here.
    firing = [{"labels": _sample(alert), "value": 1} for alert in case["firing"]]
    asked = {"expr": 'ALERTS{alertstate="firing"}', "eval_time": f"{case['at']}m", "exp_samples": firing}
    test = {
        "interval": "1m",
        "input_series": [{"series": series, "values": values} for series, values in case["series"].items()],
        "promql_expr_test": [asked],
    }
    file = tmp_path / "case.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    done = promtool("test", "rules", file)
    assert done.returncode == 0, done.stderr + done.stdout


def _sample(labels: dict[str, str]) -> str:
    inner = ", ".join(f'{name}="{value}"' for name, value in {**labels, "alertstate": "firing"}.items())
    return f"ALERTS{{{inner}}}"
