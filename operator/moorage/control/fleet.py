"""What the installation tells of its GPUs: node pools that an autoscaler can grow, and sizes of products."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from moorage.api.common import duration_seconds, quantity_bytes
from moorage.control.section import Section
from moorage.placement import memory, vendors
from moorage.placement.inventory import NodePool, Taint


class PoolTaint(Section):
    """A taint that every node of a pool bears, as in core/v1."""

    key: str = Field(min_length=1)
    value: str = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class GPUNodePool(Section):
    """What one node of a pool looks like; the size of its GPUs is said by `memory`, or by `product` and the table."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=63)]
    labels: Annotated[dict[str, str], Field(min_length=1)]
    taints: tuple[PoolTaint, ...] = ()
    vendor: Literal["Nvidia", "AMD"] = "Nvidia"
    resource: str = ""
    """Of MIG slices, such as nvidia.com/mig-1g.10gb; empty: whole GPUs of the vendor."""
    driver: str = ""
    """The DRA driver that publishes the GPUs in ResourceSlices, such as gpu.nvidia.com; empty: a device plugin does."""
    product: str = ""
    memory: str = ""
    gpus: int = Field(ge=1, le=64)
    maximum: int = Field(ge=1, le=10_000)

    def shape(self, products: dict[str, str]) -> NodePool:
        """The pool as placement sees it; raises ValueError where nothing says how large its GPUs are."""
        size = self.memory or products.get(self.product)
        if not size:
            raise ValueError(f"node pool {self.name}: give memory, or a product that gpus.products knows")
        if self.driver:
            return self._published(_mib(size, self.name))
        resource = self.resource or vendors.RESOURCES[self.vendor]
        if not vendors.is_gpu(resource):
            raise ValueError(f"node pool {self.name}: {resource} is no resource of GPUs that Moorage knows")
        return NodePool(
            self.name, self.labels, _mib(size, self.name), self.gpus, self.maximum, resource, self._tainted()
        )

    def _published(self, mib: int) -> NodePool:
        """The pool of a DRA driver."""
        if self.driver not in vendors.DRA_DRIVERS:
            known = ", ".join(vendors.DRA_DRIVERS)
            raise ValueError(f"node pool {self.name}: {self.driver} is no DRA driver that Moorage knows ({known})")
        if self.resource:
            raise ValueError(f"node pool {self.name}: give either resource or driver, GPUs are not given out by both")
        return NodePool(self.name, self.labels, mib, self.gpus, self.maximum, self.driver, self._tainted(), dra=True)

    def _tainted(self) -> tuple[Taint, ...]:
        return tuple(Taint(t.key, t.value, t.effect) for t in self.taints)


class GPUs(Section):
    """The cluster's GPUs, as far as its nodes do not tell."""

    products: dict[str, str] = Field(default_factory=dict)
    """Memory of one GPU by the product that a label names, for nodes that tell nothing else."""
    node_pools: tuple[GPUNodePool, ...] = ()
    node_deadline: str = "15m"
    """How long a node of one pool is waited for before the next pool is tried."""

    @model_validator(mode="after")
    def _sensible(self) -> "GPUs":
        duration_seconds(self.node_deadline)
        for product, size in self.products.items():
            _mib(size, f"product {product}")
        names = [pool.name for pool in self.node_pools]
        if len(set(names)) < len(names):
            raise ValueError(f"two node pools have one name: {', '.join(sorted(names))}")
        self.shapes()
        return self

    def shapes(self) -> tuple[NodePool, ...]:
        """The node pools as placement sees them."""
        return tuple(pool.shape(self.products) for pool in self.node_pools)


def _mib(size: str, whose: str) -> int:
    try:
        mib = quantity_bytes(size) // memory.MIB
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"{whose}: {error}") from error
    if not memory.LEAST_MIB <= mib <= memory.MOST_MIB:
        raise ValueError(f"{whose}: {size} is no size of a GPU")
    return mib
