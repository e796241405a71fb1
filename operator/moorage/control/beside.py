"""What works beside the queue and remembers between passes; observed by one side of a pass, asked by the other."""

from dataclasses import dataclass

from moorage.control.agents import AgentReader
from moorage.control.credentials import CredentialPoller
from moorage.control.gate import DownloadGate
from moorage.control.ledger import Ledger
from moorage.control.neighbours import Neighbours
from moorage.control.progress import ProgressPoller
from moorage.control.sidetasks import SideTasks
from moorage.control.usage import UsageBook


@dataclass(frozen=True)
class Beside:
    """All of it. Who observes must know every part: one that is new fails to type-check until everybody brings it."""

    resolving: SideTasks
    warming: SideTasks
    progress: ProgressPoller
    credentials: CredentialPoller
    gate: DownloadGate
    ledger: Ledger
    usage: UsageBook
    neighbours: Neighbours
    agents: AgentReader
