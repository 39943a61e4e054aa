"""A claim of speed as two functions that must give the same, on inputs of any size."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


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

    Both take what `inputs(size, seed)` gives, change none of it, and return the same: numbers within `tolerance`
    (absolute), everything else exactly. Any size from 0 on is an input. The claim is a range of speed-ups, baseline
    seconds over optimised seconds: "10-30% faster" is (1.1, 1.3).
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
    """The name in this lab that works the optimised way; None where it does not win and is not used."""

    def __post_init__(self) -> None:
        if self.claim is not None and not 0 < self.claim[0] <= self.claim[1]:
            raise ValueError(f"{self.name}: claim={self.claim}; give two speed-ups, the lower first, both above 0")
        if not self.tolerance >= 0:
            raise ValueError(f"{self.name}: tolerance={self.tolerance}; give 0 (exactly equal) or more")
