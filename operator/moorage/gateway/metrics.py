"""The gateway's counts for Prometheus, made from `stats` when somebody asks, in pieces: requests go on between them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from moorage.gateway.fleet import Fleet
from moorage.gateway.health import Health
from moorage.gateway.stats import Histogram, Outcome, RouteStats, Stats

_BY = ("alias", "model")
_PIECE = 10  # routes; a thousand take a third of a second, in which no stream would move

Rows = list[tuple[tuple[str, str], RouteStats]]
"""Routes by alias and Model."""


class GatewayCollector(Collector):
    """Labels are bare names; the alias of a Model called by its own name is empty."""

    def __init__(self, stats: Stats, fleet: Fleet, health: Health, connections: Callable[[], int]) -> None:
        self._stats = stats
        self._fleet = fleet
        self._health = health
        self._connections = connections

    def collect(self) -> Iterable[Metric]:
        """Everything that was counted; a family of many routes comes in pieces, one after the other."""
        routes = list(self._stats.routes.items())
        for family in (_requests, _tokens, _last_used, _first_byte, _total):
            for start in range(0, max(len(routes), 1), _PIECE):
                yield family(routes[start : start + _PIECE])
        yield from self._others()

    def _others(self) -> Iterable[Metric]:
        refused = CounterMetricFamily("moorage_gateway_refused", "Answers that no engine gave.", labels=["code"])
        for code, count in sorted(self._stats.refused.items()):
            refused.add_metric([code], count)
        yield refused
        yield CounterMetricFamily("moorage_gateway_retries", "Requests sent again.", value=self._stats.retries)
        yield GaugeMetricFamily("moorage_gateway_connections", "Clients' connections now.", value=self._connections())
        yield GaugeMetricFamily("moorage_gateway_held", "Requests that wait for a Model now.", value=self._fleet.held)
        flight = GaugeMetricFamily("moorage_gateway_in_flight", "Requests at engines now.", labels=["model"])
        for pool in self._fleet.pools.values():
            flight.add_metric([pool.name], pool.in_flight)
        yield flight
        away = GaugeMetricFamily("moorage_gateway_failed_over", "1: the alias goes past this target.", labels=_BY)
        for alias, models in self._health.failed_over().items():
            for model in models:
                away.add_metric([alias, model], 1)
        yield away


def _requests(rows: Rows) -> Metric:
    family = CounterMetricFamily("moorage_gateway_requests", "Requests by how they ended.", labels=[*_BY, "outcome"])
    for labels, route in rows:
        for outcome in Outcome:
            family.add_metric([*labels, outcome], getattr(route, outcome))
    return family


def _tokens(rows: Rows) -> Metric:
    family = CounterMetricFamily("moorage_gateway_tokens", "Tokens as engines counted them.", labels=[*_BY, "kind"])
    for labels, route in rows:
        family.add_metric([*labels, "prompt"], route.prompt_tokens)
        family.add_metric([*labels, "completion"], route.completion_tokens)
    return family


def _last_used(rows: Rows) -> Metric:
    family = GaugeMetricFamily("moorage_gateway_last_used_timestamp_seconds", "When the last one ended.", labels=_BY)
    for labels, route in rows:
        family.add_metric(labels, route.last_used)
    return family


def _first_byte(rows: Rows) -> Metric:
    text = "From a request's last byte to the first of its answer."
    return _histogram("moorage_gateway_first_byte_seconds", text, rows, lambda route: route.first_byte)


def _total(rows: Rows) -> Metric:
    text = "From a request's last byte to the last of its answer."
    return _histogram("moorage_gateway_request_seconds", text, rows, lambda route: route.total)


def _histogram(name: str, text: str, rows: Rows, of: Callable[[RouteStats], Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=_BY)
    for labels, route in rows:
        histogram = of(route)
        bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.total)
    return family


@dataclass(frozen=True)
class _Only:
    """A registry of one family."""

    family: Metric

    def collect(self) -> Iterable[Metric]:
        return (self.family,)


class Page:
    """The metrics page of one gateway; `connections` says how many clients are connected."""

    def __init__(self, stats: Stats, fleet: Fleet, health: Health, connections: Callable[[], int]) -> None:
        self._counted = GatewayCollector(stats, fleet, health, connections)
        self._process = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._process)

    def pieces(self) -> Iterator[bytes]:
        """All metrics in the text format, a millisecond's work at a time."""
        yield generate_latest(self._process)
        before = ""
        for family in self._counted.collect():
            text = generate_latest(_Only(family))  # it asks for `collect` only
            if family.name == before:  # the help of a family stands above its first piece
                text = b"".join(line for line in text.splitlines(keepends=True) if not line.startswith(b"#"))
            before = family.name
            yield text
