"""What a Model can do for applications, and how that is known: of its spec, its files, its server and its name.

A list in the spec replaces all that is found out. Otherwise the engine says what it makes of what the files show, the
running server corrects that, and what only the name hints at is added as the guess that it is.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from moorage.api.capabilities import Capability, Evidence
from moorage.engines.base import Asked, Reported
from moorage.engines.choice import choose

Found = Mapping[Capability, Evidence]

_HINTS: Final = (
    (re.compile(r"rerank", re.IGNORECASE), Capability.RERANK),
    (re.compile(r"(?:^|[-_./])(?:\w*embed(?:ding)?s?|e5|gte|bge)(?:[-_.]|$)", re.IGNORECASE), Capability.EMBEDDINGS),
    (re.compile(r"(?:^|[-_./])(?:instruct|chat|it)(?:[-_.]|$)", re.IGNORECASE), Capability.CHAT),
    (re.compile(r"(?:^|[-_./])(?:r1|qwq|thinking|reasoning)(?:[-_.]|$)", re.IGNORECASE), Capability.REASONING),
)
"""Of vision a name says nothing: the projector that it takes may not be there."""

POOLED: Final = (Capability.EMBEDDINGS, Capability.RERANK)
_GENERATED: Final = (Capability.CHAT, Capability.COMPLETION)


@dataclass(frozen=True)
class Known:
    """What there is to conclude from.

    `format` of the files (empty: not known yet), `shows` the capabilities that they show, `names` of the repository and
    the main file, `reported` what the running server says of itself.
    """

    format: str = ""
    shows: frozenset[Capability] = frozenset()
    names: tuple[str, ...] = ()
    reported: Reported = field(default_factory=dict)


def known_of(words: Iterable[str]) -> frozenset[Capability]:
    """The capabilities among `words`; those of another version of Moorage mean nothing here."""
    wanted = set(words)
    return frozenset(one for one in Capability if one.value in wanted)


def capabilities(asked: Asked, known: Known) -> Found:
    """Each capability with its evidence, in the order of the list; empty where nothing is known yet."""
    spec = asked.spec
    if spec.capabilities:
        return {one: Evidence.DECLARED for one in Capability if one in spec.capabilities}
    if not known.format:
        return {}
    found = choose(spec.engine.value, known.format).capabilities(asked, known.shows, known.reported)
    for one in _hinted(known.names):
        found.setdefault(one, Evidence.NAME)
    return {one: found[one] for one in Capability if one in found}


def sure(found: Found) -> frozenset[Capability]:
    """Those that are more than a guess."""
    return frozenset(one for one, evidence in found.items() if evidence != Evidence.NAME)


def pooled(found: frozenset[Capability]) -> Capability | None:
    """EMBEDDINGS or RERANK where a server is to do that alone, and generates nothing; else None."""
    if found.intersection(_GENERATED):
        return None
    return next((one for one in POOLED if one in found), None)


@lru_cache(maxsize=4096)
def _hinted(names: tuple[str, ...]) -> list[Capability]:
    hinted = [one for pattern, one in _HINTS if any(pattern.search(name) for name in names)]
    # Names of rerankers contain those of their families, which make embeddings too: bge-reranker.
    return [one for one in hinted if not (one == Capability.EMBEDDINGS and Capability.RERANK in hinted)]
