"""What part of a whole each piece takes, by a clock around each: by Amdahl's law the most that any speed-up of it can save."""

from collections import defaultdict
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from time import perf_counter
from typing import ParamSpec, TypeVar

import pandas as pd

from .clock import Cancelled
from .whole import Setting, Workload, drawn_ratio, label, without_warm_up

Given, Result = ParamSpec("Given"), TypeVar("Result")


class Clock:
    """Seconds of named pieces, each without those of a piece inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside = [0.0]  # of every piece that is running, the seconds of those within it

    def time(self, name: str, run: Callable[[], Result]) -> Result:
        """What `run` gives; its seconds are counted."""
        self._inside.append(0.0)
        start = perf_counter()
        try:
            return run()
        finally:
            took = perf_counter() - start
            self.seconds[name] += took - self._inside.pop()
            self._inside[-1] += took


_CLOCK: ContextVar[Clock | None] = ContextVar("clock", default=None)


def piece(name: str, run: Callable[Given, Result]) -> Callable[Given, Result]:
    """`run` as the piece of this name, which `portions` clocks and nothing else notices."""

    @wraps(run)
    def clocked(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        clock = _CLOCK.get()
        return run(*args, **kwargs) if clock is None else clock.time(name, lambda: run(*args, **kwargs))

    return clocked


def portions(
    workload: Workload, on: Setting = frozenset(), after_step: Callable[[int], bool] = lambda done: True
) -> pd.DataFrame:
    """Do the work once with a clock around each piece that a switch could change; all switches are off unless named.

    One row a step and switch: `workload`, `step`, `on`, `optimisation`, `piece_seconds`, `seconds` (of the whole step). A
    piece that the work does not clock has 0. `after_step` may cancel as in `ablate`.
    """
    rows, running, step = [], workload.steps(on), 0
    while True:
        clock = Clock()
        token, start = _CLOCK.set(clock), perf_counter()
        try:
            next(running)
        except StopIteration:
            return pd.DataFrame(rows)
        finally:
            _CLOCK.reset(token)
        took = perf_counter() - start
        at = {"workload": workload.name, "step": step, "on": label(on)}
        rows += [
            at | {"optimisation": name, "piece_seconds": clock.seconds[name], "seconds": took}
            for name in workload.switches
        ]
        step += 1
        if not after_step(step):
            raise Cancelled(f"cancelled after {step} steps")


def amdahl(table: pd.DataFrame) -> pd.DataFrame:
    """The portion of the whole's seconds that each piece takes, one row a workload and optimisation, with 95% intervals
    that draw steps.

    `at_most` is 1 / (1 - portion), the speed-up of the whole if the piece took no time. The first step, the warm-up, is not
    counted. From `portions`; raises ValueError where a workload has one step.
    """
    found = []
    for (name, switch), rows in table.groupby(["workload", "optimisation"], sort=False):
        counted = without_warm_up(rows)
        value, low, high = drawn_ratio([counted["piece_seconds"].to_numpy()], [counted["seconds"].to_numpy()])
        row = {"workload": name, "optimisation": switch, "portion": value, "portion_low": low, "portion_high": high}
        found.append(row | {"at_most": 1 / (1 - value) if value < 1 else float("inf"), "n": len(counted)})
    return pd.DataFrame(found)
