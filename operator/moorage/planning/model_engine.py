"""The engine of a Model, and what it is asked: the spec with what is known of the files."""

import json
from dataclasses import dataclass

from moorage import names
from moorage.engines.base import DEFAULT_CONTEXT, Asked, Engine, Serving
from moorage.engines.choice import choose
from moorage.errors import InvalidSpec
from moorage.placement import vendors
from moorage.planning import model_capabilities
from moorage.planning.model_pass import ModelPass
from moorage.planning.types import Manifest


@dataclass(frozen=True)
class Changes:
    """Other settings than the spec's, for finding out what would fit; 0 and empty: as the spec says.

    `quantization` is one of those that the status says the repository has.
    """

    context_length: int = 0
    max_sequences: int = 0
    kv_cache_type: str = ""
    quantization: str = ""


AS_WRITTEN = Changes()


def engine_of(step: ModelPass) -> Engine:
    """The engine that serves the Model's files, or would serve them as far as their format is known."""
    return choose(step.model.spec.engine.value, step.source.format)


def asked_of(step: ModelPass) -> Asked:
    """What the engine is asked."""
    source = step.source
    return Asked(
        spec=step.model.spec,
        header="" if step.unread else source.header or "",
        projector="" if step.unread else source.projector or "",
        trained_context=source.context_length or 0,
        size_bytes=source.size_bytes or 0,
        tool_parser=source.tool_call_parser or "",
        remote_code_allowed=step.seen.defaults.remote_code_allowed,
        image=image_of(step),
        pooled=model_capabilities.pooling(step),
    )


def image_of(step: ModelPass) -> str:
    """The image that servers made now run: one that runs stays until a person or the update policy says otherwise."""
    spec, live = step.model.spec, own_deployment(step)
    if spec.image or live is None:
        return newest_image(step)
    asked = live["imageFrom"] == "spec" or spec.update_policy == "Rolling" or restart_of(step) != live["restartAt"]
    return newest_image(step) if asked or not _serves_same(step) else str(live["image"])


def newest_image(step: ModelPass) -> str:
    """The image that the spec names, else the chart's."""
    return step.model.spec.image or step.seen.defaults.engine_image(engine_of(step).name, vendor_of(step))


def image_for(step: ModelPass) -> str:
    """What the image of servers made now is for, as it is kept on their Deployment: engine/vendor."""
    return f"{engine_of(step).name}/{vendor_of(step)}"


def vendor_of(step: ModelPass) -> str:
    """Whose accelerators the servers use, or will as far as that is known: Nvidia, AMD, None.

    As long as no GPU is chosen they are those that the Deployment was made for, so that who waits keeps its image.
    """
    asked, placed = step.model.spec.accelerator.vendor, step.status.placement
    if asked != "Auto":
        return asked
    known = (placed.vendor if placed else "", _noted(step)[1], _vendor_of_template(step))
    return next((vendor for vendor in known if vendor in vendors.ORDER), vendors.NVIDIA)


def own_deployment(step: ModelPass) -> Manifest | None:
    """The Deployment that there is, if it is the Model's."""
    live = step.seen.deployment
    return live if live is not None and live.get("owner") == step.model.metadata.uid else None


def _serves_same(step: ModelPass) -> bool:
    """Whether the image that runs is of the engine and for the accelerators that are wanted now.

    The Deployment says what it is for: the status may already tell of a new version that the mirror does not show yet.
    """
    engine, vendor = _noted(step) if any(_noted(step)) else _supposed(step)
    return engine in ("", engine_of(step).name) and vendor in ("", vendor_of(step))


def _noted(step: ModelPass) -> tuple[str, str]:
    """Engine and vendor that the image of the live Deployment is for; empty where an older version did not say."""
    live = own_deployment(step)
    engine, _, vendor = (live["imageFor"] if live else "").partition("/")
    return engine, vendor


def _supposed(step: ModelPass) -> tuple[str, str]:
    """The same where it is not noted: the GPUs that the template asks for, else what the last pass said of what runs.

    On the CPU a GPU of the template is one that a person asks for in `spec.resources`.
    """
    engine, ran = step.status.engine, step.ran[0]
    template = _vendor_of_template(step) if vendor_of(step) in vendors.ORDER else ""
    return (engine.name if engine else "") or "", template or (ran.vendor if ran else "") or ""


def _vendor_of_template(step: ModelPass) -> str:
    """Whose GPUs the pods of the live Deployment ask a device plugin for; empty where they ask none."""
    live = own_deployment(step)
    gpus = json.loads(live["placement"]).get("gpus", ()) if live and live.get("placement") else ()
    return next((vendors.AMD if gpu == vendors.AMD_GPU else vendors.NVIDIA for gpu in gpus), "")


def restart_of(step: ModelPass) -> str:
    """The newest request to restart; one that was taken back asks for nothing, so the one carried out stays."""
    asked, live = step.model.metadata.annotations.get(names.RESTART_AT, ""), step.seen.deployment
    return asked or (live.get("restartAt", "") if live else "")


def smaller_quantizations(step: ModelPass) -> tuple[str, ...]:
    """Smaller quantizations of the model that its repository has, largest first; () where the spec names no such."""
    known = step.source.quantizations
    if not step.model.spec.source.hugging_face or not known:
        return ()
    least = engine_of(step).requantized(asked_of(step), known[0].size_bytes, known[-1].size_bytes, 1)
    return tuple(q.name for q in known[1:]) if least else ()


def requantized(step: ModelPass, quantization: str, gpus: int) -> Asked:
    """What the engine is asked of the same model in another of the repository's quantizations; empty: as it is."""
    asked, known = asked_of(step), step.source.quantizations
    other = next((q for q in known if quantization and q.name == quantization), None)
    made = engine_of(step).requantized(asked, known[0].size_bytes, other.size_bytes, gpus) if other else None
    return made or asked


def check(step: ModelPass) -> None:
    """Refuse settings that the engine would not take. Raises InvalidSpec with what to change."""
    if why := engine_of(step).refusal(asked_of(step)):
        raise InvalidSpec("InvalidSpec", why)


def context_length(step: ModelPass) -> int:
    """Tokens of one request: as asked for, else what the model was trained for, 8192 at most."""
    return context_of(step.model.spec.context_length, step.source.context_length)


def context_of(asked: int | None, trained: int | None) -> int:
    """The same of what `spec.contextLength` says and what the files say."""
    return asked or min(trained or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def sequences(step: ModelPass) -> int:
    """Requests served at once."""
    return step.model.spec.max_sequences or engine_of(step).default_sequences


def serving_of(step: ModelPass, changes: Changes = AS_WRITTEN) -> Serving:
    """How requests are served, with `changes`."""
    return Serving(
        changes.context_length or context_length(step),
        changes.max_sequences or sequences(step),
        changes.kv_cache_type or step.model.spec.kv_cache_type.value,
    )
