"""Prompts that no prefix cache has seen, and how long to make them.

A prompt starts with a few words drawn from the operating system's randomness, so that neither another prompt nor
another run shares its beginning; whole sentences of a bundled text in an order of its own follow, so that it reads as
language to a model that predicts several tokens at once.
"""

import random
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

_HEAD_WORDS = 6
_MEAN_SENTENCE = 110  # characters
TOLERANCE_PERCENT = 2


@cache
def _sentences() -> tuple[str, ...]:
    text = files("moorage.bench").joinpath("corpus.txt").read_text(encoding="ascii")
    return tuple(line for line in text.splitlines() if line)


@cache
def _words() -> tuple[str, ...]:
    return tuple(sorted({word.strip(".,;:!?'\"()-").lower() for line in _sentences() for word in line.split()} - {""}))


class PromptMaker:
    """Makes prompts of a given length in characters; `seed` fixes the order of sentences, never the first words."""

    def __init__(self, seed: int) -> None:
        self._order = random.Random(seed)
        self._fresh = random.SystemRandom()

    def make(self, length: int) -> str:
        """A prompt of exactly `length` ASCII characters (at least one)."""
        parts = [" ".join(self._fresh.choice(_words()) for _ in range(_HEAD_WORDS)) + "."]
        missing = length - len(parts[0])
        while missing > 0:
            # Made between two requests of a measurement, so no more sentences are drawn than are likely to be needed.
            parts += self._order.sample(_sentences(), min(missing // _MEAN_SENTENCE + 1, len(_sentences())))
            missing = length - sum(map(len, parts)) - len(parts)
        return " ".join(parts)[: max(length, 1)]


def first_length(tokens: int) -> int:
    """Characters to start the search for `tokens` tokens with: too few even where one token is one character."""
    return max(tokens // 2, 1)


def close_enough(actual: int, wanted: int) -> bool:
    """Whether `actual` prompt tokens pass for `wanted`."""
    return abs(actual - wanted) <= max(2, wanted * TOLERANCE_PERCENT // 100)


def next_length(seen: Sequence[tuple[int, int]], wanted: int) -> int:
    """Characters to try next, from the (characters, prompt tokens) seen so far.

    A chat template adds a constant, so after one try the answer to "proportionally how long" lies below the truth and
    never overshoots the model's context; from two on the line through the last two says where to go.
    """
    length, tokens = seen[-1]
    guess = length * wanted / max(tokens, 1)
    if len(seen) > 1:
        before, tokens_before = seen[-2]
        more = tokens - tokens_before
        if more * (length - before) > 0:
            more += 1 if more > 0 else -1  # counts are whole: of two that are close the difference may be one too small
            guess = length + (wanted - tokens) * (length - before) / more
    return max(1, min(round(guess), 4 * length))
