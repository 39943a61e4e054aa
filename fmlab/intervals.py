"""Means with their 95% intervals: bootstrap over clusters, Wilson for proportions; and what no mean may mix."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

Z = 1.959963984540054  # the 97.5% point of the normal distribution


class Interval(NamedTuple):
    """A mean, its 95% interval and how many independent units (clusters) and values are behind it."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] n={self.n}"

    def overlaps(self, other: "Interval") -> bool:
        """Whether the two intervals overlap; then the means are not ranked."""
        return self.low <= other.high and other.low <= self.high


def bootstrap(
    values: Sequence[float | int] | np.ndarray,
    clusters: Sequence | np.ndarray | None = None,
    resamples: int = 4000,
    seed: int = 0,
) -> Interval:
    """The mean of `values` with a percentile interval; whole clusters are drawn with replacement.

    `clusters` names the unit of each value (its document, or its run of neighbouring tokens); without it every value is
    a unit. Give paired differences to compare two runs. With a single cluster the interval is NaN: nothing is known of
    the spread. Raises ValueError where there is no value or one is not finite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values of shape {values.shape}; give at least one number in one dimension")
    if not np.isfinite(values).all():
        raise ValueError(f"value {values[~np.isfinite(values)][0]} is not finite; leave out what could not be measured")
    _, unit = np.unique(np.arange(len(values)) if clusters is None else np.asarray(clusters), return_inverse=True)
    if len(unit) != len(values):
        raise ValueError(f"{len(unit)} clusters for {len(values)} values; name the cluster of each value")
    sums, counts = np.bincount(unit, values), np.bincount(unit)
    mean = float(values.mean())
    if len(sums) == 1:
        return Interval(mean, float("nan"), float("nan"), len(values), 1)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean, float(low), float(high), len(values), len(sums))


def wilson(successes: int, n: int) -> Interval:
    """A proportion with Wilson's score interval (E. B. Wilson 1927)."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}; give 0 <= successes <= n and n >= 1")
    share, spread = successes / n, Z**2 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z / (1 + spread) * (share * (1 - share) / n + spread / (4 * n)) ** 0.5
    return Interval(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)), n, n)  # rounding


def one_way(query_aware: Iterable[bool]) -> bool:
    """Whether the runs of a table, by its column `query_aware`, knew the question before the eviction. Raises ValueError
    where some did and some did not: these are two experiments."""
    ways = set(query_aware)
    if len(ways) != 1:
        raise ValueError(
            "the table mixes query-aware and query-blind runs; give one kind, such as rows[~rows.query_aware]"
        )
    return bool(ways.pop())
