"""Memories that do not read: everything, the newest turns, and a random sample. Controls, and what chats do by default."""

import sys
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from .memory import Memory, Spans


@dataclass(frozen=True)
class Full(Memory):
    """Control: everything is kept. It has no budget."""

    budget: int = field(default=sys.maxsize, init=False, repr=False)
    exact: bool = field(default=False, init=False, repr=False)

    def score(self, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
        return np.ones(len(spans))


@dataclass(frozen=True)
class Sliding(Memory):
    """The newest turns, with no gap: from the newest back, up to the first that does not fit.

    Where the newest alone is larger than the budget nothing is kept but what is pinned. What chats do by default
    (LangChain's `trim_messages`, strategy "last").
    """

    exact: bool = field(default=False, init=False, repr=False)  # there is one way to keep the newest with no gap

    def score(self, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
        """How new: 1 for the newest, an equal step less for each before it. Counts in a `Hybrid`."""
        return np.arange(1, len(spans) + 1) / max(1, len(spans))

    def _pack(self, spans: Spans, query: str | None, room: int) -> list[int]:
        first = len(spans)
        while first and spans[first - 1].tokens <= room:
            first -= 1
            room -= spans[first].tokens
        return list(range(first, len(spans)))


@dataclass(frozen=True)
class Random(Memory):
    """Control: every turn draws a number by its place, whatever it says and whatever comes later, and keeps it."""

    seed: int = 0

    def __post_init__(self) -> None:
        Memory.__post_init__(self)
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}; give 0 or more")

    def score(self, spans: Spans, query: str | None) -> Float[np.ndarray, " spans"]:
        return np.random.default_rng(self.seed).random(len(spans))  # the first n draws are the same for any length
