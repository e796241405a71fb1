"""What the cluster has: nodes, their GPUs, who holds them, and why some cannot be used. Pure and immutable."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from moorage import names
from moorage.placement import memory, slices, vendors

Plain = Mapping[str, Any]
Book = tuple[str, int]
"""Names one ledger of a node: the extended resource and 0, or the DRA driver and the MiB of its devices."""
Held = Mapping[tuple[str, Book], Mapping[str, int]]
"""GPUs that pods and claims hold: by node and ledger, then by holder."""

UNKNOWN_MEMORY = "UnknownGPUMemory"
SHARED_GPU = "SharedGPU"
NO_DEVICE_PLUGIN = "NoDevicePlugin"

UNREACHABLE = "node.kubernetes.io/unreachable"
STARTING = (
    "node.kubernetes.io/not-ready",
    "node.cloudprovider.kubernetes.io/uninitialized",
    "karpenter.sh/unregistered",
    "startup-taint.cluster-autoscaler.kubernetes.io/",
    "ignore-taint.cluster-autoscaler.kubernetes.io/",
    "node.cilium.io/agent-not-ready",
)
"""Taints, or how they begin, that a new node bears until it has started, by what sets them: the node controller, cloud
providers, Karpenter, the cluster autoscaler (two spellings), Cilium."""

_TERMINAL = ("Succeeded", "Failed")


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a node, as in core/v1."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class Pool:
    """The GPUs of one kind on one node, given out by one ledger.

    `resource` is the extended resource, or with `dra` the DRA driver. `total_mib` is the nominal memory of one GPU and
    `usable_mib` what may be planned of it; `told_by` is the label (key, value) that said so, if one did, `label_mib`
    the number in the memory label, whoever decided.
    `sliced`: MIG, of which a process can use one only. `problem` (and `detail` in words) says why it cannot be used;
    empty where it can. `vendor` is Nvidia or AMD, `size_class` the nominal memory in whole GiB, `book` the ledger.
    """

    node: str
    resource: str
    dra: bool = False
    total_mib: int = 0
    usable_mib: int = 0
    label_mib: int | None = None
    count: int = 0
    product: str = ""
    told_by: tuple[str, str] | None = None
    sliced: bool = False
    problem: str = ""
    detail: str = ""
    vendor: str = field(init=False)
    size_class: int = field(init=False)
    book: Book = field(init=False)

    def __post_init__(self) -> None:
        # Asked for by every decision of every pool, so worked out once.
        object.__setattr__(self, "vendor", vendors.of_resource(self.resource))
        object.__setattr__(self, "size_class", memory.size_class(self.total_mib))
        object.__setattr__(self, "book", (self.resource, self.total_mib if self.dra else 0))


@dataclass(frozen=True, slots=True)
class NodeState:
    """A node as placement sees it; `both_books` where DRA and a device plugin offer the same GPUs."""

    name: str
    ready: bool
    unschedulable: bool
    taints: tuple[Taint, ...]
    labels: Mapping[str, str]
    pools: tuple[Pool, ...]
    both_books: bool = False

    @property
    def offers(self) -> bool:
        """Whether it has GPUs to give, or had before it failed."""
        return any(pool.count for pool in self.pools)

    @property
    def starting(self) -> bool:
        """Whether it is about to take pods: new, or restarting; not one that has fallen silent."""
        keys = [taint.key for taint in self.taints]
        return (not self.ready and UNREACHABLE not in keys) or any(key.startswith(STARTING) for key in keys)


@dataclass(frozen=True)
class NodePool:
    """Nodes that an autoscaler can add: what one looks like, and how many there may be.

    `labels` must be those that the autoscaler knows a new node will have: the pods are bound to them. A node that bears
    them and of whose GPUs nothing else says how large they are is taken for one of these. With `dra` the `resource` is
    the driver that publishes its GPUs.
    """

    name: str
    labels: Mapping[str, str]
    gpu_memory_mib: int
    gpus: int
    maximum: int
    resource: str = vendors.NVIDIA_GPU
    taints: tuple[Taint, ...] = ()
    dra: bool = False

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with `labels` is one of the pool's."""
        return self.labels.items() <= labels.items()


@dataclass(frozen=True)
class Reservation:
    """GPUs promised to one replica of `owner` that is not bound yet, on the node that was planned for it."""

    owner: str
    node: str
    book: Book
    gpus: int


