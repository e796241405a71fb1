"""Which accelerator a Model's pod asks for.

The vendor and count are decided here; which node gives them is kube-scheduler's choice, because the pod asks for the
extended resource and the scheduler's books are the only ones that count everybody's pods.
"""

from collections.abc import Mapping
from dataclasses import dataclass

RESOURCES = {"Nvidia": "nvidia.com/gpu", "AMD": "amd.com/gpu"}


@dataclass(frozen=True)
class Accelerator:
    """The outcome: `vendor` Nvidia, AMD or None; `resource` and `count` as the pod asks for them; `why` in words.

    `fits` False means that no ready node offers what is asked for; then `why` says what to do.
    """

    vendor: str
    resource: str
    count: int
    fits: bool
    why: str


def choose(vendor: str, count: int | None, offered: Mapping[str, int]) -> Accelerator:
    """The accelerator for a spec that says `vendor` (Auto, Nvidia, AMD, None) and `count` GPUs (None: one).

    `offered` is the number of allocatable GPUs by resource name over all ready nodes. Auto takes the vendor that the
    cluster has; it never falls back to the CPU, because a model that is silently a hundred times slower is not served.
    """
    if vendor == "None":
        return Accelerator("None", "", 0, True, "runs on the CPU, as accelerator.vendor None asks")
    wanted = count or 1
    candidates = [vendor] if vendor != "Auto" else list(RESOURCES)
    for name in candidates:
        most = offered.get(RESOURCES[name], 0)
        if most >= wanted:
            return Accelerator(name, RESOURCES[name], wanted, True, f"asks for {wanted} {RESOURCES[name]}")
    resources = " or ".join(RESOURCES[c] for c in candidates)
    have = sum(offered.get(RESOURCES[c], 0) for c in candidates)
    why = f"needs {wanted} {resources}, ready nodes offer {have}; set accelerator.vendor: None to run on the CPU"
    return Accelerator(candidates[0], RESOURCES[candidates[0]], wanted, False, why)
