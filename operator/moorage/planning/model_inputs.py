"""What a Model's servers were made for, and what of that is another thing now: the only reason to start them anew.

The Deployment keeps a note of it, a short digest of each thing, in `moorage.dev/inputs`. What a person said and what
the files are counts. What this version of Moorage makes of them does not: neither the memory that it computes, nor the
template that it renders, nor fields and defaults that the version which made the servers did not know. So an upgrade
starts nothing anew, and a rollout can say what it is for.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from moorage import names
from moorage.api.model import ModelSpec
from moorage.planning import model_capabilities, moving
from moorage.planning.model_engine import engine_of, image_of, own_deployment, restart_of
from moorage.planning.model_pass import ModelPass
from moorage.planning.types import Manifest

SHAPELESS = {
    *("replicas", "benchmark", "description", "tags", "purpose", "request", "rollout", "update_policy"),
    *("storage", "source", "scaling", "preemption", "served_names", "allowed_namespaces", "capabilities"),
}
"""Fields of a spec that do not shape the pod, or do so by what is found for them (source, capabilities)."""

FOUND = {"pooled": "capabilities", "mainFile": "source", "projector": "source"}
"""What Moorage finds in the files, and what a person said of it: found otherwise it counts where that changed too."""

UNKNOWN = "everything (the Deployment does not say what they were made for)"
_DIGITS = 8
_SPEC = "spec."
_FIELDS = frozenset(field.alias or name for name, field in ModelSpec.model_fields.items())
_TOLD = {
    "gpus": "GPUs",
    "room": "memory that earlier starts lacked",
    "restartAt": names.RESTART_AT,
    "moved": "the node",
}


def identity(step: ModelPass) -> str:
    """Hash of all that shapes the pod. Another one proves nothing yet: other versions of Moorage hash otherwise."""
    spec = step.model.spec.model_dump(mode="json", exclude=SHAPELESS, exclude_none=True, exclude_defaults=True)
    found = {key: value for key, value in _beside(step).items() if value and key not in FOUND.values()}
    return names.digest([spec, found])


def note(step: ModelPass) -> str:
    """What servers made now are made for, as it is kept on their Deployment."""
    return json.dumps(_digests(step), sort_keys=True, separators=(",", ":"))


def changes(step: ModelPass) -> tuple[str, ...]:
    """What is another thing than the servers of the live Deployment were made for, in words; () where nothing is."""
    live = step.seen.deployment or {}
    if live.get("inputsHash") == identity(step):
        return ()
    if (made_for := _noted(live)) is None:
        return (UNKNOWN,)
    spec = step.model.spec.model_dump(mode="json", by_alias=True, exclude=SHAPELESS, exclude_defaults=True)
    said = {f"{_SPEC}{path}" for path, _ in _flat(spec)}
    return tuple(_TOLD.get(key, key.removeprefix(_SPEC)) for key in _differing(made_for, step, said))


def _noted(live: Manifest) -> dict[str, str] | None:
    """The note on a Deployment; None where there is none that anybody of us wrote."""
    try:
        found = json.loads(live.get("inputs") or "null")
    except ValueError:
        return None
    whole = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    return found if whole else None


def stands(step: ModelPass) -> bool:
    """Whether the servers that there are were made for what is wanted now, whatever GPUs they should get today."""
    return own_deployment(step) is not None and set(changes(step)) <= {_TOLD["gpus"]}


def _differing(before: Mapping[str, str], step: ModelPass, said: set[str]) -> Iterator[str]:
    """The keys that differ and count. `said`: those of the spec that have another value than their default."""
    now = _digests(step)
    for key in sorted({*before, *now}):
        if before.get(key, "") == now.get(key, ""):
            continue
        if key.startswith(_SPEC):
            field = key.removeprefix(_SPEC).partition(".")[0]
            counts = key in said if key not in before else field in _FIELDS
        elif key in FOUND:
            counts = before.get(FOUND[key]) != now.get(FOUND[key])
        else:  # what was learned of memory and is forgotten again is no reason
            counts = key not in FOUND.values() and (key != "room" or key in now)
        if counts:
            yield key


def _digests(step: ModelPass) -> dict[str, str]:
    spec = step.model.spec.model_dump(mode="json", by_alias=True, exclude=SHAPELESS, exclude_none=True)
    values = {f"{_SPEC}{path}": value for path, value in _flat(spec)}
    values |= {key: value for key, value in _beside(step).items() if value}
    return {key: names.digest(value, _DIGITS) for key, value in values.items()}


def _beside(step: ModelPass) -> dict[str, Any]:
    """What shapes the pod beside fields of the spec; empty is as good as absent."""
    source, placed = step.source, step.status.placement
    gpus: list[object] = [placed.vendor, placed.count] if placed else []
    if placed and engine_of(step).fills_gpu:
        gpus.append(placed.gpu_memory_mib)
    return {
        "source": [source.inputs_hash, *_named_download(step)],
        "claim": source.claim_name,
        "path": source.path,
        "revision": source.resolved_revision,
        "mainFile": source.main_file,
        "projector": source.projector_file,
        "capabilities": sorted(step.model.spec.capabilities),
        "pooled": model_capabilities.pooling(step),
        "gpus": gpus,
        "image": image_of(step),
        "restartAt": restart_of(step),
        "room": room_of(step),
        "moved": moving.moved(step),
    }


def _named_download(step: ModelPass) -> list[object]:
    """What a person says in the ModelDownload that the spec names; one that Moorage makes says what the spec does."""
    raw = step.seen.download
    if not step.model.spec.source.download_ref or raw is None:
        return []
    noted = raw["metadata"].get("annotations") or {}
    return [raw["spec"].get("source"), noted.get(names.REFRESH_AT, ""), noted.get(names.VERIFY_AT, "")]


def room_of(step: ModelPass) -> str:
    """The memory that one GPU has to have by what was learned; a pod is made anew when it rises."""
    learned = step.status.memory.learned if step.status.memory else None
    return f"{learned.least_gpu_mib}Mi" if learned and learned.least_gpu_mib else ""


def _flat(part: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted path, value) of each leaf that says something."""
    for key, value in part.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        elif value is not None and value != []:
            yield f"{path}{key}", value
