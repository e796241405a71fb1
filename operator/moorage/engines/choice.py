"""Which engine serves a Model: the one its spec names, else the one for the format of its files."""

from typing import Final

from moorage.engines.base import Engine
from moorage.engines.llamacpp import LlamaCppEngine
from moorage.engines.vllm import VllmEngine

AUTO: Final = "Auto"
ENGINES: Final[tuple[Engine, ...]] = (LlamaCppEngine(), VllmEngine())
BY_NAME: Final = {engine.name: engine for engine in ENGINES}
BY_FORMAT: Final = {engine.format: engine for engine in ENGINES}


def choose(wanted: str, found: str | None) -> Engine:
    """The engine for `spec.engine` and files of the format `found` (None: not known yet).

    There is always one, so that a Model can be talked about; `mismatch` says whether it can be served.
    """
    return BY_NAME.get(wanted) or BY_FORMAT.get(found or "") or ENGINES[0]


def understood(found: str | None, header: str | None, projector: str | None) -> bool:
    """Whether this version can compute with what was stored of the headers of files of the format `found`."""
    return choose(AUTO, found).understands(header or "", projector or "")


def mismatch(wanted: str, found: str | None) -> str:
    """Why the engine that `spec.engine` names cannot serve files of the format `found`; empty: it can."""
    engine = BY_FORMAT.get(found or "")
    if engine is None:
        serves = " and ".join(f"{e.files} with {e.title}" for e in ENGINES)
        return f"the source holds {found or 'neither GGUF nor safetensors'} files; Moorage serves {serves}"
    if wanted not in (AUTO, engine.name):
        return f"the source holds {engine.files}, which {engine.title} serves; set spec.engine to Auto or {engine.name}"
    return ""


def default_sequences(name: str) -> int:
    """Requests that a server of the engine `name` takes at once where the spec says nothing; empty: not chosen yet."""
    return choose(name, None).default_sequences
