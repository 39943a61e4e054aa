"""A conversation memory scores spans; only `select` removes, and never keeps more tokens than the budget."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import index
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from ..core import BudgetError
from .packing import greedy, optimal
from .span import Span
from .template import SYSTEM

Spans = Sequence[Span]


@dataclass(frozen=True)
class Memory(ABC):
    """Keeps the spans of a conversation that are worth most, within a budget of tokens.

    Subclass it as a frozen dataclass with one method, `score`. The system prompt is pinned; the other spans are kept
    whole or not at all, in order. What is kept is the best by score that fits (`packing.greedy`), or with `exact=True`
    the set of the greatest sum of score times tokens (`packing.optimal`).
    """

    reads_query: ClassVar[bool] = False
    """Whether `select` looks at the query where there is one; what it keeps is then query-aware."""

    budget: int
    exact: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.budget, bool) or not hasattr(self.budget, "__index__") or self.budget < 1:
            raise BudgetError(f"budget={self.budget!r:.40}; give a number of tokens, 1 or more")
        object.__setattr__(self, "budget", index(self.budget))  # NumPy's integers too

    @abstractmethod
    def score(self, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
        """The worth of a token of each span: 0 or more, inf is pinned. The system prompt is not among the spans."""

    def select(self, spans: Spans, query: str | None = None) -> list[Span]:
        """The spans that are kept, in their order: their tokens, and what the prompt has `beside` them, fit the budget.

        Raises BudgetError where what is pinned exceeds it. A span larger than what the pinned ones leave is
        never kept.
        """
        others = [place for place, span in enumerate(spans) if span.role != SYSTEM]
        room = self.budget - self._pinned(spans)
        kept = self._pack([spans[place] for place in others], query, room) if others else []
        chosen = {others[place] for place in kept}
        return [span for place, span in enumerate(spans) if span.role == SYSTEM or place in chosen]

    def _pinned(self, spans: Spans) -> int:
        """The tokens of the system prompt, and of what the prompt has besides its spans."""
        pinned = sum(span.tokens for span in spans if span.role == SYSTEM)
        pinned += max((span.beside for span in spans), default=0)
        if pinned > self.budget:
            raise BudgetError(
                f"{type(self).__name__}: budget {self.budget} < {pinned} tokens of the system prompt, or of how a prompt "
                "without one begins; raise the budget or shorten the prompt"
            )
        return pinned

    def _pack(self, spans: Spans, query: str | None, room: int) -> list[int]:
        """The places of the spans that are kept within `room` tokens."""
        scores = scores_of(self, spans, query)
        tokens = np.array([span.tokens for span in spans])
        pinned = np.flatnonzero(np.isinf(scores))
        room -= int(tokens[pinned].sum())
        if room < 0:
            raise BudgetError(
                f"{type(self).__name__}: budget {self.budget} is {-room} tokens less than what is pinned; raise the budget "
                "or pin fewer spans"
            )
        free = np.flatnonzero(np.isfinite(scores))
        pack = optimal if self.exact else greedy
        return [*pinned.tolist(), *free[pack(scores[free], tokens[free], room)].tolist()]


def check_selects(name: str, memory: object) -> None:
    """Raise TypeError for what has not the `select` of a memory."""
    if not callable(getattr(memory, "select", None)):
        raise TypeError(f"{name}={memory!r:.60} has no select(spans, query); give a memory such as Sliding(1024)")


def scores_of(memory: Memory, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
    """What a memory thinks of each span, float64. Raises ValueError where that is not one number a span, 0 or more."""
    scores = np.asarray(memory.score(spans, query), dtype=np.float64)
    if scores.shape != (len(spans),) or not (scores >= 0).all():
        raise ValueError(
            f"{type(memory).__name__}.score gave shape {scores.shape} for {len(spans)} spans, or a score that is negative "
            "or NaN; give one number a span, 0 or more"
        )
    return scores
