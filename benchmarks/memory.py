"""The memory estimate beside llama.cpp's own allocator: a dry run of the pinned build for every model and setting.

No GPU is needed: `llama-fit-params` says what a device would have to hold. What only a real GPU can tell (the CUDA
context, fragmentation) is outside this figure. Writes benchmarks/results/memory.md.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moorage.sizing.gguf import read_gguf_header
from moorage.sizing.gguf_model import model_of
from moorage.sizing.llamacpp import llama_need
from moorage.sizing.need import MemoryNeed
from tests.oracle.llamacpp import Held, LlamaCpp, running
from tests.oracle.test_llamacpp_drift import CASES, FAULTS, FILES
from tests.unit.gguf_bytes import data_bytes

RESULTS = Path(__file__).parent / "results/memory.md"
BUILD = (Path(__file__).parents[1] / "images/llamacpp-cpu/BUILD").read_text().strip()

HEADER = f"""# Memory estimate beside llama.cpp's allocator

`python -m benchmarks.memory`: real headers' shapes in sparse files, llama.cpp build {BUILD}, one device, each in five
settings. "Real" is what `llama-fit-params` would allocate on the device, cut to whole MiB; "ours" is what
`moorage estimate` computes from the header alone. The excess is of weights + cache + compute; the runtime's overhead
and the margin, which a plan adds, are not in it.
"""


@dataclass(frozen=True)
class Row:
    """One model in one setting."""

    model: str
    case: str
    real: Held
    ours: MemoryNeed

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """(ours, real) of weights, cache and compute, in MiB."""
        need, real = self.ours, self.real
        return (need.weights_mib, real.weights), (need.kv_mib, real.cache), (need.compute_mib, real.compute)

    @property
    def excess(self) -> float:
        """How much more than the truth the estimate is, as a share."""
        return sum(ours for ours, _ in self.parts) / sum(self.real) - 1


def measured(llamacpp: LlamaCpp) -> Iterator[Row]:
    """Every model in every setting, less those that this build cannot do at all."""
    for name, shape in FILES.items():
        path = llamacpp.model(name, shape.header, data_bytes(shape.tensors))
        model = model_of(read_gguf_header(shape.header))
        for case, (arguments, settings) in CASES.items():
            if (name, case) not in FAULTS:
                yield Row(name, case, llamacpp.dry_run(path, *arguments)["RPC0"], llama_need(model, settings))
        print(name, flush=True)


def summary(rows: list[Row]) -> str:
    """The goals of the estimate, and what was reached."""
    excess = [row.excess for row in rows]
    weights, cache, compute = ([ours - real for ours, real in (row.parts[part] for row in rows)] for part in range(3))
    shares = [100 * (ours / real - 1) for ours, real in (row.parts[2] for row in rows)]
    return f"""
| {len(rows)} runs, {len({row.model for row in rows})} models | goal | seen |
|---|---|---|
| weights, ours - real | exact (real is cut to whole MiB: 0 or 1) | {min(weights)} to {max(weights)} MiB |
| KV and recurrent state, ours - real | within 1 MiB | {min(cache)} to {max(cache)} MiB |
| compute buffer, ours - real | never under | {min(compute)} to {max(compute)} MiB, median {statistics.median(shares):.1f} % over |
| total, over the truth | median at most 2 % | median {100 * statistics.median(excess):.2f} %, from {100 * min(excess):.2f} % to {100 * max(excess):.2f} % |
"""


def table(rows: list[Row]) -> str:
    """One line per model: the first setting's parts, and the worst excess over all settings."""
    lines = [
        "",
        "| model | weights ours/real | cache, 8k | compute, 8k | total over, 8k | worst of the settings |",
        "|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row.model for row in rows):
        mine = [row for row in rows if row.model == name]
        first, worst = mine[0], max(mine, key=lambda row: row.excess)
        cells = " | ".join(f"{ours:,}/{real:,}" for ours, real in first.parts)
        lines.append(f"| {name} | {cells} | {100 * first.excess:.2f} % | {100 * worst.excess:.2f} % ({worst.case}) |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run everything (half a minute on two cores) and write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with running(devices=1) as llamacpp:
        rows = list(measured(llamacpp))
    RESULTS.write_text(HEADER + summary(rows) + table(rows))
    print(RESULTS.read_text())


if __name__ == "__main__":
    main()
