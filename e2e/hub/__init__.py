"""A Hugging Face-compatible hub for tests and demos: standard library only, with a CDN port, tokens and faults.

    with HubServer(root) as hub:
        hub.rule(kind="cut", path=r"model\\.gguf", after=25_000_000, count=1)
        ...                     # talk to hub.url
        assert hub.requests(path="model.gguf", method="GET")

Run as a process or pod: `python -m e2e.hub --root DIR --port 8090 --cdn-port 8091 --host 0.0.0.0`.
"""

from e2e.hub.faults import Rule
from e2e.hub.server import HubServer
from e2e.hub.store import Store

__all__ = ["HubServer", "Rule", "Store"]
