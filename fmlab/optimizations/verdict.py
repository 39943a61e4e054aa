"""What a measured speed-up says of a claim."""

from enum import StrEnum

LEAST = 0.02
"""A speed-up nearer to 1 than this is called no difference: two runs of the same code lie as far apart, which
`benchmarks/harness.py` shows."""


class Verdict(StrEnum):
    """The words of the tables."""

    CONFIRMED = "confirmed"
    SMALLER = "smaller"
    LARGER = "larger"
    NO_DIFFERENCE = "no difference"
    SLOWER = "slower"
    FASTER = "faster"
    """Of an optimisation of which nothing is claimed."""


def verdict(speedup: float, low: float, high: float, claim: tuple[float | int, float | int] | None) -> Verdict:
    """A speed-up with its 95% interval against a claimed range.

    No difference where the interval holds 1 or the speed-up is within 2% of it; slower below that. Of what is faster the
    claim is confirmed where the interval and the claimed range meet, so that they cannot be told apart. Raises ValueError
    for a figure that is NaN, of which nothing can be said.
    """
    if any(figure != figure for figure in (speedup, low, high)):
        raise ValueError(f"speed-up {speedup} [{low}, {high}]; give what was measured, a refused pair has no verdict")
    if low <= 1 <= high or abs(speedup - 1) < LEAST:
        return Verdict.NO_DIFFERENCE
    if speedup < 1:
        return Verdict.SLOWER
    if claim is None:
        return Verdict.FASTER
    if low > claim[1]:
        return Verdict.LARGER
    return Verdict.SMALLER if high < claim[0] else Verdict.CONFIRMED
