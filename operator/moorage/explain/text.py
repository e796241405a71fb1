"""An explanation as text: the decision first, then what it rests on."""

from collections.abc import Iterable, Sequence
from typing import Any

from moorage.placement.text import gib, plural
from moorage.planning.text import capabilities

Told = dict[str, Any]

PARTS = (
    ("weights", "weightsMiB"),
    ("KV cache", "kvMiB"),
    ("compute buffers", "computeMiB"),
    ("GPU runtime", "overheadMiB"),
    ("margin", "marginMiB"),
)
MARKS = {"Chosen": "->", "Fits": "  "}
MOST_NODES = 40


def told(found: Told) -> str:
    """The whole text."""
    lines = [f"Model {found['namespace']}/{found['model']}: {found['phase']}"]
    waits, decision = found.get("waitsFor"), found.get("decision")
    if waits:
        lines.append(f"  waits at {waits['step']} ({waits['reason']}): {waits['message']}")
    if found["runsOn"]:
        lines.append(f"  runs on {', '.join(found['runsOn'])}")
    if found.get("capabilities"):
        lines.append(f"  can {capabilities(found['capabilities'])}")
    if decision:
        lines += ["", f"Decision with the cluster as it is: {decision['reason']}", f"  {decision['message']}"]
    for part in (_memory, _candidates, _nodes, _pools, _remedies):
        lines += part(found)
    if found.get("unseen"):
        lines += ["", f"Not seen, because you may not list it: {', '.join(found['unseen'])}"]
    return "\n".join(lines)


def _memory(found: Told) -> list[str]:
    memory = found.get("memory") or {}
    if not memory.get("estimatedMiB"):
        host = memory.get("hostMiB")
        return ["", f"Memory of a server: {gib(host)} of host memory"] if host else []
    rows = [(name, f"{memory.get(key, 0):,}") for name, key in PARTS]
    rows.append(("total", f"{memory['estimatedMiB']:,}"))
    each = memory.get("perGpuMiB") or []
    sure = f"{memory.get('confidence', 'Guess')}; host memory {gib(memory.get('hostMiB', 0))}"
    split = f"; on each GPU {', '.join(f'{mib:,}' for mib in each)}" if len(each) > 1 else ""
    return ["", f"GPU memory of a server in MiB ({sure}{split})", *_table(rows, right=(1,))]


def _candidates(found: Told) -> list[str]:
    rows = [
        (plural(c["gpus"], "GPU"), gib(c["perGpuMiB"]) if c["perGpuMiB"] else "?", c["reason"])
        for c in found.get("candidates") or ()
    ]
    return ["", "Ways to serve it, tried in this order (need on each GPU)", *_table(rows)] if rows else []


def _nodes(found: Told) -> list[str]:
    nodes = found.get("nodes")
    if nodes is None:
        return []
    order = {"Chosen": 0, "Fits": 1}
    ranked = sorted(nodes, key=lambda n: (order.get(n["verdict"], 2), not n["gpus"], n["node"]))
    rows = [("", "NODE", "GPUS", "FREE", "VERDICT", "WHY NOT")]
    for node in ranked[:MOST_NODES]:
        free = ", ".join(str(g["free"]) for g in node["gpus"])
        kinds = ", ".join(_kind(g) for g in node["gpus"])
        mark = MARKS.get(node["verdict"], "  ")
        rows.append((mark, node["node"], kinds or "-", free or "-", node["verdict"], node["why"]))
    more = [f"  and {plural(len(nodes) - MOST_NODES, 'more node')}; -o json has all"] if len(nodes) > MOST_NODES else []
    return ["", "Nodes", *(_table(rows, indent="") if nodes else ["  there is none"]), *more]


def _kind(gpus: Told) -> str:
    size = f"{(gpus['memoryMiB'] + 512) // 1024}Gi" if gpus["memoryMiB"] else "?"
    return f"{gpus['count']} x {size} {gpus['vendor']}"


def _pools(found: Told) -> list[str]:
    rows = [
        (
            p["name"],
            f"{p['gpus']} x {(p['memoryMiB'] + 512) // 1024}Gi",
            f"{p['room']} of {p['maximum']} may still come",
        )
        for p in found.get("nodePools") or ()
    ]
    return ["", "Node pools that can grow", *_table(rows)] if rows else []


def _remedies(found: Told) -> list[str]:
    rows = [(r["change"], r["effect"]) for r in found.get("remedies") or ()]
    return ["", "What would help, each tried", *_table(rows)] if rows else []


def _table(rows: Iterable[Sequence[str]], *, right: tuple[int, ...] = (), indent: str = "  ") -> list[str]:
    found = [list(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]

    def line(row: list[str]) -> str:
        cells = [cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in _numbered(row, widths)]
        return (indent + "  ".join(cells)).rstrip()

    return [line(row) for row in found]


def _numbered(row: list[str], widths: list[int]) -> Iterable[tuple[int, tuple[str, int]]]:
    return enumerate(zip(row, widths, strict=True))
