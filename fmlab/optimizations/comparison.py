"""A pair measured: that both ways give the same, then how much faster the optimised one is, size by size."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd

from .clock import in_turn, speedup
from .memory import peak_nbytes
from .pair import Pair
from .same import first_difference
from .verdict import Verdict, verdict

CHECKS = 3  # inputs of a size on which both must give the same
FRESH = 1_000  # the seed of the first of them; what is timed has seed 0


class NotEquivalent(ValueError):
    """The optimised way gives something else, so that there is no speed-up to speak of."""


class SideFailed(RuntimeError):
    """One of the two ways raised an error, so that there is no speed-up to speak of."""


class Sides(NamedTuple):
    """A figure of each way."""

    baseline: float | int
    optimised: float | int


@dataclass(frozen=True)
class Row:
    """One size."""

    size: int
    speedup: float
    """Baseline over optimised: the median of the rounds' ratios."""
    low: float
    high: float
    """The 95% interval of the speed-up."""
    n: int
    """Rounds."""
    seconds: Sides
    """Medians of a call."""
    nbytes: Sides
    """The most memory that a call holds at once."""
    verdict: Verdict
    unrest: str | None
    """What made the machine unstable meanwhile, if it was."""

    def __getitem__(self, name: str) -> object:
        return getattr(self, name)


@dataclass(frozen=True)
class Comparison:
    """The rows of a pair, a size each."""

    pair: Pair
    rows: tuple[Row, ...]

    def to_dataframe(self) -> pd.DataFrame:
        """One row a size; seconds, bytes and the claim in columns of their own."""
        low, high = self.pair.claim or (float("nan"), float("nan"))
        rows = []
        for row in self.rows:
            rows.append(
                {
                    "pair": self.pair.name, "size": row.size, "unit": self.pair.unit, "speedup": row.speedup, "low": row.low,
                    "high": row.high, "n": row.n, "baseline_seconds": row.seconds.baseline,
                    "optimised_seconds": row.seconds.optimised, "baseline_nbytes": row.nbytes.baseline,
                    "optimised_nbytes": row.nbytes.optimised, "claim_low": low, "claim_high": high,
                    "verdict": str(row.verdict), "floor": self._floor(row.size), "unrest": row.unrest,
                }
            )  # fmt: skip
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        head = f"{self.pair.name}: {claimed(self.pair)}"
        lines = [
            f"  {row.size:>9,} {self.pair.unit}: {ratio(row)}, n={row.n}, {duration(row.seconds.baseline)} -> "
            f"{duration(row.seconds.optimised)}, {in_bytes(row.nbytes.baseline)} -> {in_bytes(row.nbytes.optimised)}: {row.verdict}"
            + (f" (unstable machine: {row.unrest})" if row.unrest else "")
            for row in self.rows
        ]
        if floor := self._floor(self.rows[-1].size):
            lines.append(f"  at least, at {self.rows[-1].size:,}: {floor}")
        return "\n".join([head, *lines])

    def _floor(self, size: int) -> str | None:
        return str(self.pair.floor(size)) if self.pair.floor else None

    def _repr_html_(self) -> str:
        """The rows as a table."""
        head = [
            self.pair.unit,
            *"speed-up|95% interval|n|baseline|optimised|memory|verdict|machine|at least".split("|"),
        ]
        body = [
            (
                f"{row.size:,}", f"{row.speedup:.3g} x", f"{row.low:.3g}-{row.high:.3g}", row.n,
                duration(row.seconds.baseline), duration(row.seconds.optimised),
                f"{in_bytes(row.nbytes.baseline)}, then {in_bytes(row.nbytes.optimised)}", row.verdict, row.unrest or "stable",
                self._floor(row.size) or "–",
            )
            for row in self.rows
        ]  # fmt: skip
        lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in body]
        return (
            f"<table><caption>{escape(self.pair.name)}: {escape(claimed(self.pair))}</caption>"
            f"<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
        )


