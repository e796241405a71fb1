"""Writes the generated pages of docs/reference: `python docs/generate.py` (or `make docs`).

- `models.md`, `modeldownloads.md`, `modelaliases.md`: every field of the three kinds, from the CRDs.
- `reasons.md`: every reason of a condition, from `REASON_HELP`.
- `capabilities.md`: what Models can do for applications, and how Moorage knows.
- `downloads.md`: how `moorage download` ends, from the table of exit codes.
- `arguments.md`: what arguments of the engines do to the memory estimate, from the engines' tables.
- `metrics.md`: every metric of every process, from what counts it.
- `commands.md`: the commands for people, from their `--help`.

A test holds the committed pages equal to what this makes.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from prometheus_client import REGISTRY
from prometheus_client.registry import Collector

from moorage.agent.metrics import AgentCollector
from moorage.api.capabilities import CAPABILITY_HELP, EVIDENCE_HELP, Capability, Evidence
from moorage.api.conditions import (
    REASON_HELP,
    AliasCondition,
    DownloadCondition,
    DownloadPhase,
    ModelCondition,
    ModelPhase,
    Reason,
)
from moorage.api.crd import KINDS, Kind, crd
from moorage.cli import FOR_PEOPLE
from moorage.cli import main as moorage
from moorage.control.metrics import Now, NowCollector
from moorage.engines.memory_args import LLAMA_CPP, VLLM, MemoryArg
from moorage.gateway.demand import Demand
from moorage.gateway.metrics import GatewayCollector
from moorage.gateway.proxy import Proxy
from moorage.gateway.settings import Settings
from moorage.gateway.stats import Stats
from moorage.names import API_VERSION
from moorage.placement.gpu_report import GpuReport
from moorage.planning.model_pass import PERSON
from moorage.sources.reasons import CATALOG

REFERENCE = Path(__file__).resolve().parent / "reference"
HEADER = "<!-- Made by `make docs`; change the code it comes from. -->\n\n"

PHASES = {"Model": ModelPhase, "ModelDownload": DownloadPhase}
CONDITIONS = {"Model": ModelCondition, "ModelDownload": DownloadCondition, "ModelAlias": AliasCondition}

Schema = dict[str, Any]


@dataclass(frozen=True)
class Field:
    """One row of a field table; `path` has dots between names and `[]` behind a list."""

    path: str
    type: str
    default: str
    description: str

    def row(self) -> str:
        """The row in Markdown."""
        return "| " + " | ".join((f"`{self.path}`", self.type, self.default, _cell(self.description))) + " |\n"


def fields(schema: Schema, path: str = "") -> Iterator[Field]:
    """Every field below `schema`, depth first, in the order of the types."""
    required = schema.get("required", [])
    for name, child in schema.get("properties", {}).items():
        items = child.get("items") or {}
        here = f"{path}{name}{'[]' if items else ''}"
        yield Field(here, _type(child), _default(child, name in required), _own_words(child))
        yield from fields(child, f"{here}.")
        yield from fields(items, f"{here}.")


def _type(schema: Schema) -> str:
    """What may stand in the field: `integer 1..64`, `LlamaCpp, VLLM`, `list of string`."""
    choices = schema.get("enum")
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    if "items" in schema:
        items = schema["items"]
        return f"list of {_type(items)}" if "enum" in items else f"list of {items.get('type', 'any')}s"
    if "additionalProperties" in schema:
        return "map"
    if schema.get("x-kubernetes-int-or-string"):
        return "integer or string"
    low, high = schema.get("minimum"), schema.get("maximum")
    span = f" {low}..{high}" if low is not None and high is not None else f" from {low}" if low is not None else ""
    kind = "time" if schema.get("format") == "date-time" else schema.get("type", "any")
    return f"{kind}{span}"


def _default(schema: Schema, required: bool) -> str:
    if required:
        return "required"
    value = schema.get("default")
    if value is None or isinstance(value, dict):  # an object's default is the sum of its fields'
        return ""
    return f"`{_plain(value)}`"


def _own_words(schema: Schema) -> str:
    """The description without the default and range that the CRD appends: the table has columns for them."""
    text: str = schema.get("description", "")
    text = text.removesuffix(f" From {schema.get('minimum')} to {schema.get('maximum')}.")
    return text.removesuffix(f" Default: {_plain(schema.get('default'))}.")


def _plain(value: Any) -> str:
    return json.dumps(value).replace('"', "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").strip()


def _table(schema: Schema) -> str:
    head = "| Field | Type | Default | Meaning |\n|---|---|---|---|\n"
    return head + "".join(field.row() for field in fields(schema))


def _rules(schema: Schema) -> Iterator[str]:
    """The messages of all CEL rules below `schema`, each once, in order."""
    found = dict.fromkeys(_messages(schema))
    yield from found


def _messages(schema: Schema) -> Iterator[str]:
    yield from (rule["message"] for rule in schema.get("x-kubernetes-validations", []))
    inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for child in inner:
        if isinstance(child, dict):
            yield from _messages(child)


def kind_page(kind: Kind) -> str:
    """The reference page of one kind."""
    version = crd(kind)["spec"]["versions"][0]
    schema = version["schema"]["openAPIV3Schema"]
    spec, status = schema["properties"]["spec"], schema["properties"]["status"]
    parts = [
        HEADER + f"# {kind.name}\n",
        f"{schema['description']}\n",
        f"`apiVersion: {API_VERSION}`, `kind: {kind.name}`; for kubectl `{kind.plural}` or `{kind.short}`.\n",
        f"## spec\n\n{spec['description']}\n\n{_table(spec)}",
        "## What the API server refuses\n\nBeside wrong types, unknown values and ranges, with these words:\n\n"
        + "".join(f"- {message}\n" for message in _rules(schema)),
        f"## status\n\n{status['description']}\n\n{_table(status)}",
        _words(kind),
        _columns(kind),
    ]
    return "\n".join(parts)


def _words(kind: Kind) -> str:
    text = "Conditions: " + ", ".join(f"`{condition}`" for condition in CONDITIONS[kind.name]) + "."
    if kind.name in PHASES:
        text += " Phases: " + ", ".join(f"`{phase}`" for phase in PHASES[kind.name]) + "."
    return text + " Reasons: [reasons](reasons.md).\n"


def _columns(kind: Kind) -> str:
    rows = "".join(
        f"| {column.name.upper()}{' (wide)' if column.wide else ''} | `{column.path}` |\n" for column in kind.columns
    )
    text = f"## Columns of kubectl get {kind.plural}\n\n| Column | Comes from |\n|---|---|\n{rows}"
    if kind.selectable:
        chosen = ", ".join(f"`{path.removeprefix('.')}`" for path in kind.selectable)
        text += f"\n`--field-selector` takes {chosen}.\n"
    return text


def reasons_page() -> str:
    """Every reason: those that wait for a person first, because these are the ones that people look up."""
    waiting = [reason for reason in Reason if reason in PERSON]
    other = [reason for reason in Reason if reason not in PERSON]
    return (
        HEADER
        + "# Reasons\n\nEvery condition has a reason, one word of this closed list, and a message with the details. "
        "What to do step by step: [troubleshooting](../how-to/troubleshooting.md).\n\n"
        "## Waiting for a person\n\nA Model that one of these stops is `Blocked`, with `Stalled=True`; it goes on by "
        "itself once the cause is gone.\n\n" + _reasons(waiting) + "\n## All others\n\n" + _reasons(other)
    )


def _reasons(reasons: list[Reason]) -> str:
    rows = "".join(f"| `{reason}` | {_cell(REASON_HELP[reason])} |\n" for reason in reasons)
    return f"| Reason | What it means |\n|---|---|\n{rows}"


def capabilities_page() -> str:
    """Every capability, and every kind of evidence."""
    able = "".join(f"| `{one}` | {_cell(CAPABILITY_HELP[one])} |\n" for one in Capability)
    told = "".join(f"| `{one}` | {_cell(EVIDENCE_HELP[one])} |\n" for one in Evidence)
    return (
        HEADER + "# Capabilities\n\nWhat a Model can do for applications: `status.capabilities`, `spec.capabilities`, "
        "and `spec.requires.capabilities` of a ModelAlias. [How Moorage knows](../concepts/capabilities.md).\n\n"
        f"| Capability | What it means |\n|---|---|\n{able}\n"
        f"| Evidence | What it rests on |\n|---|---|\n{told}"
    )


def downloads_page() -> str:
    """How `moorage download` ends: exit codes and reasons."""
    rows = "".join(
        f"| {facts.exit_code} | `{reason}` | {_cell(facts.meaning)} | {_cell(facts.remedy)} |\n"
        for reason, facts in CATALOG.items()
    )
    return (
        HEADER + "# How a download ends\n\n`moorage download` prints its result as one line of JSON, writes it as the "
        "pod's termination message, and ends with one of these codes. Codes 10 to 29 wait for a person; from 30 on "
        "time may mend it, and the operator tries again. [How downloads work](../concepts/downloads.md) says what is "
        "tried before.\n\n"
        f"| Code | Reason | Meaning | Remedy |\n|---|---|---|---|\n{rows}"
    )


def commands_page() -> str:
    """The help of every command for people, as it prints."""
    return (
        HEADER
        + "# Commands\n\n`moorage COMMAND` and `kubectl moorage COMMAND` are the same: kubectl finds the program "
        "`kubectl-moorage` on the PATH. They act with your own rights, through your kubeconfig; results go to stdout, "
        "progress and errors to stderr. What they write, you asked for: the operator itself never writes "
        "a spec. The processes have pages of their own: [gateway](gateway.md), [bench](bench.md), "
        "[download](downloads.md).\n\n" + "\n".join(_help(name) for name in FOR_PEOPLE)
    )


def arguments_page() -> str:
    """What the engines' own arguments do to the estimate."""
    return (
        HEADER
        + "# Arguments and memory\n\nWhat a person's own arguments (`spec.args`, and the same by `spec.env`) do to "
        "[the memory estimate](../concepts/memory.md). `*` stands for any letters. `followed`: the estimate takes the "
        "value. `Bounded` and `Guess`: it cannot, `status.memory.confidence` is no better than that, and "
        "`status.memory.reasons` says why; with a Guess the margin is 10 %. `none`: it changes nothing that is "
        "counted. `spec.accelerator.memoryPerGPUOverride` has the last word. What fields set is refused in arguments: "
        "[Model](models.md#what-the-api-server-refuses).\n\n"
        f"## llama.cpp\n\n{_arguments(LLAMA_CPP)}\n## vLLM\n\n{_arguments(VLLM)}"
    )


