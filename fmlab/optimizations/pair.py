"""A claim of speed as two functions that must give the same, on inputs of any size."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np


class Floor(NamedTuple):
    """The least that any way of doing the work must move or compute."""

    amount: float
    unit: str
    """`bytes` or `operations`"""
    of: str
    """What they are, in a few words."""

    def __str__(self) -> str:
        return f"{self.amount:,.0f} {self.unit}: {self.of}"


@dataclass(frozen=True)
class Pair:
    """The best straightforward way and an optimised way of one piece of work.

    Both take what `inputs(size, seed)` gives, a tuple of arguments, change none of it, and return the same: numbers
    within `tolerance` (absolute), everything else exactly. Any size from 0 on is an input. The claim is a range of
    speed-ups, baseline seconds over optimised seconds. "X% faster" is read as 1 + X: "10-30% faster" is (1.1, 1.3), and
    not 1 / (1 - X), which would be X% less time, (1.11, 1.43).
    """

    name: str
    claim: tuple[float | int, float | int] | None
    source: str
    """Who claims it; or, where there is no claim, where in this lab the optimised way is relied on."""
    baseline: Callable[..., object]
    optimised: Callable[..., object]
    inputs: Callable[[int, int], tuple]
    tolerance: float | int = 0.0
    sizes: tuple[int, ...] = (10, 100, 1_000)
    """What is measured unless other sizes are asked for."""
    unit: str = "items"
    """What a size counts: `tokens`, `texts`, `cells`, …"""
    floor: Callable[[int], Floor] | None = None
    """The floor of a size."""
    used_in: str | None = None
    """The name in this lab that works the optimised way and that the lab itself calls; None where nothing does."""
    offered_as: str | None = None
    """The name that works the optimised way for who uses this library, and that the rest of the lab does not call."""

    def __post_init__(self) -> None:
        if self.claim is not None and not 0 < self.claim[0] <= self.claim[1] < inf:
            raise ValueError(f"{self.name}: claim={self.claim}; give two speed-ups, the lower first, both above 0")
        if not 0 <= self.tolerance < inf:
            raise ValueError(f"{self.name}: tolerance={self.tolerance}; give 0 (exactly equal) or a number above")
        checked_sizes(self.name, self.sizes)


def checked_sizes(name: str, sizes: object) -> tuple[int, ...]:
    """The sizes of a pair as a tuple. Raises ValueError for none, and for what is no whole number from 0 on."""
    given = tuple(sizes) if isinstance(sizes, Iterable) and not isinstance(sizes, str) else (None,)
    if not given or any(isinstance(s, bool) or not isinstance(s, int | np.integer) or s < 0 for s in given):
        raise ValueError(f"{name}: sizes={sizes!r:.60}; give several whole numbers from 0 on, at least one: (10, 100)")
    return given
