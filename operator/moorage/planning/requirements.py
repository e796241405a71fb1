"""What an alias requires of its Models, and what one of them falls short of. The gateway routes by the same words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from moorage.api.alias import Requires
from moorage.api.capabilities import Capability, Evidence
from moorage.planning.model_engine import context_of


@dataclass(frozen=True)
class Offer:
    """What a Model offers: tokens of one request (0: not known yet), and capabilities (None: not known yet).

    `declared`: they are a person's list. `guessed` are those that only the name hints at.
    """

    context_length: int = 0
    capabilities: frozenset[str] | None = None
    declared: bool = False
    guessed: frozenset[str] = field(default_factory=frozenset)


def offer(
    asked_context: int | None,
    trained_context: int | None,
    declared: Iterable[str],
    found: Mapping[str, str],
    *,
    files_known: bool,
) -> Offer:
    """What a Model offers by its spec, which counts at once, and by its status (`found`: capability -> evidence)."""
    context = context_of(asked_context, trained_context) if asked_context or trained_context else 0
    if listed := frozenset(str(one) for one in declared):
        return Offer(context, listed, declared=True)
    if not files_known:
        return Offer(context)
    guessed = frozenset(name for name, evidence in found.items() if evidence == Evidence.NAME)
    return Offer(context, frozenset(found) - guessed, guessed=guessed)


def missing(requires: Requires | None, offered: Offer) -> tuple[str, ...]:
    """What falls short: `contextLength` and names of capabilities; what is not known yet does not."""
    if requires is None:
        return ()
    short = 0 < offered.context_length < (requires.context_length or 0)
    known = offered.capabilities
    lacking = () if known is None else tuple(str(one) for one in requires.capabilities if one not in known)
    return (("contextLength",) if short else ()) + lacking


def shortfall(requires: Requires | None, offered: Offer, shown: str) -> str:
    """The same of the Model that is called `shown`, in sentences that say what to do; empty where it suffices."""
    short = missing(requires, offered)
    if requires is None or not short:
        return ""
    lacking = [name for name in short if name != "contextLength"]
    parts = []
    if len(lacking) < len(short):
        wanted = requires.context_length
        parts.append(f"{shown} takes {offered.context_length} tokens, spec.requires.contextLength is {wanted}")
    if lacking:
        parts.append(f"{shown} lacks {', '.join(lacking)}: {_why(offered, lacking, shown)}")
    return "; ".join(parts)


def _why(offered: Offer, lacking: list[str], shown: str) -> str:
    has = ", ".join(one for one in Capability if one in (offered.capabilities or ())) or "nothing"
    if offered.declared:
        return f"its spec.capabilities says {has}"
    told = f"its files and server show {has}"
    if set(lacking) <= offered.guessed:
        told += ", and only its name hints at more"
    return f"{told}; if it can do that, list all it can do in spec.capabilities of Model {shown}"
