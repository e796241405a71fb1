"""Models and aliases as `/v1/models` lists them: OpenAI's fields, and those by which others say what a model can do.

`context_length` and `architecture` are OpenRouter's words, the latter llama-server's too, `max_model_len` is vLLM's.
Clients of OpenAI's API take no offence at fields that they do not know.
"""

from typing import Any

from moorage.api.capabilities import Capability
from moorage.gateway.rewrite import Kind
from moorage.gateway.routes import Card, Route

_TAKEN = ((Capability.VISION, "image"), (Capability.AUDIO, "audio"))
_GIVEN = ((Capability.COMPLETION, "text"), (Capability.EMBEDDINGS, "embeddings"), (Capability.RERANK, "rerank"))

_ASKED_BY = {Capability.EMBEDDINGS: Kind.EMBEDDING, Capability.RERANK: Kind.RERANK}


def entry(name: str, route: Route) -> dict[str, Any]:
    """One name with what can be counted on behind it: of an alias, what all of its Models offer.

    Where these are for different kinds of requests, it is what all offer that get the requests of that kind.
    """
    cards = _cards(route)
    found: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "moorage"}
    if context := min((card.context_length for card in cards), default=0):
        found |= {"context_length": context, "max_model_len": context}
    if cards and (offered := _offered(route, cards)) is not None:
        taken = ["text", *(word for capability, word in _TAKEN if capability in offered)]
        given = [word for capability, word in _GIVEN if capability in offered] or ["text"]
        modalities = {"input_modalities": taken, "output_modalities": given}
        found |= {"capabilities": offered, "architecture": modalities}
    if not route.alias:
        card = cards[0]
        found |= {"description": card.description} if card.description else {}
        found |= {"tags": list(card.tags)} if card.tags else {}
    return found


def _cards(route: Route) -> list[Card]:
    return [target.model.card for target in (*route.targets, *route.fallbacks)]


def _offered(route: Route, cards: list[Card]) -> list[str] | None:
    """What all of `cards` offer that get requests for it; None where that is not known yet."""
    if any(card.capabilities is None for card in cards):
        return None
    asked = {kind: _cards(route.serving(kind)) for kind in Kind}
    return [
        one.value
        for one in Capability
        if all(one in (card.capabilities or ()) for card in asked[_ASKED_BY.get(one, Kind.CHAT)])
    ]
