"""The ablation of a whole: every setting does the same work, and the figures are those of the table."""

import math
from collections.abc import Iterator

import pandas as pd
import pytest

from fmlab.optimizations import NotEquivalent
from fmlab.optimizations.clock import Cancelled
from fmlab.optimizations.whole import AGAIN, Workload, ablate, effects, interactions, label, settings, speedups, twos

SWITCHES = ("a", "b", "c")


def steps(on: frozenset[str]) -> Iterator[int]:
    yield from (10, 20, 30)


WORK = Workload("work", SWITCHES, steps)


def planted(
    cost: dict[str, float], under: list[frozenset[str]], scale: tuple[float, ...] = (1.0, 2.0, 4.0)
) -> pd.DataFrame:
    """Times of work in which each switch that is off costs its seconds, beside one second that no switch saves.

    The first step loads something besides, under whichever setting comes first.
    """
    return pd.DataFrame(
        [
            {
                "workload": "work", "step": step, "on": label(on),
                "seconds": times * (1 + sum(cost[name] for name in SWITCHES if name not in on)) + 5 * (step == 0 and on == under[0]),
            }
            for step, times in enumerate((1.0, *scale))
            for on in under
        ]
    )  # fmt: skip


def test_every_setting_does_every_step_once():
    table = ablate(WORK)
    assert set(table["on"]) == {"", "a", "b", "c", "a + b + c", "b + c", "a + c", "a + b", AGAIN}
    assert (table.groupby("on")["step"].apply(list).map(sorted).map(tuple) == (0, 1, 2)).all()
    assert (table["seconds"] > 0).all()


def test_settings_of_one_switch_are_two_and_twos_are_all_pairs():
    assert settings(("a",)) == [frozenset(), frozenset("a"), frozenset([AGAIN])]
    assert [label(on) for on in twos(SWITCHES)] == ["", "a", "b", "c", "a + b", "a + c", "b + c"]


def test_a_step_whose_result_a_switch_changes_is_refused():
    def wrong(on):
        yield 10
        yield 20 + ("b" in on and "c" in on)

    with pytest.raises(NotEquivalent, match=r"work, step 1, with .*b.*: result: 20, then 21"):
        ablate(Workload("work", SWITCHES, wrong))


def test_a_setting_that_stops_early_is_refused():
    with pytest.raises(NotEquivalent, match="step 1, with a: "):
        ablate(Workload("work", SWITCHES, lambda on: iter([10] if on == {"a"} else [10, 20])), twos(SWITCHES))


def test_unknown_switches_are_named_and_a_run_can_be_cancelled():
    with pytest.raises(ValueError, match="no switch 'd'; its switches: a, b, c"):
        ablate(WORK, [frozenset(), frozenset("d")])
    with pytest.raises(Cancelled, match="after 2 steps"):
        ablate(WORK, after_step=lambda done: done < 2)


def test_effects_are_those_that_were_planted():
    table = planted({"a": 2.0, "b": 1.0, "c": 0.0}, settings(SWITCHES))
    found = effects(table).set_index("optimisation")
    a = found.loc["a"]
    assert math.isclose(a.off_seconds, 7 * 4) and math.isclose(a.on_seconds, 7)
    assert math.isclose(a.alone, 2.0) and math.isclose(a.left_out, 3.0)
    assert math.isclose(a.saved_seconds, 14) and math.isclose(a.share, 0.5) and math.isclose(a.interaction, 2 / 3)
    assert math.isclose(a.share_low, 0.5) and math.isclose(a.share_high, 0.5)  # the same share of every step
    assert a.saved_low < 14 < a.saved_high  # but not the same seconds
    assert found.loc["c", ["alone", "left_out", "interaction"]].tolist() == [1, 1, 1]
    assert set(found["n"]) == {3}


def test_the_whole_under_each_setting():
    found = speedups(planted({"a": 2.0, "b": 1.0, "c": 0.0}, settings(SWITCHES))).set_index("on")
    assert math.isclose(found.loc["a + b + c", "speedup"], 4.0) and math.isclose(found.loc["", "speedup"], 1.0)
    assert math.isclose(found.loc["a + b", "seconds"], 7.0) and math.isclose(found.loc[AGAIN, "speedup"], 1.0)


def test_what_two_do_together():
    found = interactions(planted({"a": 2.0, "b": 1.0, "c": 0.0}, twos(SWITCHES))).set_index(["one", "other"])
    # 4 seconds; a alone 2, b alone 3, both 1: 4 x, where 2 x times 4/3 x would be 8/3 x
    assert math.isclose(found.loc[("a", "b"), "together"], 1.5) and math.isclose(found.loc[("a", "c"), "together"], 1.0)
    assert len(found) == 3


def test_one_step_is_no_more_than_a_warm_up():
    table = planted({"a": 2.0, "b": 1.0, "c": 0.0}, settings(SWITCHES))
    for figures in (effects, speedups, interactions):
        with pytest.raises(ValueError, match="work has one step, which is the warm-up; do two or more"):
            figures(table[table["step"] == 0])


def test_a_setting_that_was_not_measured_is_named():
    table = planted({"a": 2.0, "b": 1.0, "c": 0.0}, settings(SWITCHES))
    with pytest.raises(ValueError, match="nothing was measured with all off"):
        effects(table[table["on"] != ""])
    with pytest.raises(ValueError, match=r"nothing was measured with a \+ b"):
        effects(table[table["on"] != "a + b"])
