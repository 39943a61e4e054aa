"""The portion of a whole that each piece takes, by a clock that the test moves."""

import math
import re

import pytest

from fmlab.optimizations import Pair, chat, compare, grid
from fmlab.optimizations import portions as module
from fmlab.optimizations.clock import Cancelled
from fmlab.optimizations.portions import amdahl, piece, portions
from fmlab.optimizations.whole import Workload, ablate
from fmlab.optimizations.wholes import in_the_wholes


@pytest.fixture
def passes(monkeypatch):
    """A function that lets seconds pass on the clock of the module."""
    now = [0.0]
    monkeypatch.setattr(module, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def work(passes, steps=3):
    inner = piece("b", lambda: passes(2.0))

    def outer(before, *, after):
        passes(before)
        inner()
        passes(after)
        return before + after

    def begin(on):
        for _ in range(steps):
            passes(5.0)
            yield piece("a", outer)(1.0, after=0.5)
            inner()

    return Workload("work", ("a", "b", "c"), begin)


def test_a_piece_counts_what_is_not_in_a_piece_inside_it(passes):
    table = portions(work(passes))
    second = table[table["step"] == 1].set_index("optimisation")
    assert second["piece_seconds"].to_dict() == {"a": 1.5, "b": 4.0, "c": 0.0}  # b of the step before ends in this one
    assert set(second["seconds"]) == {10.5} and set(table["on"]) == {""}


def test_no_speedup_of_a_piece_saves_more_than_its_portion(passes):
    found = amdahl(portions(work(passes))).set_index("optimisation")
    a, none = found.loc["a"], found.loc["c"]
    assert math.isclose(a.portion, 1.5 / 10.5) and math.isclose(a.at_most, 10.5 / 9.0) and a.n == 2
    assert math.isclose(a.portion_low, a.portion) and math.isclose(a.portion_high, a.portion)
    assert none.portion == 0 and none.at_most == 1


def test_a_piece_that_raises_is_counted_and_the_clock_goes_on(passes):
    def fail():
        passes(3.0)
        raise KeyError("no")

    def begin(on):
        for _ in range(2):
            with pytest.raises(KeyError):
                piece("a", fail)()
            piece("b", lambda: passes(1.0))()
            yield None

    table = portions(Workload("work", ("a", "b"), begin)).set_index(["step", "optimisation"])
    assert table["piece_seconds"].to_list() == [3.0, 1.0, 3.0, 1.0]


def test_without_a_clock_a_piece_is_what_it_was(passes):
    def named(x):
        """Says so."""
        return x + 1

    assert piece("a", named)(1) == 2 and piece("a", named).__doc__ == "Says so."
    assert set(ablate(work(passes))["step"]) == {0, 1, 2}


def test_one_step_is_refused_and_a_run_can_be_cancelled(passes):
    with pytest.raises(ValueError, match="one step, which is the warm-up"):
        amdahl(portions(work(passes, steps=1)))
    with pytest.raises(Cancelled, match="after 1 steps"):
        portions(work(passes), after_step=lambda done: False)
    piece("a", passes)(1.0)
    assert portions(work(passes))["piece_seconds"].max() == 4.0  # nothing is left of the run that was ended


def test_a_speedup_of_a_piece_is_shown_beside_what_it_does_to_the_wholes():
    pair = Pair("KV carry-over", None, "a test", sum, sum, lambda size, seed: ([1] * size,), sizes=(8,))
    found = compare(pair, rounds=6, seconds=0.1)
    [line] = in_the_wholes(pair.name)
    assert re.fullmatch(
        r"the whole chat with this alone: [\d.]+ x \[.*\]; the piece is 0\.\d+ of its time, which allows .*", line
    )
    assert line in repr(found) and line in found._repr_html_() and found.to_dataframe()["whole"].tolist() == [line]
    assert in_the_wholes("a pair of one's own") == ("no whole was measured with this as a switch",)
    switches = {name for work in (chat.SWITCHES, grid.SWITCHES) for name in (pair.name for pair in work)}
    assert all("the whole" in in_the_wholes(name)[0] for name in switches)
