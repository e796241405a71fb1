import asyncio
import itertools

import pytest

from moorage.bench.load import arrivals, closed_loop, poisson


def test_arrivals_are_seeded_and_have_the_rate_asked_for():
    times = arrivals(20_000, 5.0, seed=1)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert mean == pytest.approx(0.2, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.05), "an exponential distribution deviates by its mean"
    assert times == arrivals(20_000, 5.0, seed=1)
    assert times != arrivals(20_000, 5.0, seed=2)
    assert times[0] == 0.0


class Gauge:
    """Counts calls and how many of them run at once."""

    def __init__(self, fail_at=0):
        self.calls = 0
        self.running = 0
        self.most = 0
        self.cancelled = 0
        self.fail_at = fail_at

    async def __call__(self):
        self.calls += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.calls == self.fail_at:
                raise ValueError("enough")
            await asyncio.sleep(0.5 if not self.fail_at else 600)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def test_a_closed_loop_keeps_its_streams_busy_and_no_more():
    gauge = Gauge()
    await closed_loop(gauge, 20, 4)
    assert (gauge.calls, gauge.most) == (20, 4)


async def test_arrivals_wait_for_nobody():
    gauge = Gauge()
    await poisson(gauge, 20, 100_000, seed=0)
    assert (gauge.calls, gauge.most) == (20, 20)


async def test_one_exception_ends_a_load_at_once():
    gauge = Gauge(fail_at=3)
    with pytest.raises(ValueError, match="enough"):
        async with asyncio.timeout(60):
            await closed_loop(gauge, 20, 3)
    assert gauge.cancelled == 2
