"""What works beside the queue, idle, for tests of what uses it."""

from typing import Any

from moorage.control.agents import AgentReader
from moorage.control.beside import Beside
from moorage.control.credentials import CredentialPoller
from moorage.control.gate import DownloadGate
from moorage.control.ledger import Ledger
from moorage.control.neighbours import Neighbours
from moorage.control.progress import ProgressPoller
from moorage.control.sidetasks import SideTasks
from moorage.control.store import Store
from moorage.control.usage import UsageBook


def idle(store: Store, **parts: Any) -> Beside:
    """Everything without a connection; `parts` replace what a test looks at."""
    nothing: Any = None
    usage = parts.get("usage") or UsageBook()
    made: dict[str, Any] = {
        "resolving": SideTasks(nothing, nothing),
        "warming": SideTasks(nothing, nothing),
        "progress": ProgressPoller(nothing),
        "credentials": CredentialPoller(nothing, nothing),
        "gate": DownloadGate(1, list, nothing),
        "ledger": Ledger(),
        "usage": usage,
        "neighbours": Neighbours(store, usage),
        "agents": AgentReader(list, nothing),
    }
    return Beside(**(made | parts))
