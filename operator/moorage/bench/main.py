"""The `moorage bench` command: options in, one JSON object or a table out."""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import click
import uvloop

from moorage.bench.report import document, refusal, table, termination_message
from moorage.bench.run import benchmark
from moorage.bench.settings import Profile, Settings, Slo, parse_target, plan_loads
from moorage.bench.verdict import EXIT_CODES, BenchError, Reason

DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")
# The event loop keeps the time limit; this much later the process ends even if the loop itself hangs (a resolver may).
HARD_LIMIT_GRACE = 5.0


class _UsageError(click.UsageError):
    exit_code = EXIT_CODES[Reason.INVALID_ARGUMENTS]

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(error.format_message(), error.ctx)


class BenchCommand(click.Command):
    """A command whose usage errors do not share the exit code of a refusal."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """As click does, with exit code 64 (EX_USAGE) for a usage error."""
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            usage = _UsageError(error)
            _write_termination_message(refusal(BenchError(Reason.INVALID_ARGUMENTS, usage.message)))
            raise usage from None


@click.command("bench", cls=BenchCommand)
@click.option("--url", required=True, help="The server, without /v1: http://qwen3-8b:8080")
@click.option("--model", required=True, help="The model's name as the server knows it.")
@click.option(
    "--profile", type=click.Choice(Profile, case_sensitive=False), default=Profile.LATENCY, show_default="latency"
)
@click.option(
    "--concurrency", type=click.IntRange(1, 1024), multiple=True, help="Streams; may be repeated, a row each."
)
@click.option("--rate", type=click.FloatRange(0.001, 10_000), help="Requests per second, Poisson arrivals.")
@click.option("--requests", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Requests a row.")
@click.option("--input-tokens", type=click.IntRange(1, 1 << 20), default=512, show_default=True)
@click.option("--output-tokens", type=click.IntRange(2, 1 << 20), default=128, show_default=True)
@click.option("--slo-ttft-ms", type=click.IntRange(1), help="A good request's time to first token, at most.")
@click.option("--slo-tpot-ms", type=click.IntRange(1), help="A good request's time per output token, at most.")
@click.option("--warmup", type=click.IntRange(0, 10_000), help="Requests before each row. [default: N, at least 2]")
@click.option("--timeout", type=click.FloatRange(1), default=600.0, show_default=True, help="The whole run, seconds.")
@click.option(
    "--request-timeout", type=click.FloatRange(0.1, 3600), default=120.0, show_default=True, help="One, seconds."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of arrivals and sentence order.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def command(output: str, **options: Any) -> None:
    """Measure how fast one OpenAI-compatible server answers, and refuse to guess.

    Streams chat completions with prompts no cache has seen; token counts are the server's own. Results go to stdout,
    progress to stderr. An API key is read from MOORAGE_API_KEY.

    \b
    Profiles
      latency      one stream
      throughput   --concurrency N streams in a closed loop, a row for each N (5 at most)
      rate         --rate R requests per second, Poisson arrivals

    \b
    Examples
      moorage bench --url http://127.0.0.1:8080 --model qwen3-8b
      moorage bench --url http://qwen3-8b:8080 --model qwen3-8b --profile throughput \\
        --concurrency 1 --concurrency 8 --requests 100 -o json
      moorage bench --url http://qwen3-8b:8080 --model qwen3-8b --profile rate --rate 2.5 \\
        --slo-ttft-ms 500 --slo-tpot-ms 50

    \b
    Exit codes
      0    measured
      1    a fault of this program
      2    refused: fewer than 20 samples, more than 1 % failures, answers more than 5 % off the
           length asked for, or a server that does not count its tokens
      3    the server cannot be reached, or does not answer
      4    the server rejects the request
      5    the time limit passed
      64   the options contradict each other
      143  stopped by SIGTERM (130 by SIGINT)
    """
    try:
        settings = _settings(**options)
        with _ended_by_signals(settings.timeout + HARD_LIMIT_GRACE):
            report = uvloop.run(benchmark(settings, _progress))
    except BenchError as error:
        sys.exit(_refuse(error, output))
    except Exception as error:
        _write_termination_message(refusal(BenchError(Reason.INTERNAL, f"{type(error).__name__}: {error}")))
        raise
    facts = document(report)
    _write_termination_message(facts)
    click.echo(json.dumps(facts, indent=2) if output == "json" else table(report))


def _settings(
    *,
    url: str,
    profile: Profile,
    concurrency: tuple[int, ...],
    rate: float | None,
    slo_ttft_ms: int | None,
    slo_tpot_ms: int | None,
    **rest: Any,
) -> Settings:
    """Options as Settings. Raises BenchError (InvalidArguments)."""
    loads = plan_loads(profile, concurrency, rate)
    settings = Settings(
        target=parse_target(url),
        profile=profile,
        loads=loads,
        slo=Slo(slo_ttft_ms, slo_tpot_ms),
        api_key=os.environ.get("MOORAGE_API_KEY", ""),
        **rest,
    )
    widest = max(load.concurrency or 1 for load in loads)
    if widest > settings.requests:
        message = f"--requests {settings.requests} cannot keep --concurrency {widest} streams busy"
        raise BenchError(Reason.INVALID_ARGUMENTS, message)
    return settings


@contextmanager
def _ended_by_signals(hard_limit: float) -> Iterator[None]:
    """End the process from the signal handler: at once, whatever the event loop or a resolver is busy with.

    There is nothing to tidy up: the kernel closes the sockets, and the engine sees that its clients are gone.
    """

    def end(number: int, _: FrameType | None) -> None:
        if number == signal.SIGALRM:
            error = BenchError(Reason.TIMED_OUT, f"still running {hard_limit:g} s after the start")
            code = EXIT_CODES[error.reason]
        else:
            error = BenchError(Reason.INTERRUPTED, f"stopped by {signal.Signals(number).name}")
            code = 128 + number
        _write_termination_message(refusal(error))
        os.write(sys.stderr.fileno(), f"{error.reason}: {error.message}\n".encode())
        os._exit(code)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = {number: signal.signal(number, end) for number in numbers}
    signal.setitimer(signal.ITIMER_REAL, hard_limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _refuse(error: BenchError, output: str) -> int:
    facts = refusal(error)
    _write_termination_message(facts)
    if output == "json":
        click.echo(json.dumps(facts))
    click.echo(f"{error.reason}: {error.message}", err=True)
    return EXIT_CODES[error.reason]


def _write_termination_message(facts: dict[str, Any]) -> None:
    """Leave `facts` where the kubelet reads them; a run outside a pod has no such place."""
    named = os.environ.get("MOORAGE_TERMINATION_LOG")
    path = Path(named) if named else DEFAULT_TERMINATION_LOG
    if not named and not path.exists():
        return
    try:
        path.write_bytes(termination_message(facts))
    except OSError as error:
        _progress(f"no termination message at {path}: {error.strerror}")


def _progress(text: str) -> None:
    click.echo(text, err=True)