def _arguments(table: tuple[MemoryArg, ...]) -> str:
    rows = [
        (" ".join(f"`{name}`" for name in arg.names), f"`{arg.env}`" if arg.env else "", arg.effect, _cell(arg.note))
        for arg in table
    ]
    head = "| Argument | Variable | Estimate | Why |\n|---|---|---|---|\n"
    return head + "".join(f"| {' | '.join(row)} |\n" for row in rows)


@dataclass(frozen=True)
class Family:
    """A metric: its name as queries have it, its type, labels and meaning, and the process that counts it."""

    process: str
    name: str
    type: str
    labels: tuple[str, ...]
    text: str

    def row(self) -> str:
        """The row in Markdown."""
        labels = ", ".join(f"`{label}`" for label in self.labels)
        return f"| `{self.name}` | {self.type} | {labels} | {self.text} |\n"


def families() -> list[Family]:
    """Every metric of Moorage's own."""
    counted = Stats()
    proxy = Proxy(Settings(), counted, Demand())
    collectors: list[tuple[str, Collector]] = [
        ("operator", NowCollector(lambda: Now(0, 0, {}, ()))),
        ("gateway", GatewayCollector(counted, proxy.fleet, proxy.health, lambda: 0)),
        ("agent", AgentCollector(lambda: GpuReport("", 0))),
    ]
    own = {name: collector for name, collector in REGISTRY._names_to_collectors.items() if name.startswith("moorage_")}
    collectors += [("operator", collector) for collector in dict.fromkeys(own.values())]
    return sorted((_family(p, m, c) for p, c in collectors for m in c.collect()), key=lambda f: (f.process, f.name))


