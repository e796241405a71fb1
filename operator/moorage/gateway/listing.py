"""Models and aliases as `/v1/models` lists them: OpenAI's fields, and those by which others say what a model can do.

`context_length` and `architecture` are OpenRouter's words, the latter llama-server's too, `max_model_len` is vLLM's.
Clients of OpenAI's API take no offence at fields that they do not know.
"""

from typing import Any

from moorage.api.capabilities import Capability
from moorage.gateway.routes import Card, Route

_TAKEN = ((Capability.VISION, "image"), (Capability.AUDIO, "audio"))
_GIVEN = ((Capability.COMPLETION, "text"), (Capability.EMBEDDINGS, "embeddings"), (Capability.RERANK, "rerank"))


def entry(name: str, route: Route) -> dict[str, Any]:
    """One name with what can be counted on behind it: of an alias, what all of its Models offer."""
    cards = [target.model.card for target in (*route.targets, *route.fallbacks)]
    found: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "moorage"}
    if context := min((card.context_length for card in cards), default=0):
        found |= {"context_length": context, "max_model_len": context}
    if cards and (offered := _offered(cards)) is not None:
        taken = ["text", *(word for capability, word in _TAKEN if capability in offered)]
        given = [word for capability, word in _GIVEN if capability in offered] or ["text"]
        modalities = {"input_modalities": taken, "output_modalities": given}
        found |= {"capabilities": offered, "architecture": modalities}
    if not route.alias:
        card = cards[0]
        found |= {"description": card.description} if card.description else {}
        found |= {"tags": list(card.tags)} if card.tags else {}
    return found


def _offered(cards: list[Card]) -> list[str] | None:
    """What all of them offer; None where that is not known yet."""
    known = [card.capabilities for card in cards if card.capabilities is not None]
    if len(known) < len(cards):
        return None
    return [one for one in known[0] if all(one in other for other in known)]
