"""How many servers a Model should have now: what a person wants, less sleep, or what load asks for.

The spec says what a person wants and is never written. Everything that has to outlive a restart stands in
`status.scaling`. The rules, first match first:

1. `spec.replicas` is 0: none, until a person says otherwise. Sleep is over.
2. It sleeps: none, until it is wanted (a request waits for it or came for it after it fell asleep), a person asks
   (`moorage.dev/wake-at`), or, where it made room for another Model, there is room for both.
3. Another Model needs its place (`evicted_for`) and it serves no request: it goes to sleep, Preempted.
4. Its namespace has more loaded Models than it may, it is the one to go (`over_limit`), and it serves no request: it
   goes to sleep, LoadedModelsLimit.
5. A person asked it to sleep (`moorage.dev/sleep-at`, as `moorage switch` does) and it serves no request: it goes to
   sleep, Asked.
6. `scaleToZeroAfter` has passed since the last request, or since it became ready: it goes to sleep, Idle.
   Only on the word of all gateways: who hears nothing concludes nothing.
7. `spec.replicas`; with `targetRequests` as many as the load takes, more at once, fewer when no peak of the last
   minutes asks for them.
"""

import math
from dataclasses import dataclass
from datetime import datetime

from moorage.api.common import duration_seconds
from moorage.api.conditions import Reason
from moorage.api.scaling import Scaling, ScalingStatus, SleepCause
from moorage.planning.usage import Hearing, Usage
from moorage.usage import CHANGED_SECONDS

SKEW_SECONDS = 5
"""Clocks of gateways and operator may differ by this much. A request that found a server does not count as demand, so
one shortly before the sleep began cannot have been meant for the time before."""
BUSY_AGAIN_SECONDS = 60.0
LISTENING_AGAIN_SECONDS = 5.0
PEAK_AGAIN_SECONDS = 15.0
REPORTED_SECONDS = 2 * CHANGED_SECONDS
"""By then every gateway has told of the requests that it had sent when a person asked for sleep."""
ASKED_AGAIN_SECONDS = 5.0