@dataclass(frozen=True)
class Inventory:
    """All nodes by name, the pools of nodes that may grow, the ledger of each DRA device, and who holds what.

    `ending` is the part of `held` that pods hold which are being deleted.
    """

    nodes: tuple[NodeState, ...]
    node_pools: tuple[NodePool, ...] = ()
    devices: Mapping[slices.DeviceKey, tuple[str, Book]] = field(default_factory=dict)
    held: Held = field(default_factory=dict)
    ending: Held = field(default_factory=dict)

    @cached_property
    def has_gpus(self) -> bool:
        """Whether any node has a GPU, usable or not."""
        return any(node.pools for node in self.nodes)

    @cached_property
    def by_name(self) -> Mapping[str, NodeState]:
        """The nodes by name."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def room(self) -> Mapping[str, int]:
        """How many nodes each node pool may still get: its maximum less those of its nodes that are in service.

        One that has joined is on its way until it is ready and offers GPUs, which it may do in either order. Were it
        counted as come, the Model that it was added for would at once turn to another pool.
        """
        come = [n for n in self.nodes if n.offers and not n.starting]
        return {s.name: max(s.maximum - sum(s.holds(n.labels) for n in come), 0) for s in self.node_pools}

    def with_pods(self, pods: Iterable[Plain], claims: Iterable[Plain] = ()) -> "Inventory":
        """The same nodes with other pods and claims: the nodes' texts are not read again."""
        there = tuple(pods)
        ending = _held((pod for pod in there if pod.get("deleting")), (), self.devices)
        return replace(self, held=_held(there, claims, self.devices), ending=ending)

    def without(self, holders: Collection[str]) -> "Inventory":
        """The same with what `holders` hold free: as if they slept."""
        kept = {where: {h: n for h, n in who.items() if h not in holders} for where, who in self.held.items()}
        return replace(self, held=kept)

    def without_ending(self, staying: Collection[str]) -> "Inventory":
        """The same when the Models' pods that are being deleted are gone, but for those of the holders `staying`.

        Other pods may take for ever to end.
        """
        kept = {}
        for where, who in self.held.items():
            ending = self.ending.get(where, _NOBODY)
            left = {h: n if h in staying or h.startswith("pod ") else n - ending.get(h, 0) for h, n in who.items()}
            kept[where] = {h: n for h, n in left.items() if n}
        return replace(self, held=kept)

    def holders(self, pool: Pool) -> Mapping[str, int]:
        """Who holds GPUs of a pool, and how many."""
        return self.held.get((pool.node, pool.book), _NOBODY)

    def used(self, pool: Pool) -> int:
        """GPUs of a pool that are held; more than it has where some of them are no longer offered."""
        return sum(self.holders(pool).values())


_NOBODY: Mapping[str, int] = {}


def build(
    nodes: Iterable[Plain],
    pods: Iterable[Plain] = (),
    resource_slices: Iterable[Plain] = (),
    *,
    claims: Iterable[Plain] = (),
    products: Mapping[str, Any] | None = None,
    reports: Mapping[str, Sequence[int]] | None = None,
    node_pools: Iterable[NodePool] = (),
) -> Inventory:
    """The inventory from plain projections of the cluster's objects.

    nodes     {name, ready, unschedulable, taints: [{key, value, effect}], labels, annotations, gpus: allocatable GPUs
              by resource (a resource with 0 included: its device plugin is dead)}
    pods      {namespace, name, node, phase, deleting, gpus: by resource, labels} of every pod that asks for GPUs
    resource_slices   `slices.devices_of` says which fields
    claims    {namespace, name, holder, devices: [{driver, pool, device}]} of allocated ResourceClaims
    products  GPU product -> memory of one GPU (MiB, or a quantity), for nodes without a memory label
    reports   node -> MiB of each GPU as NVML counts them, where the agent runs
    """
    devices = slices.devices_of(resource_slices)
    shapes = tuple(sorted(node_pools, key=lambda p: p.name))
    known = _Known(products or {}, reports or {}, shapes)
    read = [_node(node, devices.get(str(node["name"]), ()), known) for node in nodes]
    bare = Inventory(
        tuple(sorted(read, key=lambda n: n.name)),
        shapes,
        {d.key: (n.name, _book_of(n, d)) for n in read for d in devices.get(n.name, ())},
    )
    return bare.with_pods(pods, claims)


def holder_of(pod: Plain) -> str:
    """Who holds a pod's GPUs, as messages say it: `namespace/model` for our own pods, else `pod namespace/name`."""
    namespace, model = pod.get("namespace", ""), (pod.get("labels") or {}).get(names.MODEL_LABEL)
    return f"{namespace}/{model}" if model else f"pod {namespace}/{pod.get('name', '')}"


def _book_of(node: NodeState, device: slices.Device) -> Book:
    """The ledger that counts a device: where the same cards have two, that of the device plugin."""
    return (vendors.RESOURCES[vendors.of_resource(device.driver)], 0) if node.both_books else device.book


# -- nodes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Known:
    """What is known of GPUs besides what their nodes say: as in `build`."""

    products: Mapping[str, Any]
    reports: Mapping[str, Sequence[int]]
    shapes: tuple[NodePool, ...]

    def memory(self, node: str, resource: str, labels: Mapping[str, str], annotation: str | None) -> memory.GPUMemory:
        """Memory of one GPU of `resource` on a node; what its pool says comes last."""
        found = memory.of_node(resource, labels, annotation, self.products, self.reports.get(node, ()))
        if found.untold:
            for shape in self.shapes:
                if shape.resource == resource and shape.holds(labels):
                    return memory.GPUMemory(shape.gpu_memory_mib, memory.usable_mib(shape.gpu_memory_mib))
        return found


