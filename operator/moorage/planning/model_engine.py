"""The engine of a Model, and what it is asked: the spec with what is known of the files."""

from dataclasses import dataclass

from moorage.engines.base import DEFAULT_CONTEXT, Asked, Engine, Serving
from moorage.engines.choice import choose
from moorage.errors import InvalidSpec
from moorage.planning import model_capabilities
from moorage.planning.model_pass import ModelPass


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
        header=source.header or "",
        projector=source.projector or "",
        trained_context=source.context_length or 0,
        size_bytes=source.size_bytes or 0,
        tool_parser=source.tool_call_parser or "",
        remote_code_allowed=step.seen.defaults.remote_code_allowed,
        image=_image(step),
        pooled=model_capabilities.pooling(step),
    )


def _image(step: ModelPass) -> str:
    """The image to plan for: the spec's, else the one that runs (an upgrade of the chart waits), else the chart's."""
    spec, runs, name = step.model.spec, step.status.engine, engine_of(step).name
    if spec.image or (runs and runs.image and runs.name == name):
        return spec.image or (runs.image if runs else None) or ""
    placed = step.status.placement.vendor if step.status.placement else None
    asked = "Nvidia" if spec.accelerator.vendor == "Auto" else spec.accelerator.vendor
    return step.seen.defaults.engine_image(name, placed or asked)


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
