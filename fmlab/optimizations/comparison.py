"""A pair measured: that both ways give the same, then how much faster the optimised one is, size by size."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import NamedTuple

import numpy as np
import pandas as pd

from .clock import RunFailed, in_turn, speedup
from .equivalence import SIDES, TIMED, called, check, failed, place, prove, unchanged
from .held import held
from .memory import peak_nbytes
from .pair import Pair, checked_sizes
from .verdict import Verdict, verdict
from .wholes import in_the_wholes


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

    def floor(self, size: int) -> str | None:
        """The least that any way must move or compute at a size, in words; None where the pair tells none."""
        return str(self.pair.floor(size)) if self.pair.floor else None

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
                    "verdict": str(row.verdict), "floor": self.floor(row.size), "unrest": row.unrest,
                    "whole": "; ".join(in_the_wholes(self.pair.name)),
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
        if floor := self.floor(self.rows[-1].size):
            lines.append(f"  at least, at {self.rows[-1].size:,}: {floor}")
        lines += [f"  {line}" for line in in_the_wholes(self.pair.name)]
        return "\n".join([head, *lines])

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
                self.floor(row.size) or "–",
            )
            for row in self.rows
        ]  # fmt: skip
        lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in body]
        return (
            f"<table><caption>{escape(self.pair.name)}: {escape(claimed(self.pair))}</caption>"
            f"<tr>{''.join(f'<th>{name}</th>' for name in head)}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
            + "".join(f"<p>{escape(line)}</p>" for line in in_the_wholes(self.pair.name))
        )


def compare(
    pair: Pair,
    sizes: Iterable[int] | None = None,
    rounds: int = 40,
    seconds: float = 60.0,
    after_round: Callable[[int, int], bool] = lambda size, done: True,
) -> Comparison:
    """Check that both ways of a pair give the same, then time them in turn, at each size (`pair.sizes` if None).

    Of every size both must give the same on three fresh inputs, of which the seed of one is drawn, and on what is timed;
    each way gets inputs of its own there, which it must not change. A size is measured for `rounds` rounds or `seconds`
    seconds, whichever ends first, and 6 rounds at least. `after_round` hears the size and how many rounds are done, and
    may cancel by saying False.

    What inputs hold other than numbers, words, collections and dataclasses of them, such as a model, is not looked into.
    Raises NotEquivalent with the first difference, and where a way changes its inputs; SideFailed where one of the two
    or the inputs raise; Cancelled; ValueError for a size below 0 or too few rounds.
    """
    sizes = checked_sizes(pair.name, pair.sizes if sizes is None else sizes)
    for size in sizes:
        check(pair, size)
    return Comparison(pair, tuple(_measured(pair, size, rounds, seconds, partial(after_round, size)) for size in sizes))


def _measured(pair: Pair, size: int, rounds: int, seconds: float, after_round: Callable[[int], bool]) -> Row:
    given = prove(pair, size, TIMED)
    before = held(given)
    runs = [partial(getattr(pair, name), *given) for name in SIDES]  # of two copies one may lie better in memory
    at = place(pair, size, TIMED)
    ways = [f"{at}: the {name} way" for name in SIDES]
    try:
        times = in_turn(*runs, rounds, seconds, after_round)
    except RunFailed as error:
        raise failed(f"{ways[runs.index(error.run)]}, timed,", error.__cause__) from error.__cause__
    nbytes = [called(way, partial(peak_nbytes, run)) for way, run in zip(ways, runs, strict=True)]
    unchanged(f"{at}: one of the two, timed,", before, given)
    faster = speedup(times)
    return Row(
        size,
        *faster,
        seconds=Sides(*(float(np.median(side)) for side in times)),
        nbytes=Sides(*nbytes),
        verdict=verdict(*faster[:3], pair.claim),
        unrest=times.unrest(),
    )


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
