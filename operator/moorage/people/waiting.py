"""Waiting for a Model: what its status means for somebody who waits, and the wait itself."""

import asyncio
import time
from collections.abc import Callable

from moorage.api.conditions import ModelCondition, ModelPhase, get_condition, is_true
from moorage.api.model import Model
from moorage.people.errors import ModelFailed, TookTooLong
from moorage.people.session import Session, say

EVERY_SECONDS = 0.5
SETTLE_SECONDS = 10.0
"""A Model that failed before gets this long to show that it has seen the request: its status is of yesterday."""


def message(model: Model) -> str:
    """Where the Model stands, in words."""
    summary, phase = model.status.summary, model.status.phase
    return ": ".join(filter(None, [phase.value if phase else "new", summary.message if summary else None]))


def serves(model: Model) -> bool:
    """Whether it has a ready server and is Ready, of the spec as it is now."""
    status = model.status
    current = status.observed_generation == model.metadata.generation
    return current and is_true(status.conditions, ModelCondition.READY) and bool(status.ready_replicas)


def failed(model: Model) -> bool:
    """Whether it will not become ready by waiting: it failed, or a person must act."""
    if model.status.observed_generation != model.metadata.generation:
        return False
    stalled = get_condition(model.status.conditions, ModelCondition.STALLED)
    return model.status.phase in (ModelPhase.FAILED, ModelPhase.BLOCKED) or (
        stalled is not None and stalled.status == "True" and not is_true(model.status.conditions, ModelCondition.READY)
    )


async def until_serving(session: Session, model: Model, timeout: float) -> Model:
    """The Model as soon as it serves; tells on stderr what it is at.

    Raises ModelFailed where it fails or waits for a person, TookTooLong after `timeout` seconds.
    """
    name, namespace = model.metadata.name, model.metadata.namespace
    began, told = time.monotonic(), ""
    while True:
        model = await session.model(name, namespace)
        if serves(model):
            return model
        waited = time.monotonic() - began
        if (now := message(model)) != told:
            say(f"{name}: {now}")
            told = now
        if failed(model) and waited > SETTLE_SECONDS:
            raise ModelFailed(f"Model {name} does not become ready: {now}")
        if waited > timeout:
            raise TookTooLong(f"Model {name} is not ready after {timeout:g} s: {now}")
        await asyncio.sleep(EVERY_SECONDS)


async def until(session: Session, model: Model, good: Callable[[Model], bool], timeout: float, what: str) -> Model:
    """The Model as soon as `good` of it; TookTooLong, naming `what`, after `timeout` seconds."""
    began = time.monotonic()
    while not good(model := await session.model(model.metadata.name, model.metadata.namespace)):
        if time.monotonic() - began > timeout:
            raise TookTooLong(f"Model {model.metadata.name} is not {what} after {timeout:g} s: {message(model)}")
        await asyncio.sleep(EVERY_SECONDS)
    return model