def _node(node: Plain, devices: Sequence[slices.Device], known: _Known) -> NodeState:
    labels = {str(k): str(v) for k, v in (node.get("labels") or {}).items()}
    annotation = (node.get("annotations") or {}).get(memory.ANNOTATION)
    offered = {r: _count(n) for r, n in (node.get("gpus") or {}).items() if vendors.is_gpu(r)}
    plugin = any(offered.values())
    # Two ledgers for the same cards would sell each of them twice, so where both are there only the device plugin's
    # is used, and what DRA claims hold counts as taken in it.
    name = str(node["name"])
    if devices and not plugin:
        pools = _device_pools(name, devices)
    else:
        pools = [
            _plugin_pool(name, r, n, labels, known.memory(name, r, labels, annotation))
            for r, n in sorted(offered.items())
        ]
    return NodeState(
        name=name,
        ready=bool(node.get("ready")),
        unschedulable=bool(node.get("unschedulable")),
        taints=tuple(
            Taint(t.get("key", ""), t.get("value") or "", t.get("effect", "")) for t in node.get("taints") or ()
        ),
        labels=labels,
        pools=tuple(pools) or _unplugged(name, labels),
        both_books=plugin and bool(devices),
    )


def _count(value: Any) -> int:
    """An allocatable count; nonsense is none."""
    number = vendors.integer(str(value))
    return number if number is not None and number > 0 else 0


def _plugin_pool(node: str, resource: str, count: int, labels: Mapping[str, str], found: memory.GPUMemory) -> Pool:
    shared = vendors.sharing(labels) if resource == vendors.NVIDIA_GPU else ""
    problem, detail = (UNKNOWN_MEMORY, found.why) if found.why else ("", "")
    if not count:
        problem, detail = (
            NO_DEVICE_PLUGIN,
            f"offers no {resource}: its device plugin is down, or its GPUs are unhealthy",
        )
    elif shared:
        problem, detail = SHARED_GPU, f"its GPUs are shared ({shared}), so no Model has one's memory to itself"
    return Pool(
        node=node,
        resource=resource,
        total_mib=found.total_mib,
        usable_mib=found.usable_mib,
        label_mib=found.label_mib,
        count=count,
        product=next((labels[key] for key in vendors.PRODUCT_LABELS if key in labels), ""),
        told_by=found.told_by,
        sliced=vendors.is_sliced(resource, labels),
        problem=problem,
        detail=detail,
    )


def _unplugged(node: str, labels: Mapping[str, str]) -> tuple[Pool, ...]:
    """A node that labels say has GPUs while nothing offers them: its device plugin is missing."""
    for resource in (vendors.NVIDIA_GPU, vendors.AMD_GPU):
        if vendors.memory_label(resource) in labels:
            detail = f"its labels tell of GPUs, but nothing offers {resource}: the device plugin does not run there"
            return (Pool(node, resource, problem=NO_DEVICE_PLUGIN, detail=detail),)
    return ()


def _device_pools(node: str, devices: Sequence[slices.Device]) -> list[Pool]:
    kinds: dict[tuple[str, int], list[slices.Device]] = defaultdict(list)
    for device in devices:
        kinds[device.driver, device.total_mib].append(device)
    return [
        Pool(
            node=node,
            resource=driver,
            dra=True,
            total_mib=total,
            usable_mib=memory.usable_mib(total),
            count=len(found),
            product=found[0].product if len({d.product for d in found}) == 1 else "",
            problem="" if total else UNKNOWN_MEMORY,
            detail="" if total else f"driver {driver} publishes no memory for its devices",
        )
        for (driver, total), found in sorted(kinds.items())
    ]


# -- who holds what ------------------------------------------------------------------------------------------------


def _held(pods: Iterable[Plain], claims: Iterable[Plain], devices: Mapping[slices.DeviceKey, tuple[str, Book]]) -> Held:
    held: dict[tuple[str, Book], dict[str, int]] = {}

    def add(node: str, book: Book, holder: str, gpus: int) -> None:
        holders = held.setdefault((node, book), {})
        holders[holder] = holders.get(holder, 0) + gpus

    for pod in pods:
        if pod.get("node") and pod.get("phase") not in _TERMINAL:
            for resource, gpus in (pod.get("gpus") or {}).items():
                if vendors.is_gpu(resource) and gpus > 0:
                    add(pod["node"], (resource, 0), holder_of(pod), gpus)
    for claim in claims:
        holder = claim.get("holder") or f"claim {claim.get('namespace', '')}/{claim.get('name', '')}"
        for device in claim.get("devices") or ():
            known = devices.get((device.get("driver", ""), device.get("pool", ""), device.get("device", "")))
            if known is not None:
                add(*known, holder, 1)
    return held
