"""What each memory keeps of a conversation at each budget, computed once and remembered."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import fmlab as fm

STOPS = 32  # of the budget slider: shares of the tokens in equal steps

Memories = Mapping[str, "Callable[[int], fm.conversation.Memory] | fm.conversation.Memory"]


@dataclass(frozen=True)
class Kept:
    """What one memory keeps at one budget."""

    spans: tuple["fm.conversation.Span", ...]
    tokens: int
    """Of the spans, and of what the prompt has `beside` them."""
    budget: int
    query_aware: bool


class Selections:
    """The selections of several memories from one conversation, by label, query and stop.

    `memories` are functions from a budget in tokens to a memory, or memories, of which only the budget is changed. Stop k
    of STOPS is a budget of k / STOPS of the tokens of `spans`, 1 or more, and what a prompt has `beside` them. For
    several threads: one selects at a time, since encoders and tokenizers are not made for more. Raises ValueError for no
    spans and no memories.
    """

    def __init__(self, spans: Sequence["fm.conversation.Span"], memories: Memories):
        if not spans or not memories:
            raise ValueError(f"{len(spans)} spans and {len(memories)} memories; give at least one of each")
        self.spans, self.memories = tuple(spans), dict(memories)
        self.total = sum(span.tokens for span in self.spans)
        self.beside = max(span.beside for span in self.spans)
        self.busy = threading.Lock()
        self._known: dict[tuple[str, str | None, int], Kept] = {}

    def budget(self, stop: int) -> int:
        return self.beside + max(1, round(self.total * stop / STOPS))

    def at(self, label: str, query: str | None, stop: int) -> Kept:
        """What the memory keeps; raises whatever it raises."""
        key = label, query, stop
        with self.busy:
            if key not in self._known:
                budget = self.budget(stop)
                memory = self._memory(label, budget)
                reads = query is not None and getattr(memory, "reads_query", False)
                kept = tuple(memory.select(self.spans, query))
                tokens = self.beside + sum(span.tokens for span in kept)
                self._known[key] = Kept(kept, tokens, budget, reads)
            return self._known[key]

    def known(self, label: str, query: str | None) -> dict[int, Kept]:
        """What is remembered of a memory and a query, by stop."""
        return {
            stop: kept for (name, asked, stop), kept in list(self._known.items()) if (name, asked) == (label, query)
        }

    def _memory(self, label: str, budget: int) -> "fm.conversation.Memory":
        given = self.memories[label]
        return replace(given, budget=budget) if hasattr(given, "select") else given(budget)
