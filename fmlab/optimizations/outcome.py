"""A pair tried: its comparison, or why there is none; and several of them as one table."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape

import pandas as pd

from .comparison import Comparison, claimed, compare
from .equivalence import NotEquivalent, SideFailed
from .pair import Pair, checked_sizes

NOTHING = float("nan")
WORDS = ("floor", "unrest", "whole", "error")  # columns of text, in which pandas makes NaN of a None beside a text


@dataclass(frozen=True)
class Refused:
    """A pair of which no speed-up can be told, since one of its ways fails or both do not give the same."""

    pair: Pair
    sizes: tuple[int, ...]
    """Those that were asked for; both ways must work at each of them."""
    error: NotEquivalent | SideFailed

    @property
    def verdict(self) -> str:
        """In the words of a table."""
        return "not equivalent" if isinstance(self.error, NotEquivalent) else "failed"

    def to_dataframe(self) -> pd.DataFrame:
        """The columns of `Comparison.to_dataframe`, without a figure and of no round, and the error; one row a size."""
        low, high = self.pair.claim or (NOTHING, NOTHING)
        figures = "speedup low high baseline_seconds optimised_seconds baseline_nbytes optimised_nbytes".split()
        rows = [
            {"pair": self.pair.name, "size": size, "unit": self.pair.unit, "n": 0, "claim_low": low, "claim_high": high}
            | dict.fromkeys(figures, NOTHING)
            | {"verdict": self.verdict, "floor": None, "unrest": None, "whole": None, "error": str(self.error)}
            for size in self.sizes
        ]
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"{self.pair.name}: {claimed(self.pair)}\n  {self.verdict}: {self.error}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.pair.name)}: <b>{self.verdict}</b>. {escape(str(self.error))}</p>"


def attempt(
    pair: Pair,
    sizes: Iterable[int] | None = None,
    rounds: int = 40,
    seconds: float = 60.0,
    after_round: Callable[[int, int], bool] = lambda size, done: True,
) -> Comparison | Refused:
    """What `compare` says of a pair, or its refusal of the pair. Raises what else `compare` raises."""
    sizes = checked_sizes(pair.name, pair.sizes if sizes is None else sizes)
    try:
        return compare(pair, sizes, rounds, seconds, after_round)
    except (NotEquivalent, SideFailed) as error:
        return Refused(pair, sizes, error)


def records(outcomes: Iterable[Comparison | Refused]) -> list[dict]:
    """The rows of several pairs, one a pair and size: those of `Comparison.to_dataframe` with the `error` of a refused
    pair, None for all others."""
    rows = [{"error": None} | row for each in outcomes for row in each.to_dataframe().to_dict("records")]
    return [row | {name: None for name in WORDS if row[name] != row[name]} for row in rows]


def table(outcomes: Iterable[Comparison | Refused]) -> pd.DataFrame:
    """The same as a data frame, which the figures draw."""
    return pd.DataFrame(records(outcomes))
