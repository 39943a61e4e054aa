import contextvars
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

import fmlab as fm
from fmlab.conversation import Deadline, Memory, Span

TALK = [Span("x" * n, n, "user", (i,)) for i, n in enumerate((3, 9, 5, 2))]


class Newest(Memory):
    def score(self, spans, query):
        return np.arange(1.0, len(spans) + 1)


@dataclass(frozen=True)
class Slow(Memory):
    """Keeps the oldest, once it is let go on; counts who is inside."""

    go: threading.Event
    inside: list
    most: list

    def score(self, spans, query):
        self.inside.append(query)
        self.most.append(len(self.inside))
        try:
            assert self.go.wait(20)
        finally:
            self.inside.remove(query)
        return np.arange(len(spans), 0.0, -1)


@pytest.fixture
def slow():
    memory = Slow(8, threading.Event(), [], [])
    yield memory
    memory.go.set()
    end = time.monotonic() + 5
    while memory.inside and time.monotonic() < end:
        time.sleep(0.01)
    assert memory.inside == []


def test_a_memory_in_time_is_heard(slow):
    slow.go.set()
    bounded = Deadline(slow, 10, Newest(8))
    assert bounded.select(TALK, "q") == slow.select(TALK) != Newest(8).select(TALK)
    assert bounded.stepped_in == () and bounded.budget == 8 and slow.inside == []


def test_a_late_memory_is_stepped_in_for_and_that_is_recorded(slow):
    bounded = Deadline(slow, 0.1, Newest(8))
    start = time.monotonic()
    assert bounded.select(TALK, "first") == Newest(8).select(TALK)
    assert 0.1 <= time.monotonic() - start < 2
    assert slow.inside == ["first"]  # it runs on
    assert bounded.select(TALK[:3], "second") == Newest(8).select(TALK[:3])
    assert slow.inside == ["first"]  # and nothing runs beside it
    assert [(record.spans, record.begun) for record in bounded.stepped_in] == [(4, True), (3, False)]
    assert all(0.1 <= record.seconds < 2 for record in bounded.stepped_in)
    slow.go.set()
    assert bounded.select(TALK, "third") == slow.select(TALK)
    assert len(bounded.stepped_in) == 2 and set(slow.most) == {1}


def test_waiting_for_an_earlier_selection_counts(slow):
    bounded = Deadline(slow, 0.6, Newest(8))
    bounded.select(TALK, "first")
    threading.Timer(0.2, slow.go.set).start()
    start = time.monotonic()
    assert bounded.select(TALK, "second") == slow.select(TALK)
    assert 0.15 < time.monotonic() - start < 0.6 and len(bounded.stepped_in) == 1


def test_selections_from_several_threads_stand_in_line(slow):
    bounded = Deadline(slow, 0.1, Newest(8))
    threads = [threading.Thread(target=bounded.select, args=(TALK, str(i))) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert len(bounded.stepped_in) == 4 and slow.most == [1]


@pytest.mark.parametrize(
    "error", [OSError("the encoder is gone"), TimeoutError("its own"), fm.BudgetError("too small")]
)
def test_what_the_memory_raises_is_raised(error):
    class Broken(Memory):
        def score(self, spans, query):
            raise error

    bounded = Deadline(Broken(8), 10, Newest(8))
    with pytest.raises(type(error), match=str(error)):
        bounded.select(TALK)
    assert bounded.stepped_in == ()
    with pytest.raises(type(error)):
        bounded.select(TALK)


def test_the_thread_sees_the_context_of_its_caller():
    where = contextvars.ContextVar("where", default="elsewhere")

    where.set("here")
    found = []

    class Seen(Newest):
        def score(self, spans, query):
            found.append((where.get(), query))
            return np.ones(len(spans))

    Deadline(Seen(99), 10, Newest(99)).select(TALK, "q")
    assert found == [("here", "q")]


def test_both_keep_to_one_budget_and_the_time_is_checked():
    with pytest.raises(ValueError, match="budgets of 8 and 9 tokens"):
        Deadline(Newest(8), 1.0, Newest(9))
    for wrong in (0, -1.0, float("nan"), float("inf"), True):
        with pytest.raises(ValueError, match="more than 0"):
            Deadline(Newest(8), wrong, Newest(8))


def test_a_chat_under_a_deadline_keeps_to_its_budget_and_says_who_chose(slow):
    lm = fm.tiny()
    patient = Slow(120, slow.go, slow.inside, slow.most)
    bounded = Deadline(patient, 0.05, Newest(120))
    chat = fm.ChatSession(lm, bounded, max_new_tokens=4)
    for turn in range(4):
        chat.send(f"Question {turn}, a little longer?")
        assert chat.stats.kept <= 120
    assert len(bounded.stepped_in) == 3  # there is nothing to score in the first turn
    with pytest.raises(fm.BudgetError, match="> budget 120 of Deadline"):
        chat.send("x" * 120)
