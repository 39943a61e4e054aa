"""What each optimisation is worth to a whole piece of work: every one a switch, and the work done under many settings in turn."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from time import perf_counter

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from .clock import Cancelled
from .equivalence import NotEquivalent
from .same import first_difference

RESAMPLES = 4_000
SEPARATOR = " + "
AGAIN = "nothing, once more"
"""A setting in which no switch is on, as in all off: how far two runs of the same lie apart."""
Setting = frozenset[str]
Seconds = Float[np.ndarray, " steps"]


@dataclass(frozen=True)
class Workload:
    """Work in steps, whose result no switch changes."""

    name: str
    switches: tuple[str, ...]
    """The optimisations, by the names of their pairs."""
    steps: Callable[[Setting], Iterator[object]]
    """Begins the work with these switches on; each `next` does a step and gives its result."""
    tolerance: float = 0.0
    """Of the numbers of a result, absolute."""


def settings(switches: Sequence[str]) -> list[Setting]:
    """All off, all on, each one alone, each one left out; and all off once more, as AGAIN."""
    every = frozenset(switches)
    found = [frozenset(), every, *(frozenset([name]) for name in switches), *(every - {name} for name in switches)]
    return list(dict.fromkeys([*found, frozenset([AGAIN])]))


def twos(switches: Sequence[str]) -> list[Setting]:
    """All off, each one alone, each two together: what `interactions` needs."""
    return [frozenset(on) for count in (0, 1, 2) for on in combinations(switches, count)]


def ablate(
    workload: Workload,
    under: Sequence[Setting] | None = None,
    after_step: Callable[[int], bool] = lambda done: True,
    seed: int = 0,
) -> pd.DataFrame:
    """Do the work under each setting (`settings` if None), all of them step by step, in an order drawn for every step.

    One row a step and setting: `workload`, `step`, `on` (what is on, joined by " + "), `seconds`. The first step is the
    warm-up: whichever setting it begins with loads what all of them use, so no figure counts it. `after_step` hears how
    many steps are done; where it says False, Cancelled is raised. Raises NotEquivalent where a step's result is not that
    of the first setting; ValueError for a setting with a switch that the work does not have.
    """
    under = settings(workload.switches) if under is None else list(under)
    if unknown := sorted(frozenset().union(*under) - {*workload.switches, AGAIN}):
        raise ValueError(f"{workload.name} has no switch {unknown[0]!r}; its switches: {', '.join(workload.switches)}")
    running = {on: workload.steps(on) for on in under}
    order, rows, step = random.Random(seed), [], 0
    while True:
        results = {}
        for on in order.sample(under, len(under)):
            start = perf_counter()
            try:
                results[on] = next(running[on])
            except StopIteration:
                continue
            rows.append({"workload": workload.name, "step": step, "on": label(on), "seconds": perf_counter() - start})
        if not results:
            return pd.DataFrame(rows)
        for on in under:
            if gap := first_difference(results.get(under[0]), results.get(on), workload.tolerance):
                raise NotEquivalent(f"{workload.name}, step {step}, with {label(on) or 'all off'}: {gap}")
        step += 1
        if not after_step(step):
            raise Cancelled(f"cancelled after {step} steps")


def label(on: Setting) -> str:
    """A setting as a text: what is on, joined by " + "."""
    return SEPARATOR.join(sorted(on))


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """What each switch is worth to the whole, one row a workload and optimisation, with 95% intervals that draw steps.

    `alone` is all off over this one on, `left_out` all but this one on over all on: the speed-ups of the whole. `saved` is
    what it saves alone in seconds, and `share` that over all off; what it could save at the most, `portions` clocks.
    `interaction` is alone over left out: above 1 where the others take over what it saves alone, below 1 where it saves
    more beside them. `n` is the steps but for the first, the warm-up. Raises ValueError where a setting was not measured,
    and for one step.
    """
    found = []
    for name, rows in table.groupby("workload", sort=False):
        seconds = _wide(rows)
        every = max((on for on in seconds if on != AGAIN), key=lambda on: len(_parts(on)))
        for switch in sorted(_parts(every)):
            columns = ["", every, switch, label(_parts(every) - {switch})]
            if missing := [on for on in columns if on not in seconds]:
                raise ValueError(
                    f"{name}: nothing was measured with {missing[0] or 'all off'}; ablate under settings()"
                )
            off, on, alone, without = (seconds[column].to_numpy() for column in columns)
            left, left_low, left_high = drawn_ratio([alone], [off])
            saved = (off - alone)[_draws(len(off))].sum(-1)
            figures = {
                "alone": drawn_ratio([off], [alone]),
                "left_out": drawn_ratio([without], [on]),
                "saved": (float((off - alone).sum()), *map(float, np.quantile(saved, [0.025, 0.975]))),
                "share": (1 - left, 1 - left_high, 1 - left_low),
                "interaction": drawn_ratio([off, on], [alone, without]),
            }
            row = {"workload": name, "optimisation": switch, "off_seconds": off.sum(), "on_seconds": on.sum()}
            for figure, (value, low, high) in figures.items():
                row |= {figure: value, f"{figure}_low": low, f"{figure}_high": high}
            found.append(row | {"n": len(off)})
    return pd.DataFrame(found).rename(columns={"saved": "saved_seconds"})


def speedups(table: pd.DataFrame) -> pd.DataFrame:
    """The speed-up of the whole under every setting against all off, one row a workload and setting, with 95% intervals.

    The first step, the warm-up, is not counted. Raises ValueError where it is the only one.
    """
    found = []
    for name, rows in table.groupby("workload", sort=False):
        seconds = _wide(rows)
        for on in seconds:
            off, took = seconds[""].to_numpy(), seconds[on].to_numpy()
            row = {"workload": name, "on": on, "seconds": took.sum()}
            found.append(
                row | dict(zip(("speedup", "low", "high"), drawn_ratio([off], [took]), strict=True)) | {"n": len(off)}
            )
    return pd.DataFrame(found)


def interactions(table: pd.DataFrame) -> pd.DataFrame:
    """How two switches act together, one row for each two: the speed-up of both over the product of each one's.

    1 where each saves its share of whatever is left; above where both together save more than that, below where they save
    the same thing. From `ablate(workload, twos(names))`, whose first step, the warm-up, is not counted.
    """
    found = []
    for name, rows in table.groupby("workload", sort=False):
        seconds = _wide(rows)
        for both in (on for on in seconds if len(_parts(on)) == 2):
            one, other = sorted(_parts(both))
            off, a, b, ab = (seconds[on].to_numpy() for on in ("", one, other, both))
            row = {"workload": name, "one": one, "other": other}
            together = dict(zip(("together", "low", "high"), drawn_ratio([a, b], [off, ab]), strict=True))
            found.append(row | together | {"n": len(off)})
    return pd.DataFrame(found)


def drawn_ratio(above: Sequence[Seconds], below: Sequence[Seconds]) -> tuple[float, float, float]:
    """The product of the sums above over that of the sums below, with its 95% interval."""

    def of(steps: Int[np.ndarray, "*draws steps"]) -> Float[np.ndarray, "*draws"]:
        return np.asarray(np.prod([s[steps].sum(-1) for s in above], 0) / np.prod([s[steps].sum(-1) for s in below], 0))

    low, high = np.quantile(of(_draws(len(above[0]))), [0.025, 0.975])
    return float(of(np.arange(len(above[0])))), float(low), float(high)


def without_warm_up(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of all steps but the first. Raises ValueError where there is no other."""
    first, last = rows["step"].min(), rows["step"].max()
    if first == last:
        raise ValueError(f"{rows['workload'].iloc[0]} has one step, which is the warm-up; do two or more")
    return rows[rows["step"] > first]


def _wide(rows: pd.DataFrame) -> pd.DataFrame:
    """Seconds with a row a step and a column a setting, the warm-up left out."""
    return without_warm_up(rows).pivot_table(index="step", columns="on", values="seconds", sort=False)


def _parts(on: str) -> frozenset[str]:
    return frozenset(on.split(SEPARATOR)) if on else frozenset()


def _draws(steps: int) -> Int[np.ndarray, "resamples steps"]:
    return np.random.default_rng(0).integers(steps, size=(RESAMPLES, steps))