def compare(
    pair: Pair,
    sizes: Sequence[int] | None = None,
    rounds: int = 40,
    seconds: float = 60.0,
    after_round: Callable[[int, int], bool] = lambda size, done: True,
) -> Comparison:
    """Check that both ways of a pair give the same, then time them in turn, at each size (`pair.sizes` if None).

    Of every size three fresh inputs must give the same in both; the first twice over, so that what changes its input is
    found. A size is measured for `rounds` rounds or `seconds` seconds, whichever ends first, and 6 rounds at least.
    `after_round` hears the size and how many rounds are done, and may cancel by saying False.

    Raises NotEquivalent with the first difference; SideFailed where one of the two raises; Cancelled; ValueError for a
    size below 0 or too few rounds.
    """
    sizes = pair.sizes if sizes is None else tuple(sizes)
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 0 for size in sizes):
        raise ValueError(f"{pair.name}: sizes={sizes!r:.60}; give at least one size, whole numbers from 0 on")
    for size in sizes:
        check(pair, size)
    rows = []
    for size in sizes:
        given = pair.inputs(size, 0)
        baseline, optimised = partial(pair.baseline, *given), partial(pair.optimised, *given)
        times = in_turn(baseline, optimised, rounds, seconds, partial(after_round, size))
        faster = speedup(times)
        rows.append(
            Row(
                size,
                *faster,
                seconds=Sides(*(float(np.median(side)) for side in times)),
                nbytes=Sides(peak_nbytes(baseline), peak_nbytes(optimised)),
                verdict=verdict(*faster[:3], pair.claim),
                unrest=times.unrest(),
            )
        )
    return Comparison(pair, tuple(rows))


def check(pair: Pair, size: int, checks: int = CHECKS) -> None:
    """Raises NotEquivalent where both ways do not give the same on `checks` fresh inputs of a size, and for a pair that
    changes its inputs; SideFailed where one of the two raises."""
    for seed in range(FRESH, FRESH + checks):
        given = pair.inputs(size, seed)
        expected = _side(pair, "baseline", size, seed, given)
        found = _side(pair, "optimised", size, seed, given)
        if gap := first_difference(expected, found, pair.tolerance):
            raise NotEquivalent(
                f"{pair.name} at {size} {pair.unit}, seed {seed}: {gap} (tolerance {pair.tolerance:g}); the optimised way "
                "gives something else, so there is no speed-up"
            )
        if seed == FRESH:
            again = _side(pair, "baseline", size, seed, given)
            if gap := first_difference(expected, again, pair.tolerance):
                raise NotEquivalent(
                    f"{pair.name} at {size} {pair.unit}, seed {seed}: the baseline once more gives {gap}; one of the two "
                    "changes its inputs, or the baseline is not the same twice"
                )


def _side(pair: Pair, name: str, size: int, seed: int, given: tuple) -> object:
    run = pair.baseline if name == "baseline" else pair.optimised
    try:
        return run(*given)
    except Exception as error:  # whatever it is, it is this side's, and is raised on with the side's name
        raise SideFailed(
            f"{pair.name} at {size} {pair.unit}, seed {seed}: the {name} way raised {type(error).__name__}: {error}"
        ) from error


def claimed(pair: Pair) -> str:
    """The claim of a pair in words."""
    if pair.claim is None:
        return "nothing claimed"
    low, high = pair.claim
    return f"claimed {low:g} x" if low == high else f"claimed {low:g}-{high:g} x"


def ratio(row: Row) -> str:
    """A speed-up with its interval."""
    return f"{row.speedup:.3g} x [{row.low:.3g}, {row.high:.3g}]"


def duration(seconds: float | int) -> str:
    """Seconds in a readable unit."""
    for unit, scale in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def in_bytes(nbytes: float | int) -> str:
    """Bytes in a readable unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.3g} {unit}"
    return f"{nbytes:.0f} B"
