"""A slow memory with a bound on its time: what takes longer is selected by another memory, and that is recorded."""

import threading
import time
from concurrent.futures import Future
from contextvars import copy_context
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from .memory import Spans, check_selects
from .span import Span


@dataclass(frozen=True)
class StepIn:
    """One selection that was not there in time."""

    seconds: float
    """How long it was waited for."""
    spans: int
    """From how many spans it was to choose."""
    begun: bool
    """False where the memory was still at an earlier selection and never came to this one."""


@dataclass(frozen=True)
class Deadline:
    """Gives `memory.select` a number of seconds; where it takes longer, `otherwise.select` chooses and `stepped_in` says so.

    The selection runs in a thread, and a thread cannot be killed: one that is late runs on in the background, and what it
    finds is dropped. There is never more than one: the next selection waits for it, and its waiting counts. So a memory
    that changes the model it reads (its attention function, say) must not be given the one that answers. What `memory`
    raises in time is raised; what a late one raises is dropped with it.

    The bound is on the waiting: `otherwise` takes its own time on top. Both keep to one budget. Raises ValueError for
    budgets that differ and for seconds that are no positive number, TypeError for what is no memory.
    """

    memory: Any
    seconds: float | int
    otherwise: Any
    _records: list[StepIn] = field(default_factory=list, init=False, repr=False, compare=False)
    _running: list[threading.Thread] = field(default_factory=list, init=False, repr=False, compare=False)
    _turn: Any = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_selects("memory", self.memory)
        check_selects("otherwise", self.otherwise)
        if (
            isinstance(self.seconds, bool)
            or not isinstance(self.seconds, Real)
            or not 0 < self.seconds < threading.TIMEOUT_MAX
        ):
            raise ValueError(f"seconds={self.seconds!r:.40}; give how long to wait, more than 0")
        budgets = [getattr(memory, "budget", None) for memory in (self.memory, self.otherwise)]
        if budgets[0] != budgets[1]:
            raise ValueError(f"the memories have budgets of {budgets[0]} and {budgets[1]} tokens; give both the same")

    @property
    def budget(self) -> int | None:
        """The budget of both; None where they have none."""
        return getattr(self.memory, "budget", None)

    @property
    def reads_query(self) -> bool:
        """Whether either of them looks at the query."""
        return any(getattr(memory, "reads_query", False) for memory in (self.memory, self.otherwise))

    @property
    def stepped_in(self) -> tuple[StepIn, ...]:
        """Every time that `otherwise` had to choose, oldest first."""
        return tuple(self._records)

    def select(self, spans: Spans, query: str | None = None) -> list[Span]:
        """What `memory` selects if it is in time, else what `otherwise` does."""
        start = time.monotonic()
        with self._turn:
            if self._running:
                self._running[0].join(self.seconds)
            if begun := not (self._running and self._running[0].is_alive()):
                found = self._begin(list(spans), query)
                self._running[0].join(max(0.0, self.seconds - (time.monotonic() - start)))
                if found.done():  # not by a TimeoutError, which the memory itself may raise
                    return found.result()
            self._records.append(StepIn(time.monotonic() - start, len(spans), begun))
        return self.otherwise.select(spans, query)

    def _begin(self, spans: Spans, query: str | None) -> Future:
        found: Future = Future()

        def work() -> None:
            try:
                found.set_result(self.memory.select(spans, query))
            except BaseException as error:  # handed to who waits, not hidden
                found.set_exception(error)

        # A daemon, which does not keep the interpreter from ending, as an executor's thread would.
        self._running[:] = [threading.Thread(target=copy_context().run, args=(work,), daemon=True)]
        self._running[0].start()
        return found
