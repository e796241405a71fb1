"""The Grafana dashboard of the chart, as data: `charts.generate` writes it to `files/grafana/moorage.json`.

Panels lie in rows of a 24 columns wide grid, as Grafana's JSON model has them
(https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/).
"""

import json
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

SOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH, HEIGHT = 24, 8
BY_MODEL = 'model=~"$model"'
BY_OBJECT = 'namespace=~"$namespace"'
RATE = "$__rate_interval"


@dataclass(frozen=True)
class Panel:
    """One panel: its queries as (PromQL, legend), what its numbers are (a unit of Grafana), and what it is about."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    about: str = ""

    def json(self, number: int, x: int, y: int) -> Json:
        """The panel in Grafana's JSON model."""
        made: Json = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.about,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": self.unit, "min": 0}, "overrides": []},
            "targets": [self._target(letter, *query) for letter, query in zip("ABCD", self.queries, strict=False)],
            "options": {},
        }
        if self.kind == "table":
            hidden = dict.fromkeys(("Time", "Value", "__name__", "job", "instance", "endpoint", "pod", "service"), True)
            made["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
        return made

    def _target(self, letter: str, expr: str, legend: str) -> Json:
        target: Json = {"refId": letter, "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        return target | ({"format": "table", "instant": True} if self.kind == "table" else {})


def _quantiles(metric: str) -> tuple[tuple[str, str], ...]:
    """The median and the 95th percentile of a histogram, for each Model."""
    rate = f"sum by (le, model) (rate({metric}_bucket{{{BY_MODEL}}}[{RATE}]))"
    return tuple(
        (f"histogram_quantile({share}, {rate})", f"{{{{model}}}} {name}")
        for share, name in ((0.5, "p50"), (0.95, "p95"))
    )


def _rate(metric: str, by: str, labels: str = "", legend: str = "") -> tuple[tuple[str, str], ...]:
    return ((f"sum by ({by}) (rate({metric}{{{labels}}}[{RATE}]))", legend or f"{{{{{by}}}}}"),)


ROWS: tuple[tuple[str, tuple[Panel, ...]], ...] = (
    ("Models", (
        Panel("Models by phase", (('sum by (phase) (moorage_objects{kind="Model"})', "{{phase}}"),)),
        Panel(
            "Models that are not serving and not asleep",
            ((f'moorage_model_phase{{{BY_OBJECT},phase!~"Ready|ScaledToZero|Preempted"}}', ""),),
            kind="table", about="`kubectl describe model NAME` says why.",
        ),
        Panel(
            "Put to sleep and woken",
            ((f"sum by (cause) (increase(moorage_sleeps_total[{RATE}]))", "asleep: {{cause}}"),
             (f"sum(increase(moorage_wakes_total[{RATE}]))", "woken")),
        ),
    )),
    ("Requests", (
        Panel(
            "Requests", _rate("moorage_gateway_requests_total", "model, outcome", BY_MODEL, "{{model}} {{outcome}}"),
            "reqps", about="An engine's 4xx is ok, and a client that left is no error.",
        ),
        Panel(
            "Time to the first byte", _quantiles("moorage_gateway_first_byte_seconds"), "s",
            about="From a request's last byte to the first of its answer; waiting for a Model that sleeps is in it.",
        ),
        Panel("Time to the last byte", _quantiles("moorage_gateway_request_seconds"), "s"),
        Panel(
            "Tokens a second", _rate("moorage_gateway_tokens_total", "model, kind", BY_MODEL, "{{model}} {{kind}}")
        ),
        Panel(
            "Under way and waiting",
            ((f"sum by (model) (moorage_gateway_in_flight{{{BY_MODEL}}})", "{{model}}"),
             ("sum(moorage_gateway_held)", "waiting for a Model")),
        ),
        Panel(
            "Refused, by code", _rate("moorage_gateway_refused_total", "code"), "reqps",
            about="Answers that no engine gave; docs/reference/gateway.md has the codes.",
        ),
    )),
    ("Downloads", (
        Panel("Bytes put on disk", ((f"sum(rate(moorage_download_bytes_total[{RATE}]))", "all"),), "Bps"),
        Panel(
            "Failures, retries and stalls",
            ((f"sum by (reason) (increase(moorage_download_failures_total[{RATE}]))", "failed: {{reason}}"),
             (f"sum by (reason) (increase(moorage_download_retries_total[{RATE}]))", "repeated: {{reason}}"),
             (f"sum(increase(moorage_download_stalls_total[{RATE}]))", "stalled"),
             (f"sum by (kind) (increase(moorage_download_verification_failures_total[{RATE}]))", "wrong: {{kind}}")),
        ),
        Panel(
            "Downloads that are not Ready",
            ((f'moorage_download_phase{{{BY_OBJECT},phase!="Ready"}}', ""),), kind="table",
        ),
    )),
    ("GPUs, as the agents see them", (
        Panel(
            "Memory in use",
            (("moorage_gpu_memory_used_bytes / moorage_gpu_memory_total_bytes", "{{node}} {{gpu}} {{pod}}"),),
            "percentunit",
        ),
        Panel(
            "Time in which a kernel ran", (("moorage_gpu_utilization_ratio", "{{node}} {{gpu}} {{pod}}"),),
            "percentunit",
        ),
        Panel(
            "Trouble",
            (("moorage_gpu_driver_up == 0", "driver away: {{node}}"),
             ("moorage_gpu_healthy == 0", "GPU ill: {{node}} {{gpu}}"),
             ("moorage_gpu_pods_known == 0", "kubelet silent: {{node}}")),
        ),
    )),
    ("Operator", (
        Panel(
            "Passes, 95 % within",
            ((f"histogram_quantile(0.95, sum by (le, kind) (rate(moorage_pass_seconds_bucket[{RATE}])))", "{{kind}}"),),
            "s",
        ),
        Panel("Requests to the API server", _rate("moorage_api_requests_total", "verb"), "reqps"),
        Panel(
            "Waiting and failing",
            (("moorage_queue_depth", "objects that wait"),
             (f"sum by (kind, error) (increase(moorage_pass_failures_total[{RATE}]))", "{{kind}}: {{error}}")),
        ),
    )),
)  # fmt: skip


def _variable(name: str, label: str, query: str) -> Json:
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE, "definition": query,
        "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1, "multi": True, "includeAll": True,
        "allValue": ".*", "current": {"text": ["All"], "value": ["$__all"]},
    }  # fmt: skip


def _panels() -> list[Json]:
    made: list[Json] = []
    y = 0
    for title, panels in ROWS:
        made.append({"id": len(made) + 1, "type": "row", "title": title, "collapsed": False, "panels": [],
                     "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})  # fmt: skip
        x, y = 0, y + 1
        for panel in panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + HEIGHT
            made.append(panel.json(len(made) + 1, x, y))
            x += panel.width
        y += HEIGHT
    return made


def dashboard() -> str:
    """The dashboard as the text of a JSON file."""
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    made = {
        "uid": "moorage",
        "title": "Moorage",
        "tags": ["moorage"],
        "schemaVersion": 39,
        "editable": True,
        "timezone": "",
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [
                source,
                _variable("namespace", "Namespace", "label_values(moorage_model_phase, namespace)"),
                _variable("model", "Model, as clients call it", "label_values(moorage_gateway_in_flight, model)"),
            ]
        },
        "panels": _panels(),
    }
    return json.dumps(made, indent=1) + "\n"
