"""What the operator has been told of this process, and what it has not. No I/O.

The numbers themselves stay where they are counted (`stats`, `demand`, `fleet`); this makes reports of them, and only of
names whose numbers differ from those in the last report that was answered.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping

from moorage.gateway.demand import Demand
from moorage.gateway.fleet import Fleet
from moorage.gateway.stats import RouteStats, Stats
from moorage.usage import AliasUse, FailedOver, ModelUse, Report

FailedOvers = Mapping[str, Mapping[str, FailedOver]]
"""By alias and Model, as the routing table names them."""


class Ledger:
    """Reports of one process. `namespace` is that of names without one; `gateway` is the pod's name."""

    def __init__(
        self,
        gateway: str,
        namespace: str,
        stats: Stats,
        demand: Demand,
        fleet: Fleet,
        failed_over: Callable[[], FailedOvers] = dict,
    ) -> None:
        self._gateway = gateway
        self._namespace = namespace
        self._instance = uuid.uuid4().hex
        self._stats = stats
        self._demand = demand
        self._fleet = fleet
        self._failed_over = failed_over
        self._models: dict[str, ModelUse] = {}  # as told
        self._aliases: dict[str, AliasUse] = {}
        self._open_models: set[str] = set()  # may differ from what was told
        self._open_aliases: set[str] = set()

    def report(self) -> Report:
        """Every name with news, and the news; say `told` once the operator has answered."""
        self._collect()
        failed_over = self._failed_over()
        models = {name: self._model(name) for name in self._open_models}
        aliases = {name: self._alias(name, failed_over.get(name, {})) for name in self._open_aliases}
        models = {name: use for name, use in models.items() if use != self._models.get(name)}
        aliases = {name: use for name, use in aliases.items() if use != self._aliases.get(name)}
        self._open_models, self._open_aliases = set(models), set(aliases)
        return Report(
            gateway=self._gateway,
            instance=self._instance,
            models={self._full(name): models[name] for name in models},
            aliases={self._full(name): aliases[name] for name in aliases},
        )

    def newly_busy(self) -> bool:
        """Whether a Model has requests of which the operator was told that it has none."""
        known = self._models
        return any(
            pool.in_flight and not ((told := known.get(pool.name)) and told.in_flight)
            for pool in self._fleet.pools.values()
            if pool.endpoints
        )

    def told(self, report: Report) -> None:
        """The operator has `report`."""
        self._models |= {self._short(name): use for name, use in report.models.items()}
        self._aliases |= {self._short(name): use for name, use in report.aliases.items()}

    def start_over(self) -> None:
        """The operator knows nothing any more: the next report holds every name."""
        self._open_models |= self._models.keys()
        self._open_aliases |= self._aliases.keys()
        self._models, self._aliases = {}, {}

    def _collect(self) -> None:
        """Gather the names that may have news: a glance at each, so that 10,000 idle ones cost next to nothing."""
        for (alias, model), route in self._stats.routes.items():
            if route.touched:
                route.touched = False
                self._open_models.add(model)
                if alias:
                    self._open_aliases.add(alias)
        self._open_models.update(name for name, use in self._models.items() if use.in_flight or use.pending)
        self._open_models.update(p.name for p in self._fleet.pools.values() if p.endpoints and p.in_flight)
        self._open_models.update(self._demand.take_touched())
        self._open_aliases.update(self._failed_over())
        self._open_aliases.update(name for name, use in self._aliases.items() if use.failed_over)

    def _model(self, name: str) -> ModelUse:
        wanted = self._demand.wanted(name)
        pool = self._fleet.pools.get(name)
        return ModelUse(
            **_sums(self._stats.by_model.get(name, ())),
            in_flight=pool.in_flight if pool else 0,
            pending=wanted.pending,
            wanted=wanted.requests,
            wanted_at=int(wanted.last),
        )

    def _alias(self, name: str, failed_over: Mapping[str, FailedOver]) -> AliasUse:
        return AliasUse(
            **_sums(self._stats.by_alias.get(name, ())),
            failed_over={self._full(model): facts for model, facts in failed_over.items()},
        )

    def _full(self, name: str) -> str:
        return name if "/" in name else f"{self._namespace}/{name}"

    def _short(self, name: str) -> str:
        return name.removeprefix(f"{self._namespace}/")


def _sums(routes: Iterable[RouteStats]) -> dict[str, int]:
    routes = list(routes)
    return {
        "ok": sum(route.ok for route in routes),
        "error": sum(route.error for route in routes),
        "cancelled": sum(route.cancelled for route in routes),
        "prompt_tokens": sum(route.prompt_tokens for route in routes),
        "completion_tokens": sum(route.completion_tokens for route in routes),
        "milliseconds": int(sum(route.total.total for route in routes) * 1000),
        "last_used": int(max((route.last_used for route in routes), default=0)),
    }
