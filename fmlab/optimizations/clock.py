"""Two ways of the same work timed in turn, in one process and in random order; and whether the machine kept still."""

import gc
import random
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

LEAST_SECONDS = 2e-3
"""What is timed at once: a shorter call is repeated until it takes as long."""
FEWEST_ROUNDS = 6
"""Of fewer no 95% interval of a median can be told: all on one side of it has a chance of 2 / 2^5 then."""
WARM_UP = 2
SPREAD = 0.25
"""Of the middle half of the times, as a share of their median: above it the machine is called unstable."""
DRIFT = 0.10
"""Of the median from the first half of the rounds to the second, likewise."""

Run = Callable[[], object]


class Cancelled(Exception):
    """A measurement was ended before it was done."""


class RunFailed(RuntimeError):
    """What is timed raised an error, which is the cause of this one."""

    def __init__(self, run: Run, error: Exception):
        super().__init__(f"what is timed raised {type(error).__name__}: {error}")
        self.run = run


class Times(NamedTuple):
    """Seconds a call, a number a round."""

    baseline: Float[np.ndarray, " rounds"]
    optimised: Float[np.ndarray, " rounds"]

    def unrest(self) -> str | None:
        """What made the machine unstable while this was measured; None where it kept still enough."""
        for times in self:
            half, middle = len(times) // 2, float(np.median(times))
            low, high = np.quantile(times, [0.25, 0.75])
            if high - low > SPREAD * middle:
                return f"half of the rounds lie {(high - low) / middle:.0%} apart"
            drift = float(np.median(times[half:]) / np.median(times[:half]) - 1)
            if abs(drift) > DRIFT:
                return f"the second half of the rounds took {drift:+.0%}"
        return None


class Speedup(NamedTuple):
    """Baseline over optimised: the median of the rounds' ratios, with its 95% interval."""

    speedup: float
    low: float
    high: float
    n: int


def in_turn(
    baseline: Run,
    optimised: Run,
    rounds: int = 40,
    seconds: float = float("inf"),
    after_round: Callable[[int], bool] = lambda done: True,
) -> Times:
    """Time both in each of `rounds` rounds, in an order that is drawn; fewer where `seconds` are over, but 6 at least.

    Python's garbage collection waits meanwhile. `after_round` hears how many rounds are done; where it says False,
    Cancelled is raised. Raises ValueError for fewer than 6 rounds, RunFailed where one of the two raises.
    """
    if rounds < FEWEST_ROUNDS:
        raise ValueError(
            f"rounds={rounds}; give {FEWEST_ROUNDS} or more: of fewer there is no 95% interval of a median"
        )
    calls = {run: _calls(run) for run in (baseline, optimised)}
    order, start = random.Random(0), perf_counter()
    times: list[tuple[float, float]] = []
    while len(times) < rounds and (len(times) < FEWEST_ROUNDS or perf_counter() - start < seconds):
        took = [0.0, 0.0]
        for side in order.sample((0, 1), 2):
            run = (baseline, optimised)[side]
            took[side] = _seconds(run, calls[run]) / calls[run]
        times.append((took[0], took[1]))
        if not after_round(len(times)):
            raise Cancelled(f"cancelled after {len(times)} of {rounds} rounds")
    return Times(*np.array(times).T)


def speedup(times: Times, resamples: int = 4_000) -> Speedup:
    """The median of the rounds' ratios, with a percentile bootstrap over the rounds."""
    ratios = times.baseline / times.optimised
    drawn = np.random.default_rng(0).integers(len(ratios), size=(resamples, len(ratios)))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
    return Speedup(median(ratios.tolist()), float(low), float(high), len(ratios))


def _calls(run: Run) -> int:
    """How many calls are timed at once; they warm it up, too."""
    for _ in range(WARM_UP):
        once = _seconds(run, 1)
    calls = 1
    while once < LEAST_SECONDS and calls < 1_000_000:
        calls = max(2 * calls, int(calls * LEAST_SECONDS / max(once, 1e-7)))
        once = _seconds(run, calls)
    return calls


def _seconds(run: Run, calls: int) -> float:
    gc.collect(0)
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = perf_counter()
        for _ in range(calls):
            run()
        return perf_counter() - start
    except Exception as error:  # whatever it is, it is raised on with what raised it
        raise RunFailed(run, error) from error
    finally:
        if collecting:
            gc.enable()
