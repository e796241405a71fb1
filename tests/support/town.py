"""Several Models on shared GPUs: planners and the operator's own books, and a cluster that does what it is told.

town = Town(gpu_node("g1", 24564))
town.add("a"); town.run()             # placed, started, Ready
town.later(600).add("b"); town.run()  # somebody has to sleep
"""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from moorage import names
from moorage.control.ledger import Ledger
from moorage.control.neighbours import Neighbours, owner_of
from moorage.control.store import MODEL, Key, Store
from moorage.control.usage import UsageBook
from moorage.placement.inventory import Inventory
from moorage.planning.model import plan_model
from moorage.planning.types import Answer, Plan, WarmUp
from moorage.usage import Report
from tests.support.bed import ready_status
from tests.support.world import DEFAULTS, World, model

GPU = "nvidia.com/gpu"


class Town:
    """Models by name, in one namespace. `operator_restarts` forgets what only the operator's memory holds."""

    def __init__(self, *nodes: dict[str, Any], limit: int | None = None, gateways: bool = True) -> None:
        self.nodes, self.limit, self.gateways = list(nodes), limit, gateways
        self.worlds: dict[str, World] = {}
        self.now = World(model()).now
        self.starting: set[str] = set()  # Models whose pods do not get ready
        self.stopping: set[str] = set()  # Models whose pods take their time to end
        self._version = 0
        self._uses: dict[str, dict[str, int]] = {}
        self.operator_restarts()

    def operator_restarts(self) -> "Town":
        self.store = Store()
        self.book = UsageBook(clock=self._seconds, listen=0)
        self.ledger = Ledger()
        self.neighbours = Neighbours(self.store, self.book)
        for name, world in self.worlds.items():
            self._put(name, world)
        for key in self.store.loaded():
            self.ledger.load(key, True)
        self.report()
        return self

    # -- what people and gateways do -----------------------------------------------------------------------------------

    def add(self, name: str, need: str = "10Gi", **spec: Any) -> World:
        """A Model whose files are there."""
        spec = {
            "accelerator": {"vendor": "Nvidia", "memoryPerGPUOverride": need},
            "benchmark": {"enabled": False},
        } | spec
        world = self.worlds[name] = World(model(name, source={"downloadRef": {"name": "files"}}, **spec), DEFAULTS)
        meta = {"name": "files", "namespace": "ns", "uid": "d", "generation": 1, "resourceVersion": "1"}
        source = {"http": {"url": "https://example.com/tiny.gguf", "sha256": "a" * 64}}
        made = {"apiVersion": names.API_VERSION, "kind": "ModelDownload", "metadata": meta, "spec": {"source": source}}
        world.download = {**made, "status": ready_status(made, "files")}
        self._put(name, world)
        return world

    def remove(self, name: str) -> None:
        self.ledger.forget(self._key(name))
        self.store.drop(self._key(name), self._version + 1)
        del self.worlds[name]

    def use(self, name: str, **use: int) -> "Town":
        """What the gateways say of a Model; times are seconds ago."""
        for moment in ("last_used", "wanted_at"):
            if moment in use:
                use[moment] = int(self.now.timestamp()) - use[moment]
        self._uses[name] = use
        return self.report()

    def report(self) -> "Town":
        if self.gateways:
            uses = {f"ns/{name}": use for name, use in self._uses.items()}
            for _ in range(2):
                self.book.take(Report.model_validate({"gateway": "g", "instance": "instance-1", "models": uses}))
        return self

    def later(self, seconds: float) -> "Town":
        """Time passes; gateways go on reporting, and the operator looks at everybody."""
        self.now += timedelta(seconds=seconds)
        return self.report()

    # -- passes ------------------------------------------------------------------------------------------

    def run(self) -> "Town":
        """Pass after pass until nothing changes; nobody's GPU is ever given twice on the way."""
        quiet = 0  # rounds: an order of the last Model of a round is carried out in the next
        for _ in range(60):
            before = sum(w.writes for w in self.worlds.values())
            for name in list(self.worlds):
                self.look(name)
                self.check()
            moved = self._cluster_acts()
            quiet = quiet + 1 if not moved and before == sum(w.writes for w in self.worlds.values()) else 0
            if quiet == 2:
                return self
        raise AssertionError(f"the Models never come to rest: {self.phases()}")

    def look(self, name: str) -> Plan:
        """One pass over one Model, as the runner does it."""
        world, key = self.worlds[name], self._key(name)
        world.now, world.nodes = self.now, self.nodes
        world.strangers = [p for other, w in self.worlds.items() if other != name for p in w.pods.values()]
        loaded = self.ledger.loaded("ns") if self.limit is not None else ()
        whom = self.ledger.ordered_for(key)
        seen = replace(
            world.observe(),
            reservations=self.ledger.all(),
            usage=self.book.of(key),
            evicted_for=owner_of(whom) if whom else "",
            loaded_limit=self.limit,
            loaded=self.ledger.is_loaded(key),
            loaded_others=tuple(sorted(n for n in loaded if n != key.name)),
        )
        plan = plan_model(seen)
        if plan.look_around:
            around = self.neighbours.around(key, seen.inventory or Inventory(()), seen.loaded_others)
            plan = plan_model(replace(seen, around=around))
        self.ledger.hold(key, plan.reserve)
        self.ledger.load(key, plan.loaded)
        self.ledger.order(key, [self._key(owner.partition("/")[2]) for owner in plan.evict])
        world._carry_out(plan)
        world._write_status(world.model, plan)
        self._put(name, world)
        return plan

    def _cluster_acts(self) -> bool:
        """Pods follow their Deployments; they go where the GPUs were reserved."""
        moved = False
        for name, world in self.worlds.items():
            live = world.children.get(("Deployment", name))
            if live is None:
                continue
            if live["wanted"] == 0 and world.pods and name not in self.stopping:
                world.pods, moved = {}, True
                live.update(ready=0, replicas=0, updated=0)
            elif live["wanted"] and not world.pods:
                node = next(iter(self.ledger.nodes(self._key(name))), "")
                ready = name not in self.starting
                world.pod_is(f"{name}-1", namespace="ns", node=node, gpus={GPU: 1}, ready=ready)
                moved = True
            ask = next((a for a in world.asked if isinstance(a, WarmUp)), None)
            if ask and (world.warmed is None or world.warmed.inputs != ask.template):
                world.warmed, moved = Answer(ask.template, {"firstTokenMilliseconds": 1}), True
        return moved

    def check(self) -> None:
        """No node has more pods than GPUs."""
        for node in self.nodes:
            held = [p["name"] for w in self.worlds.values() for p in w.pods.values() if p["node"] == node["name"]]
            assert len(held) <= node["gpus"][GPU], f"{node['name']} has {held}"

    # -- what a person sees ------------------------------------------------------------------------------------------

    def phases(self) -> dict[str, str]:
        return {name: world.phase for name, world in self.worlds.items()}

    def _seconds(self) -> float:
        return self.now.timestamp()

    def _key(self, name: str) -> Key:
        return Key(MODEL, "ns", name)

    def _put(self, name: str, world: World) -> None:
        self._version += 1
        world.model["metadata"]["resourceVersion"] = str(self._version)
        self.store.put(self._key(name), world.model)
