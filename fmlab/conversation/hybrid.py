"""Several memories as one: their scores as ranks, added by weight."""

import math
from dataclasses import dataclass
from numbers import Real

import numpy as np
from jaxtyping import Float

from .memory import Memory, Spans, scores_of

PAIRS = "give (memory, weight) pairs, such as ((Sliding(512), 1.0), (Random(512), 0.5))"


@dataclass(frozen=True)
class Hybrid(Memory):
    """The weighted sum of what several memories think of each span: `parts` are (memory, weight) pairs.

    Added are ranks, from 0 for the lowest score of a part to 1 for its highest, the mean of their ranks for equal ones:
    the scores themselves have no common unit (BM25 has no upper end, similarities crowd together, recency is even), so
    the part with the widest spread would settle their sum whatever its weight. What a part pins is pinned. The budget is
    the Hybrid's; what a part's own budget is matters only to a part that scores by it.
    """

    parts: tuple[tuple[Memory, float], ...]

    def __post_init__(self) -> None:
        Memory.__post_init__(self)
        if not self.parts:
            raise ValueError(f"parts=(); {PAIRS}")
        if not isinstance(self.parts, tuple):
            raise TypeError(f"parts={self.parts!r:.60}; {PAIRS}")
        for pair in self.parts:
            if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], Memory):
                raise TypeError(f"{pair!r:.60} among the parts; {PAIRS}")
            part, weight = pair
            if not (isinstance(weight, Real) and math.isfinite(weight) and weight > 0):
                raise ValueError(f"weight {weight!r:.40} of {part!r:.60}; give a number above 0, or leave the part out")

    @property
    def reads_query(self) -> bool:
        """Whether any part does."""
        return any(part.reads_query for part, _ in self.parts)

    def score(self, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
        total = np.zeros(len(spans))
        for part, weight in self.parts:
            scores = scores_of(part, spans, query)
            total += weight * np.where(np.isinf(scores), np.inf, ranks(scores))
        return total


def ranks(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Where each score stands from 0, the lowest, to 1, the highest; equal ones share the mean of their ranks."""
    _, group, size = np.unique(scores, return_inverse=True, return_counts=True)
    return (np.cumsum(size) - (size + 1) / 2)[group] / max(1, len(scores) - 1)