def _family(process: str, metric: Any, collector: Any) -> Family:
    labels = getattr(metric, "_labelnames", None) or getattr(collector, "_labelnames", ())
    name = metric.name + ("_total" if metric.type == "counter" else "")
    return Family(process, name, metric.type, tuple(labels), metric.documentation)


def metrics_page() -> str:
    """Every metric, process by process."""
    text = HEADER + (
        "# Metrics\n\nIn Prometheus' text format on `/metrics`: of the operator on port 8080, of the gateway on its "
        "admin port 8001, of the agent on 9445. What to do with them: [monitoring](../how-to/monitoring.md). A "
        "histogram has `_bucket`, `_sum` and `_count`.\n"
    )
    for process in ("operator", "gateway", "agent"):
        rows = "".join(family.row() for family in families() if family.process == process)
        text += f"\n## {process.capitalize()}\n\n| Metric | Type | Labels | Meaning |\n|---|---|---|---|\n{rows}"
    return text


def _help(name: str) -> str:
    command: click.Command = moorage
    context = click.Context(moorage, info_name="moorage", terminal_width=110, max_content_width=110)
    for word in name.split():
        assert isinstance(command, click.Group)
        found = command.get_command(context, word)
        assert found is not None
        command = found
        context = click.Context(command, info_name=word, parent=context, help_option_names=["-h", "--help"])
    with context:
        return f"## moorage {name}\n\n```\n{command.get_help(context)}\n```\n"


def pages() -> dict[str, str]:
    """File name in docs/reference -> text of every generated page."""
    made = {f"{kind.plural}.md": kind_page(kind) for kind in KINDS}
    made |= {"reasons.md": reasons_page(), "capabilities.md": capabilities_page(), "arguments.md": arguments_page()}
    made["metrics.md"] = metrics_page()
    return made | {"downloads.md": downloads_page(), "commands.md": commands_page()}


def main() -> None:
    """Write what changed and say so."""
    for name, text in pages().items():
        path = REFERENCE / name
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"docs: wrote docs/reference/{name}")


if __name__ == "__main__":
    main()
