"""What would give a Model without a place one: changes of its own spec, and the sleep of other Models.

All of it is for a person to do. A Model's sleep is offered only where its `preemption` would let Moorage itself ask for
it, were it idle: whoever said `Never`, or gave it a higher priority, has answered already. Those of the Model's own
namespace come first; only where they do not help are others named, whose people would have to be asked.
"""

from moorage.api.model_status import RemedyStatus
from moorage.api.scaling import PreemptionPolicy
from moorage.errors import InvalidSpec
from moorage.placement.inventory import Inventory
from moorage.placement.remedies import (
    CACHE,
    CONTEXT,
    QUANTIZATION,
    SEQUENCES,
    SLEEP,
    Remedy,
    Settings,
    Space,
    remedies,
    sleep,
)
from moorage.placement.request import Candidate
from moorage.planning import model_place
from moorage.planning.model_engine import Changes, context_length, engine_of, sequences, smaller_quantizations
from moorage.planning.model_pass import ModelPass
from moorage.planning.neighbours import Around, Neighbour


def of_settings(step: ModelPass) -> list[RemedyStatus]:
    """The smallest changes of its own spec with which the Model would have a place now.

    Nothing where its need is not computed.
    """
    if not step.source.header or step.model.spec.accelerator.memory_per_gpu_override:
        return []
    present, types = step.model.spec.kv_cache_type.value, engine_of(step).cache_types
    fixed = step.model.spec.accelerator.count
    space = Space(
        context_length=context_length(step),
        max_sequences=sequences(step),
        cache_types=types[types.index(present) + 1 :],
        quantizations=smaller_quantizations(step),
        counts=tuple(c for c in model_place.counts(step) if fixed and c != fixed),
    )

    def changed(settings: Settings) -> tuple[Candidate, ...] | None:
        context, slots = (int(settings.get(k) or 0) for k in (CONTEXT, SEQUENCES))
        cache, quantization = (str(settings.get(k) or "") for k in (CACHE, QUANTIZATION))
        try:
            return model_place.candidates(step, Changes(context, slots, cache, quantization))
        except InvalidSpec:
            return None

    asked = model_place.request(step, model_place.candidates(step), replacing=False)
    inventory = step.seen.inventory or Inventory(())
    return [_written(r) for r in remedies(asked, inventory, step.seen.reservations, need=changed, space=space)]


def of_sleep(step: ModelPass, around: Around) -> list[RemedyStatus]:
    """The sleep of the fewest other Models with which it would have a place; at most one remedy."""
    asked = model_place.request(step, model_place.candidates(step), replacing=True)
    able = [n for n in around.neighbours if _may_be_asked(step, n)]
    own = {n.owner: n.title for n in able if n.owner.partition("/")[0] == step.model.metadata.namespace}
    everybody = {n.owner: n.title for n in able}
    groups = [own, everybody] if len(everybody) > len(own) else [own]
    found = sleep(asked, step.seen.inventory or Inventory(()), step.seen.reservations, groups)
    return [_written(found)] if found else []


def _may_be_asked(step: ModelPass, neighbour: Neighbour) -> bool:
    mild = neighbour.policy == PreemptionPolicy.WHEN_IDLE and neighbour.priority <= step.model.spec.preemption.priority
    return mild and neighbour.desired > 0 and neighbour.owner != model_place.owner(step)


def without_sleep(known: list[RemedyStatus]) -> list[RemedyStatus]:
    """Those of `known` that are changes of the Model's own spec."""
    return [remedy for remedy in known if not remedy.change.startswith(SLEEP)]


def _written(remedy: Remedy) -> RemedyStatus:
    return RemedyStatus(change=remedy.change, effect=remedy.effect)
