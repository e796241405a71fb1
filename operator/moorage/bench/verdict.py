"""Why a run has no result: the reasons, their exit codes, and the checks that a result must pass."""

from collections.abc import Sequence
from enum import StrEnum

from moorage.errors import MoorageError

MIN_SAMPLES = 20
MAX_FAILED_PERCENT = 1
MAX_OUTPUT_OFF_PERCENT = 5


class Reason(StrEnum):
    """Why there is no result. `EXIT_CODES` has the process's exit code of each."""

    TOO_FEW_SAMPLES = "TooFewSamples"
    TOO_MANY_FAILURES = "TooManyFailures"
    OUTPUT_LENGTH_OFF = "OutputLengthOff"
    NO_USAGE = "NoUsage"
    UNREACHABLE = "Unreachable"
    REQUEST_REJECTED = "RequestRejected"
    TIMED_OUT = "TimedOut"
    INVALID_ARGUMENTS = "InvalidArguments"
    INTERRUPTED = "Interrupted"
    INTERNAL = "Internal"


EXIT_CODES = {
    Reason.INTERNAL: 1,
    Reason.TOO_FEW_SAMPLES: 2,
    Reason.TOO_MANY_FAILURES: 2,
    Reason.OUTPUT_LENGTH_OFF: 2,
    Reason.NO_USAGE: 2,
    Reason.UNREACHABLE: 3,
    Reason.REQUEST_REJECTED: 4,
    Reason.TIMED_OUT: 5,
    Reason.INVALID_ARGUMENTS: 64,
    Reason.INTERRUPTED: 143,
}


class BenchError(MoorageError):
    """A run that ends without a result; `str()` is a sentence with the numbers in it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def require_enough(requests: int) -> None:
    """Refuse a run that could only yield too few samples, before its first request."""
    if requests < MIN_SAMPLES:
        raise BenchError(
            Reason.TOO_FEW_SAMPLES,
            f"{requests} requests are too few: a 99th percentile needs at least {MIN_SAMPLES} samples",
        )


def too_many_failed(failed: int, planned: int) -> bool:
    """Whether `failed` of `planned` requests is more than a result may contain."""
    return failed * 100 > planned * MAX_FAILED_PERCENT


def require_few_failures(failed: int, sent: int, planned: int, load: str, example: str) -> None:
    """Refuse as soon as more requests failed than a result may contain, however the rest would end."""
    if too_many_failed(failed, planned):
        raise BenchError(
            Reason.TOO_MANY_FAILURES,
            f"at {load} {failed} of {sent} requests failed ({planned} were planned, "
            f"{MAX_FAILED_PERCENT} % may fail); for example: {example}",
        )


def require_output_length(output_tokens: Sequence[int], requested: int, load: str) -> None:
    """Refuse numbers about answers of another length than the one asked for: they answer another question."""
    mean = sum(output_tokens) / len(output_tokens)
    if abs(mean - requested) * 100 > requested * MAX_OUTPUT_OFF_PERCENT:
        raise BenchError(
            Reason.OUTPUT_LENGTH_OFF,
            f"at {load} answers had {mean:.1f} tokens on average ({min(output_tokens)} to {max(output_tokens)}), "
            f"{requested} were asked for: more than {MAX_OUTPUT_OFF_PERCENT} % off. The server may not know "
            "ignore_eos, may have reached its context length, or may not obey max_tokens",
        )
