"""Room for a Model: GPUs, a place among the loaded ones of its namespace, and who sleeps so that it gets them.

Whoever goes to sleep decides that in a pass of its own (`Plan.evict` asks for it): it serves nobody when it does, its
endpoints vanish, its servers end what they have, and only when their pods are gone are the GPUs free. Until then
this Model holds the room by reservation, so that nobody else takes it, and waits. Nobody sleeps for a download: the
files come first.
"""

from moorage.api.conditions import ModelCondition as C
from moorage.api.conditions import Reason
from moorage.api.scaling import SleepCause
from moorage.placement.decide import decide
from moorage.placement.inventory import Inventory
from moorage.placement.preempt import preempt, step_down, yield_place
from moorage.placement.text import listed
from moorage.planning import model_awake, model_place, model_remedies, model_source
from moorage.planning.draft import FALSE
from moorage.planning.model_pass import ModelPass
from moorage.planning.model_scale import MADE_ROOM, Sleep
from moorage.planning.neighbours import Around, neighbour_of, resident
from moorage.planning.usage import Hearing

AGAIN_SECONDS = 5.0
AGAIN_NEIGHBOURS = 100
"""To look at so many others for each second of patience is no burden, whoever else waits."""


def find_room(step: ModelPass) -> str | None:
    """The step Placed, with the help of others' sleep; returns a message where the Model has to wait."""
    told = model_place.place(step)
    if _may_return(step):
        model_awake.decide(step, room=True)
        return model_place.place(step)
    found = step.decision
    if told and found is not None and model_place.presses(step, found):
        return _press(step, told)
    return told


def admit(step: ModelPass) -> str | None:
    """The last thing before servers: a place among the loaded Models of the namespace, where that has a limit."""
    if step.replicas and _full(step):
        return _wait_for_place(step)
    step.admitted = True
    return None


# -- GPUs -------------------------------------------------------------------------------------------------------------


def _press(step: ModelPass, told: str) -> str:
    """No GPU is free, but some would do: wait for those that are about to be, or have idle Models make room."""
    around = _around(step)
    if around is None:
        return told
    owner = model_place.owner(step)
    # A request may have woken one that makes room: its servers end all the same, and the place was promised. Who is
    # only being restarted comes back to its place.
    staying = frozenset(n.owner for n in around.neighbours if n.desired and n.preempted_for != owner)
    inventory = (step.seen.inventory or Inventory(())).without_ending(staying).without(around.leaving() - {owner})
    asked = model_place.request(step, model_place.candidates(step), replacing=True)
    coming = decide(asked, inventory, step.seen.reservations)
    if coming.placed:
        step.reserve = coming.reservations(owner)
        return _wait(step, f"waits until there is room on {listed(coming.nodes)}: servers there are stopping")
    if step.seen.usage.hearing is Hearing.LISTENING:
        step.wake_in(AGAIN_SECONDS)  # gateways have not told yet who is in use
        return told
    found = preempt(
        asked,
        inventory,
        step.seen.reservations,
        residents=around.residents(step.seen.now),
        priority=step.model.spec.preemption.priority,
        history=around.drives(step.seen.now),
        cooldown_seconds=step.seen.defaults.preemption_cooldown_seconds,
    )
    if found.decision is None or not found.victims:
        step.wake_in(max(AGAIN_SECONDS, len(around.neighbours) / AGAIN_NEIGHBOURS))  # somebody may be idle by then
        own = model_remedies.without_sleep(step.status.remedies)
        step.status.remedies = [*own, *model_remedies.of_sleep(step, around)]
        return step.stop(C.PLACED, Reason.NO_GPU_FREE, f"{told}; {found.message}")
    step.reserve = found.decision.reservations(owner)
    if fetching := model_source.download(step):
        return _wait(step, f"{fetching}; then {found.message}")
    if _full(step):
        return _wait_for_place(step)
    step.evict = found.victims
    return _wait(step, found.message)


def _wait(step: ModelPass, message: str) -> str:
    step.status.remedies = model_remedies.without_sleep(step.status.remedies)  # who is to sleep has been chosen
    step.draft.set(C.PLACED, FALSE, Reason.WAITING_FOR_ROOM, message)
    step.wake_in(AGAIN_SECONDS)
    return message


