"""Smoke test."""

from .cluster import Cluster


def run(cluster: Cluster, say) -> None: ...
