"""Questions that take a while, asked beside the queue: an answer re-adds its key, and no worker ever waits.

At most one task runs per key and kind of question. A failed one is not asked again before its pause is over, so a plan
may repeat its question in every pass.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from moorage.control.queue import backoff_seconds
from moorage.control.store import Key
from moorage.errors import SourceError
from moorage.planning.types import Answer, Ask

log = logging.getLogger(__name__)

REFUSED_AGAIN_SECONDS = 300.0
"""A source that said no is asked again after this: a Secret or a permission may have changed meanwhile."""

AT_ONCE = 32
"""Questions of one kind that are asked at once: a thousand new Models must not look like an attack, or time out."""

Run = Callable[[Key, Any], Coroutine[Any, Any, dict[str, Any]]]


@dataclass
class _State:
    inputs: str
    task: asyncio.Task[None] | None = None
    answer: Answer | None = None
    failures: int = 0
    again_at: float = 0.0


class SideTasks:
    """Runs asks of one kind; `run(key, ask)` returns the value or raises SourceError (or anything: a bug)."""

    def __init__(self, run: Run, done: Callable[[Key], None], *, first_pause: float = 1.0) -> None:
        self._run, self._done, self._first_pause = run, done, first_pause
        self._states: dict[Key, _State] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    def answer(self, key: Key) -> Answer | None:
        """The newest answer for `key`, whatever it was asked about."""
        state = self._states.get(key)
        return state.answer if state else None

    def ask(self, key: Key, ask: Ask, inputs: str) -> float | None:
        """Have `ask` answered; returns seconds to wait where it has to pause after a failure."""
        state = self._states.get(key)
        if state is None or state.inputs != inputs:
            self.forget(key)
            state = self._states[key] = _State(inputs)
        if state.task is not None:
            return None
        left = state.again_at - time.monotonic()
        if left > 0:
            return left
        state.task = asyncio.create_task(self._answer(key, ask, state))
        return None

    def retry(self, key: Key) -> None:
        """What `key` failed for may be mended: its pause is over."""
        if state := self._states.get(key):
            state.again_at = 0.0

    def forget(self, key: Key) -> None:
        """Drop what is known of `key` and stop a task that still runs."""
        state = self._states.pop(key, None)
        if state and state.task:
            state.task.cancel()

    async def close(self) -> None:
        """Stop all tasks."""
        tasks = [s.task for s in self._states.values() if s.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, key: Key, ask: Ask, state: _State) -> None:
        try:
            async with self._places:
                value = await self._run(key, ask)
        except SourceError as error:
            self._failed(state, error)
        except Exception as error:
            log.exception("%s: %s failed", key, type(ask).__name__)
            self._failed(state, SourceError("InternalError", f"{type(error).__name__}: {error}", retryable=True))
        else:
            state.failures, state.answer = 0, Answer(state.inputs, value)
        state.task = None
        self._done(key)

    def _failed(self, state: _State, error: SourceError) -> None:
        state.failures += 1
        pause = backoff_seconds(state.failures) * self._first_pause if error.retryable else REFUSED_AGAIN_SECONDS
        asked_for = (error.retry_after or 0.0) * random.uniform(1.0, 1.25)  # many were told the same
        state.again_at = time.monotonic() + max(pause, asked_for)
        state.answer = Answer(state.inputs, None, error.reason, error.message, error.retryable, state.failures)