def _around(step: ModelPass) -> Around | None:
    """The neighbours; None in a pass that was not shown any, which then asks for another that is."""
    step.look_around = step.seen.around is None
    return step.seen.around


def _may_return(step: ModelPass) -> bool:
    """Whether a Model that was put to sleep for another has room again, and that one has what it wanted."""
    slept, found = step.status.scaling, step.decision
    if step.replicas or not slept or slept.asleep_since is None or slept.cause not in MADE_ROOM:
        return False
    there = found.placed if found else step.model.spec.accelerator.vendor == "None"
    if not step.model.spec.replicas or not there or _others_fill(step):
        return False
    around = _around(step)
    if around is None:
        return False
    whom = around.of(slept.preempted_for or "") if slept.cause == SleepCause.PREEMPTED else None
    return whom is None or whom.settled


# -- places in the namespace ------------------------------------------------------------------------------------------


def _full(step: ModelPass) -> bool:
    """Whether the namespace has as many loaded Models as it may, this one not among them."""
    return not step.seen.loaded and _others_fill(step)


def _others_fill(step: ModelPass) -> bool:
    """Whether the others alone have all places of the namespace."""
    limit = step.seen.loaded_limit
    return limit is not None and len(step.seen.loaded_others) >= limit


def keep_to_limit(step: ModelPass) -> None:
    """Go to sleep if the namespace has more loaded Models than it may, as when its limit was lowered.

    Each of them finds out by itself whether it is among those that go: idle, past their residency, least recently used.
    Whoever is told to make room already sleeps for that, and does not count.
    """
    seen, limit = step.seen, step.seen.loaded_limit
    if limit is None or not step.replicas or not seen.loaded or len(seen.loaded_others) < limit:
        return
    around = _around(step)
    if around is None:
        return
    namespace = step.model.metadata.namespace
    others = [model_place.owner_of(namespace, name) for name in seen.loaded_others]
    loaded = 1 + sum(n.desired > 0 for n in around.neighbours if n.owner in others)
    if loaded <= limit:
        return
    step.wake_in(max(AGAIN_SECONDS, len(around.neighbours) / AGAIN_NEIGHBOURS))
    if seen.usage.hearing is not Hearing.LISTENING and _goes(step, around, others, loaded - limit):
        model_awake.decide(step, over_limit=True)
        return
    told = f"namespace {namespace} has {loaded} loaded Models and may have {limit}: an idle one goes to sleep"
    step.note = (Reason.LOADED_MODELS_LIMIT, told)


def _goes(step: ModelPass, around: Around, others: list[str], count: int) -> bool:
    """Whether this Model is among the `count` that are to go."""
    owner, now, use = model_place.owner(step), int(step.seen.now.timestamp()), step.seen.usage
    own = neighbour_of(step.seen.model, owner)
    if own.serving_since is None:
        return False
    mine = resident(own, own.serving_since, (use.load, use.last_used), now)
    return owner in step_down([mine, *around.residents(step.seen.now, among=others)], count)


def _wait_for_place(step: ModelPass) -> str:
    """Wait for one of the namespace's places, and have an idle Model give up its own. GPUs are not held meanwhile."""
    seen, namespace = step.seen, step.model.metadata.namespace
    told = (
        f"{len(seen.loaded_others)} of {seen.loaded_limit} places for loaded Models in namespace {namespace} are taken"
    )
    told += f" ({listed(seen.loaded_others)})" if seen.loaded_others else ""
    around = _around(step)
    if around is not None and seen.usage.hearing is not Hearing.LISTENING:
        told = f"{told}; {_yielded(step, around)}"
    step.replicas, step.sleep, step.reserve = 0, Sleep(Reason.LOADED_MODELS_LIMIT, told), ()
    step.wake_in(AGAIN_SECONDS)
    return step.stop(C.SERVING, Reason.LOADED_MODELS_LIMIT, told)


def _yielded(step: ModelPass, around: Around) -> str:
    """Ask the one that has been idle for longest to sleep; in words."""
    namespace = step.model.metadata.namespace
    found = yield_place(
        model_place.owner(step),
        around.residents(step.seen.now, among=[model_place.owner_of(namespace, n) for n in step.seen.loaded_others]),
        priority=step.model.spec.preemption.priority,
        history=around.drives(step.seen.now),
        cooldown_seconds=step.seen.defaults.preemption_cooldown_seconds,
    )
    step.evict = found.victims
    return found.message
