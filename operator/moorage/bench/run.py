"""The run: first contact, prompt length, warm-up, then one row per load."""

import asyncio
import gc
import time
from collections.abc import Callable
from datetime import UTC, datetime

from moorage.bench.client import Answer, EngineClient, Failure, FailureKind, Outcome
from moorage.bench.load import closed_loop, poisson
from moorage.bench.prompts import PromptMaker, close_enough, first_length, next_length
from moorage.bench.report import Report
from moorage.bench.settings import Load, Settings
from moorage.bench.stats import Row, summarize
from moorage.bench.verdict import (
    BenchError,
    Reason,
    require_enough,
    require_few_failures,
    require_output_length,
)

Progress = Callable[[str], None]

FIRST_CONTACT_TRIES = 5
FIRST_CONTACT_PAUSE = 1.0
LENGTH_TRIES = 8
PROGRESS_INTERVAL = 5.0
# Above this share of one core, what is measured may be the runner waiting for itself.
BUSY_PERMILLE = 800

# What more patience cannot mend; a refused connection or a 503 (llama-server, loading) may pass.
_FINAL = {
    FailureKind.REJECTED: Reason.REQUEST_REJECTED,
    FailureKind.NO_USAGE: Reason.NO_USAGE,
    FailureKind.TIMED_OUT: Reason.UNREACHABLE,
}


async def benchmark(settings: Settings, progress: Progress) -> Report:
    """Measure what `settings` asks for. Raises BenchError where there is no result to publish."""
    require_enough(settings.requests)
    run = _Run(settings, progress)
    try:
        async with asyncio.timeout(settings.timeout):
            return await run.report()
    except TimeoutError:
        message = f"the time limit of {settings.timeout:g} s passed {run.state}; allow more, or ask for less"
        raise BenchError(Reason.TIMED_OUT, message) from None
    finally:
        run.client.close()


class _Run:
    """One run's state: how far it is, and how long its prompts are."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self.client = EngineClient(settings)
        self.state = "before the first answer"
        self._settings = settings
        self._progress = progress
        self._prompts = PromptMaker(settings.seed)
        self._length = first_length(settings.input_tokens)

    async def report(self) -> Report:
        """All rows, in the order asked for."""
        started_at = datetime.now(UTC)
        await self._prompt_tokens()
        engine = await self.client.learn()
        await self._fit_prompt()
        rows = [await self._row(load) for load in self._settings.loads]
        return Report(self._settings, rows, engine, started_at)

    async def _fit_prompt(self) -> None:
        """Find the prompt length in characters that gives the wanted prompt tokens; the server counts them."""
        wanted = self._settings.input_tokens
        seen: list[tuple[int, int]] = []
        for _ in range(LENGTH_TRIES):
            tokens = await self._prompt_tokens()
            seen.append((self._length, tokens))
            self.state = f"while the prompt length was adapted ({tokens} tokens, {wanted} wanted)"
            if close_enough(tokens, wanted):
                break
            self._length = next_length(seen, wanted)
        else:
            self._length, tokens = min(seen, key=lambda pair: abs(pair[1] - wanted))
            self._progress(f"prompts have {tokens} tokens: no length came nearer to the {wanted} asked for")

    async def _prompt_tokens(self) -> int:
        """Prompt tokens of one prompt of the present length. The first requests of a run are patient."""
        for tries_left in reversed(range(FIRST_CONTACT_TRIES)):
            outcome = await self.client.complete(self._prompts.make(self._length), max_tokens=2)
            if isinstance(outcome, Answer):
                return outcome.usage.prompt
            if outcome.kind in _FINAL or not tries_left:
                reason = _FINAL.get(outcome.kind, Reason.UNREACHABLE)
                raise BenchError(reason, f"{self._settings.target}: {outcome.message}")
            self._progress(f"{self._settings.target}: {outcome.message}; trying again")
            await asyncio.sleep(FIRST_CONTACT_PAUSE)
        raise AssertionError("the last try returns or raises")

    async def _row(self, load: Load) -> Row:
        # Before the warm-up, because a collection of all that start-up left stops the event loop for many milliseconds.
        gc.collect()
        gc.freeze()
        warmup = self._settings.warmup
        await self._warm_up(max(load.concurrency or 1, 2) if warmup is None else warmup, load)
        tally = _Tally(load, self._settings.requests)
        cpu = time.process_time()
        teller = asyncio.create_task(self._tell(tally))
        try:
            await self._load(tally, load)
        finally:
            teller.cancel()
        cpu = time.process_time() - cpu
        require_output_length([a.usage.completion for a in tally.answers], self._settings.output_tokens, str(load))
        row = summarize(load, tally.answers, len(tally.failures), self._settings.slo, cpu)
        if row.runner_cpu_permille > BUSY_PERMILLE:
            self._progress(
                f"at {load} the runner used {row.runner_cpu_permille / 10:.0f} % of a core: too busy to trust"
            )
        return row

    async def _warm_up(self, requests: int, load: Load) -> None:
        self.state = f"while warming up for {load}"
        self._progress(f"{load}: warming up with {requests} requests")

        async def send() -> None:
            await self._complete()

        await closed_loop(send, requests, min(load.concurrency or 1, requests))

    async def _load(self, tally: "_Tally", load: Load) -> None:
        async def send() -> None:
            tally.add(await self._complete())
            self.state = str(tally)

        if load.rate is not None:
            await poisson(send, self._settings.requests, load.rate, self._settings.seed)
        else:
            await closed_loop(send, self._settings.requests, load.concurrency or 1)

    async def _complete(self) -> Outcome:
        return await self.client.complete(self._prompts.make(self._length), self._settings.output_tokens)

    async def _tell(self, tally: "_Tally") -> None:
        while True:
            await asyncio.sleep(PROGRESS_INTERVAL)
            self._progress(str(tally))


class _Tally:
    """Outcomes of one load, refused as soon as they cannot become a result."""

    def __init__(self, load: Load, planned: int) -> None:
        self.answers: list[Answer] = []
        self.failures: list[Failure] = []
        self._load = load
        self._planned = planned

    def add(self, outcome: Outcome) -> None:
        """Count one outcome. Raises BenchError (TooManyFailures)."""
        if isinstance(outcome, Answer) and not outcome.text_ns:
            message = (
                f"{outcome.usage.completion} tokens, but no chunk bore any text: no first token to take the time of"
            )
            outcome = Failure(FailureKind.BROKEN_STREAM, message)
        if isinstance(outcome, Answer):
            self.answers.append(outcome)
            return
        self.failures.append(outcome)
        sent = len(self.answers) + len(self.failures)
        require_few_failures(len(self.failures), sent, self._planned, str(self._load), outcome.message)

    def __str__(self) -> str:
        """How far it is, for people."""
        done = len(self.answers) + len(self.failures)
        return f"at {self._load} with {done} of {self._planned} requests done, {len(self.failures)} failed"