@dataclass(frozen=True)
class Sleep:
    """Why there are no servers: a reason for the conditions, and a sentence."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Moment:
    """What the number follows from.

    `replicas` of the spec, `current` the number wanted until now (None: not decided yet), `serving_since` when the
    Model began to serve (None: it does not), `asked_at` the value of moorage.dev/wake-at and `sleep_at` that of
    moorage.dev/sleep-at, `evicted_for` the Model that is to have its place. `measured`: a benchmark asks it, which no
    gateway sees. `room`: there is a place again for a Model that made room for another. `over_limit`: its namespace has
    too many loaded Models, and this one goes.
    """

    now: datetime
    replicas: int
    scaling: Scaling
    remembered: ScalingStatus
    usage: Usage
    current: int | None = None
    serving_since: datetime | None = None
    asked_at: str = ""
    sleep_at: str = ""
    evicted_for: str = ""
    over_limit: bool = False
    measured: bool = False
    room: bool = False

    @property
    def busy(self) -> bool:
        """Whether it has requests to serve."""
        return bool(self.usage.load) or self.measured


@dataclass(frozen=True)
class Verdict:
    """How many servers there should be; `sleep` says why there are none, `woken` why they come back in this pass.

    `remembered` goes into status, `note` is worth saying of a Model that is awake; to be decided again in
    `again` seconds even if nothing changes.
    """

    replicas: int
    remembered: ScalingStatus
    sleep: Sleep | None = None
    woken: str = ""
    note: str = ""
    note_reason: Reason = Reason.RUNNING
    again: float | None = None


def decide(moment: Moment) -> Verdict:
    """The number of servers now, by the rules above."""
    remembered = moment.remembered
    if moment.replicas == 0:
        return Verdict(0, _done(moment), UNLOADED)
    if remembered.asleep_since is not None:
        if not (woken := _wanted(moment)):
            return Verdict(0, remembered, asleep(moment.scaling, remembered))
        number, note, again = _awake_number(moment)
        return Verdict(number, _done(moment), None, woken, note, again=again)
    if moment.evicted_for and not moment.busy:
        return _fall_asleep(moment, SleepCause.PREEMPTED)
    if moment.over_limit and not moment.busy:
        return _fall_asleep(moment, SleepCause.LOADED_MODELS_LIMIT)
    asked = _asked_to_sleep(moment)
    if asked == 0:
        return _fall_asleep(moment, SleepCause.ASKED)
    idle, note_reason, note, again = _idle(moment)
    if idle:
        return _fall_asleep(moment, SleepCause.IDLE)
    number, load_note, load_again = _awake_number(moment)
    return Verdict(
        number,
        _awake(moment),
        note=note or load_note,
        note_reason=note_reason,
        again=min((a for a in (again, load_again, asked) if a is not None), default=None),
    )


MADE_ROOM = (SleepCause.PREEMPTED, SleepCause.LOADED_MODELS_LIMIT)
"""Causes of a sleep that ends by itself when there is room again."""
UNLOADED = Sleep(Reason.SCALED_TO_ZERO, "replicas is 0; scale it up to load the model")


def asleep(scaling: Scaling, remembered: ScalingStatus) -> Sleep:
    """What a sleeping Model says of itself."""
    if remembered.cause == SleepCause.PREEMPTED:
        whom = remembered.preempted_for or "another Model"
        return Sleep(Reason.PREEMPTED, f"asleep to make room for {whom}; a request or free room wakes it")
    if remembered.cause == SleepCause.LOADED_MODELS_LIMIT:
        told = "asleep because its namespace had more loaded Models than it may; a request or a free place wakes it"
        return Sleep(Reason.PREEMPTED, told)
    if remembered.cause == SleepCause.ASKED:
        return Sleep(Reason.SCALED_TO_ZERO, "asleep because a person asked for it; a request wakes it")
    after = scaling.scale_to_zero_after
    idle = f"after {after} without a request" if after else "for lack of requests"
    return Sleep(Reason.SCALED_TO_ZERO, f"asleep {idle}; a request wakes it")


def _wanted(moment: Moment) -> str:
    """What wakes a sleeping Model, in words; empty while nothing does."""
    since = moment.remembered.asleep_since
    assert since is not None
    if moment.asked_at and moment.asked_at != moment.remembered.wake_at:
        return "a person asked for it"
    if moment.usage.pending:
        return f"{moment.usage.pending} request{'s wait' if moment.usage.pending > 1 else ' waits'} for it"
    if moment.usage.wanted_at and moment.usage.wanted_at >= since.timestamp() - SKEW_SECONDS:
        return "a request came for it"
    return "there is room again" if moment.room and moment.remembered.cause in MADE_ROOM else ""


def _fall_asleep(moment: Moment, cause: SleepCause) -> Verdict:
    """To sleep, from now on. A request to wake that lies before this moment was for another time."""
    remembered = _done(moment)
    remembered.asleep_since, remembered.cause = moment.now, cause
    if cause == SleepCause.PREEMPTED:
        remembered.preempted_for, remembered.preempted_at = moment.evicted_for, moment.now
    return Verdict(0, remembered, asleep(moment.scaling, remembered))


def _awake(moment: Moment) -> ScalingStatus:
    """What is remembered of a Model that does not sleep: whom it last made room for, and which requests are done."""
    update = {"asleep_since": None, "cause": None, "wake_at": moment.asked_at or moment.remembered.wake_at}
    return moment.remembered.model_copy(update=update)


def _done(moment: Moment) -> ScalingStatus:
    """The same with the request to sleep behind it: whoever sleeps or wakes afterwards does so for another reason."""
    remembered = _awake(moment)
    remembered.sleep_at = moment.sleep_at or remembered.sleep_at
    return remembered


def _asked_to_sleep(moment: Moment) -> float | None:
    """Seconds until it may go to sleep because a person asked, 0: now; None: nobody did, or asked to wake it since."""
    asked = moment.sleep_at
    if not asked or asked == moment.remembered.sleep_at:
        return None
    try:
        at = datetime.fromisoformat(asked)
        if moment.asked_at and datetime.fromisoformat(moment.asked_at) >= at:
            return None
        waited = (moment.now - at).total_seconds()
    except (ValueError, TypeError):  # no time at all, or one without a zone
        waited = REPORTED_SECONDS
    if waited < REPORTED_SECONDS:
        return min(REPORTED_SECONDS - waited, REPORTED_SECONDS)
    return ASKED_AGAIN_SECONDS if moment.busy or moment.usage.hearing is Hearing.LISTENING else 0


def _idle(moment: Moment) -> tuple[bool, Reason, str, float | None]:
    """Whether nobody has used it for long enough; else what to say, and when to look again."""
    after = moment.scaling.scale_to_zero_after
    if after is None or moment.serving_since is None:
        return False, Reason.RUNNING, "", None
    usage = moment.usage
    if usage.hearing is Hearing.SILENT:
        told = f"no gateway tells of requests, so it does not sleep after {after}"
        return False, Reason.NO_USAGE_REPORTS, told, BUSY_AGAIN_SECONDS
    if usage.hearing is Hearing.LISTENING:
        return False, Reason.RUNNING, "", LISTENING_AGAIN_SECONDS
    if moment.busy:
        return False, Reason.RUNNING, "", BUSY_AGAIN_SECONDS
    active = max(usage.last_used, usage.wanted_at, moment.serving_since.timestamp())
    left = duration_seconds(after) - (moment.now.timestamp() - active)
    return left <= 0, Reason.RUNNING, "", max(left, 1.0)


def _awake_number(moment: Moment) -> tuple[int, str, float | None]:
    """Servers of a Model that is awake, what to say of it, and when to look again."""
    scaling = moment.scaling
    if scaling.target_requests is None or scaling.max_replicas is None:
        return moment.replicas, "", None
    most, target = scaling.max_replicas, scaling.target_requests

    def servers(load: int) -> int:
        return min(max(math.ceil(load / target), scaling.min_replicas), most)

    current = min(max(moment.current or 0, scaling.min_replicas), most)
    if moment.usage.hearing is Hearing.SILENT:
        told = f"no gateway tells of requests; by load between {scaling.min_replicas} and {most}"
        return current, told, BUSY_AGAIN_SECONDS
    if moment.usage.hearing is Hearing.LISTENING:
        return current, _by_load(scaling), LISTENING_AGAIN_SECONDS
    now, peak = servers(moment.usage.load), moment.usage.peak
    lasting = current if peak is None else servers(peak)
    number = max(now, min(current, lasting))
    return number, _by_load(scaling), PEAK_AGAIN_SECONDS if number > scaling.min_replicas else None


def _by_load(scaling: Scaling) -> str:
    bounds = f"between {scaling.min_replicas} and {scaling.max_replicas}"
    return f"by load, {bounds}: {scaling.target_requests} requests for each server"
