"""A real Kubernetes on one machine: built from Go modules, started in seconds, gone without a trace.

`python -m e2e.cluster --help` is the command line, `Cluster` the same for tests. Only the standard library is used,
so that the kit runs before any virtual environment exists.
"""

from .cluster import Cluster
from .errors import ClusterError

__all__ = ["Cluster", "ClusterError"]
