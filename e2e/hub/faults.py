"""Fault rules and rate limits of the local hub.

A rule matches requests by server, method and path, lets `skip` of them pass, then breaks `count` of them:

    kind      what happens                                                     uses
    cut       the connection ends cleanly in the body                          after | at, chunked
    rst       the connection is reset (before the headers without after/at)    after | at
    stall     bytes stop coming, the connection stays                          after | at, seconds
    trickle   bytes come slowly                                                after | at, rate (bytes/s)
    status    another answer                                                   status, headers, body
    short     the file is said and sent `bytes` shorter                        bytes
    long      the file is said and sent `bytes` longer                         bytes
    corrupt   one bit is flipped (or every byte, with all)                     at, all
    html      200 with a web page instead of the file                          -
    norange   the Range header is ignored: 200 and the whole file              after (a cut as well)
    wrongrange  206 for a range that was not asked for                         bytes (shift)
    hang      the request is read and never answered                           -
    slow      the answer comes late                                            seconds
    drip      the headers come byte by byte, one in 0.2 s, and never end       -
    behead    the connection ends cleanly inside the headers                   -

`after` counts body bytes of the response, `at` is an offset in the file (the rule then matches only responses that
hold it). Without both, cut closes before the status line, too.
"""

import re
import threading
import time
from dataclasses import dataclass, field
from typing import Any

KINDS = [
    "cut",
    "rst",
    "stall",
    "trickle",
    "status",
    "short",
    "long",
    "corrupt",
    "html",
    "norange",
    "wrongrange",
    "hang",
    "drip",
    "behead",
    "slow",
]


@dataclass
class Rule:
    """One fault; `hits` counts how often it struck."""

    kind: str
    path: str = ""
    method: str = ""
    server: str = ""
    skip: int = 0
    count: int | None = 1
    after: int | None = None
    at: int | None = None
    chunked: bool = False
    seconds: float | None = None
    rate: int = 200_000
    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    bytes: int = 1000
    all: bool = False
    hits: int = 0
    passed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no fault called {self.kind}; there are {', '.join(KINDS)}")
        re.compile(self.path)

    def wants(self, server: str, method: str, path: str) -> bool:
        if self.count is not None and self.hits >= self.count:
            return False
        right = self.method in ("", method) and self.server in ("", server)
        return right and re.search(self.path, path) is not None

    def stop(self, start: int) -> int | None:
        """Body bytes of a response that begins at file offset `start` before this rule strikes."""
        if self.at is not None and self.kind != "norange":
            return self.at - start
        return self.after


class Rules:
    """The active rules, in order; the first that matches a request takes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.active: list[Rule] = []

    def add(self, **fields: Any) -> Rule:
        rule = Rule(**fields)
        with self._lock:
            self.active.append(rule)
        return rule

    def replace(self, rules: list[dict[str, Any]]) -> None:
        made = [Rule(**r) for r in rules]
        with self._lock:
            self.active = made

    def take(self, server: str, method: str, path: str, span: tuple[int, int] | None) -> Rule | None:
        """The rule for this request; `span` is the asked range of file offsets, end exclusive, None: metadata."""
        with self._lock:
            for rule in self.active:
                if not rule.wants(server, method, path):
                    continue
                if rule.at is not None and (span is None or not span[0] <= rule.at < span[1]):
                    continue
                if rule.passed < rule.skip:
                    rule.passed += 1
                    continue
                rule.hits += 1
                return rule
        return None


class Throttle:
    """A token bucket: at most `rate` bytes per second over all its users, 0 for no limit."""

    def __init__(self, rate: float = 0) -> None:
        self.rate = rate
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self, size: int) -> None:
        if not self.rate:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(self._next, now)
            self._next = begin + size / self.rate
        if begin + size / self.rate > now:
            time.sleep(begin + size / self.rate - now)
