"""The gateway's counts for Prometheus, made from `stats` when somebody asks."""

from collections.abc import Iterable
from itertools import accumulate

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from moorage.gateway.fleet import Fleet
from moorage.gateway.health import Health
from moorage.gateway.stats import Histogram, Outcome, RouteStats, Stats

_BY = ("alias", "model")


class GatewayCollector(Collector):
    """Labels are bare names; the alias of a Model called by its own name is empty."""

    def __init__(self, stats: Stats, fleet: Fleet, health: Health) -> None:
        self._stats = stats
        self._fleet = fleet
        self._health = health

    def collect(self) -> Iterable[Metric]:
        """Everything that was counted."""
        routes = list(self._stats.routes.items())
        yield from _counters(routes)
        yield _histogram(
            "moorage_gateway_first_byte_seconds",
            "From a request's last byte to the first of its answer.",
            [(labels, route.first_byte) for labels, route in routes],
        )
        yield _histogram(
            "moorage_gateway_request_seconds",
            "From a request's last byte to the last of its answer.",
            [(labels, route.total) for labels, route in routes],
        )
        yield from self._others()

    def _others(self) -> Iterable[Metric]:
        refused = CounterMetricFamily("moorage_gateway_refused", "Answers that no engine gave.", labels=["code"])
        for code, count in sorted(self._stats.refused.items()):
            refused.add_metric([code], count)
        yield refused
        yield CounterMetricFamily("moorage_gateway_retries", "Requests sent again.", value=self._stats.retries)
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


def _counters(routes: list[tuple[tuple[str, str], RouteStats]]) -> Iterable[Metric]:
    requests = CounterMetricFamily("moorage_gateway_requests", "Requests by how they ended.", labels=[*_BY, "outcome"])
    tokens = CounterMetricFamily("moorage_gateway_tokens", "Tokens as engines counted them.", labels=[*_BY, "kind"])
    used = GaugeMetricFamily("moorage_gateway_last_used_timestamp_seconds", "When the last one ended.", labels=_BY)
    for labels, route in routes:
        for outcome in Outcome:
            requests.add_metric([*labels, outcome], getattr(route, outcome))
        tokens.add_metric([*labels, "prompt"], route.prompt_tokens)
        tokens.add_metric([*labels, "completion"], route.completion_tokens)
        used.add_metric(labels, route.last_used)
    return requests, tokens, used


def _histogram(name: str, text: str, rows: list[tuple[tuple[str, str], Histogram]]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=_BY)
    for labels, histogram in rows:
        bounds = [*(str(bound) for bound in histogram.bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(histogram.counts), strict=True)), histogram.total)
    return family


class Page:
    """The metrics page of one gateway."""

    def __init__(self, stats: Stats, fleet: Fleet, health: Health) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(GatewayCollector(stats, fleet, health))
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def render(self) -> bytes:
        """All metrics in the text format."""
        return generate_latest(self._registry)
