"""How a run ends: one JSON object on stdout, and the termination message Kubernetes keeps of a pod."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from moorage.errors import SourceError
from moorage.sources import CATALOG, Reason

DEFAULT_TERMINATION_LOG = Path("/dev/termination-log")
_TERMINATION_LIMIT = 4096
_MESSAGE_LIMIT = 2000
_SHORT_MESSAGE = 300


def result(reason: Reason, message: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The last line on stdout: the contract's keys, and what else is known."""
    empty = {"bytes": 0, "files": [], "revision": "", "commit": "", "manifestDigest": ""}
    return {"reason": reason.value, "message": message[:_MESSAGE_LIMIT], **empty, **facts}


def failure(error: SourceError, file: str | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a run that ended with `error`."""
    more: dict[str, Any] = {"file": file} if file else {}
    if error.retry_after is not None:
        more["retryAfterSeconds"] = int(error.retry_after)
    return result(Reason(error.reason), error.message, {**facts, **more})


def publish(outcome: Mapping[str, Any], termination_log: Path | None) -> int:
    """Print the result and write the termination message; returns the exit code."""
    print(json.dumps(outcome, ensure_ascii=False), flush=True)
    path = termination_log or (DEFAULT_TERMINATION_LOG if DEFAULT_TERMINATION_LOG.exists() else None)
    if path:
        with suppress(OSError):
            path.write_bytes(termination_message(outcome))
    return CATALOG[Reason(outcome["reason"])].exit_code


def termination_message(outcome: Mapping[str, Any]) -> bytes:
    """The result without the file list, at most 4 KiB, which is what Kubernetes keeps."""
    short = {key: value for key, value in outcome.items() if key not in ("files", "formats")}
    for spare in _SPARE:
        if len(_encoded(short)) <= _TERMINATION_LIMIT:
            break
        short = spare(short)
    if len(data := _encoded(short)) <= _TERMINATION_LIMIT:
        return data
    return _encoded({"reason": outcome["reason"], "message": outcome["message"][:_SHORT_MESSAGE]})


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda short: {k: v for k, v in short.items() if k != key}


# What a message can do without, the least needed first; the header is the longest, and the operator asks the hub then.
_SPARE: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (
    _without("file"),
    lambda short: {**short, "facts": {**short["facts"], "header": None}} if short.get("facts") else short,
    lambda short: {**short, "message": short["message"][:1000]},
    lambda short: {**short, "message": short["message"][:_SHORT_MESSAGE]},
    _without("facts"),
    _without("folder"),
)


def _encoded(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def leave_now(outcome: Mapping[str, Any], termination_log: Path | None) -> None:
    """End the process at once, whatever its threads are doing."""
    code = publish(outcome, termination_log)
    sys.stderr.flush()
    os._exit(code)
