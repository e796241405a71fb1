"""GPUs that DRA drivers publish: ResourceSlices (resource.k8s.io/v1) as plain dicts -> devices by node."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moorage.api.common import quantity_bytes
from moorage.placement import memory, vendors

PARTS = ("name", "attributes", "capacity", "taints")
"""What is read of a device."""

DeviceKey = tuple[str, str, str]
"""Driver, pool and device name: what an allocated claim names."""


@dataclass(frozen=True, slots=True)
class Device:
    """One whole GPU; `total_mib` 0 where the driver publishes no sensible memory."""

    driver: str
    pool: str
    name: str
    total_mib: int
    product: str

    @property
    def key(self) -> DeviceKey:
        """As a claim's allocation names it."""
        return (self.driver, self.pool, self.name)

    @property
    def book(self) -> tuple[str, int]:
        """The ledger of equal devices of one node."""
        return (self.driver, self.total_mib)


def devices_of(resource_slices: Iterable[Mapping[str, Any]]) -> dict[str, Sequence[Device]]:
    """Whole, untainted GPUs by node.

    A slice is {node, driver, pool, generation, devices}, with the devices as in the object's spec. Of a pool only the
    highest generation counts: a driver that republishes leaves old slices for a moment. Devices that say they are
    something else than a `gpu` (a MIG device, a vGPU) are left out.
    """
    newest: dict[tuple[str, str, str], int] = {}
    known = [s for s in resource_slices if s.get("node") and s.get("driver") in vendors.DRA_DRIVERS]
    for part in known:
        where = (part["node"], part["driver"], part.get("pool", ""))
        newest[where] = max(newest.get(where, 0), int(part.get("generation") or 0))
    found: dict[str, dict[DeviceKey, Device]] = defaultdict(dict)
    for part in known:
        where = (part["node"], part["driver"], part.get("pool", ""))
        if int(part.get("generation") or 0) < newest[where]:
            continue
        for raw in part.get("devices") or ():
            device = _device(part["driver"], part.get("pool", ""), raw)
            if device is not None:
                found[part["node"]][device.key] = device
    return {node: tuple(devices[k] for k in sorted(devices)) for node, devices in found.items()}


def _device(driver: str, pool: str, raw: Mapping[str, Any]) -> Device | None:
    attributes = _unqualified(raw.get("attributes"), driver)
    if (attributes.get("type") or {}).get("string", "gpu") != "gpu":
        return None
    if any(t.get("effect") in ("NoSchedule", "NoExecute") for t in raw.get("taints") or ()):
        return None
    capacity = _unqualified(raw.get("capacity"), driver)
    total = _mib((capacity.get("memory") or {}).get("value"))
    product = (attributes.get("productName") or {}).get("string", "")
    return Device(driver, pool, str(raw.get("name", "")), total, str(product))


def _unqualified(values: Any, driver: str) -> dict[str, Any]:
    """Attributes by name: a driver may write its own domain before each (`gpu.nvidia.com/memory`) or leave it out."""
    return {str(k).removeprefix(f"{driver}/"): v for k, v in (values or {}).items() if isinstance(v, Mapping)}


def _mib(value: Any) -> int:
    try:
        size = quantity_bytes(str(value)) // memory.MIB
    except (ValueError, ArithmeticError):
        return 0
    return size if memory.LEAST_MIB <= size <= memory.MOST_MIB else 0
