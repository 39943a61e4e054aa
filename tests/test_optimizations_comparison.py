"""Pairs are checked before they are timed; what the times say is said, also when it is slower or the machine restless."""

import math
import time
import tracemalloc
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

import fmlab as fm
from fmlab.optimizations.clock import Cancelled, Times, in_turn, speedup
from fmlab.optimizations.memory import peak_nbytes
from fmlab.optimizations.pair import checked_sizes
from fmlab.optimizations.verdict import Verdict, verdict

compare = fm.optimizations.compare


def plain(values: list[float]) -> list[float]:
    return sorted(values)


def numbers(size: int, seed: int) -> tuple[list[float]]:
    return (np.random.default_rng(seed).random(size).tolist(),)


PAIR = fm.optimizations.Pair("sorting", None, "nobody", plain, np.sort, numbers)
quick = partial(compare, rounds=6)


def test_a_comparison_has_a_row_a_size_with_what_the_design_names():
    measured = quick(PAIR, sizes=(0, 1, 50))
    assert [row.size for row in measured.rows] == [0, 1, 50]
    for row in measured.rows:
        assert row.low <= row.speedup <= row.high and row.n == 6
        assert row.speedup == row["speedup"] and 0 < row.seconds.baseline < 1 and 0 < row.seconds.optimised < 1
        assert row.verdict == verdict(row.speedup, row.low, row.high, None)
    table = measured.to_dataframe()
    assert list(table["size"]) == [0, 1, 50] and table["claim_low"].isna().all()
    assert "sorting" in repr(measured) and "50 items" in repr(measured) and measured._repr_html_().count("<tr>") == 4


def test_a_name_is_text_in_the_html_table():
    shown = quick(replace(PAIR, name="<script>", claim=(2, 3)), sizes=(1,))._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;: claimed 2-3 x" in shown


@pytest.mark.parametrize("size", [1, 50])
def test_one_changed_element_is_refused_with_its_place_size_and_seed(size):
    def wrong(values):
        found = sorted(values)
        found[-1] += 1e-9
        return found

    with pytest.raises(
        fm.optimizations.NotEquivalent, match=rf"sorting at {size} items, seed 1000: result\[{size - 1}\]"
    ):
        quick(replace(PAIR, optimised=wrong), sizes=(size,))
    assert quick(replace(PAIR, optimised=wrong, tolerance=1e-6), sizes=(size,)).rows


def test_a_way_that_is_wrong_on_some_inputs_only_is_found_on_fresh_ones():
    def wrong_half_of_the_time(values):
        return sorted(values)[: len(values) - (values[0] > 0.5)]

    with pytest.raises(fm.optimizations.NotEquivalent, match="items, then"):
        quick(replace(PAIR, optimised=wrong_half_of_the_time), sizes=(5, 6, 7, 8))


def sorts_in_place(values):
    values.sort()
    return list(values)


def turns_in_place(values):
    values.reverse()
    return values


def add_in_place(x):
    return x.add_(1)


def forget_in_place(x):
    return x.mul_(0)


class Box(NamedTuple):
    values: list[float]


@dataclass(frozen=True)
class Held:
    box: Box
    model: object


def in_a_box(size, seed):
    return (Held(Box(numbers(size, seed)[0]), torch.nn.Linear(1, 1)),)


@pytest.mark.parametrize(
    ("ways", "inputs", "says"),
    [
        ((lambda v: (v.sort(), v)[1], turns_in_place), numbers, r"the baseline way changes its inputs: inputs\[0\]\[\d\]"),
        ((plain, sorts_in_place), numbers, r"the optimised way changes its inputs: inputs\[0\]\[\d\]"),
        ((plain, lambda v: (sorted(v), v.clear())[0]), numbers, r"the optimised way changes its inputs: inputs\[0\]: 5 items, then 0"),
        ((add_in_place, forget_in_place), lambda size, seed: (torch.ones(size),), r"the baseline way changes its inputs"),
        ((plain, lambda v: sorted(v)), lambda size, seed: (iter([1.0]),), "a list_iterator, which is empty after"),
        ((lambda held: sorted(held.box.values), lambda held: sorts_in_place(held.box.values)), in_a_box,
         r"the optimised way changes its inputs: inputs\[0\]\['box'\]\[0\]\[\d\]"),
    ],
)  # fmt: skip
def test_a_way_that_changes_its_input_is_refused(ways, inputs, says):
    pair = replace(PAIR, baseline=ways[0], optimised=ways[1], inputs=inputs)
    with pytest.raises(fm.optimizations.NotEquivalent, match=says):
        quick(pair, sizes=(5,))


def test_inputs_that_ways_share_are_seen_to_change():
    shared = torch.ones(5)
    ways = {"baseline": lambda x: x + 1, "optimised": lambda x: x.add_(1)}
    with pytest.raises(fm.optimizations.NotEquivalent, match="the optimised way changes its inputs"):
        quick(replace(PAIR, **ways, inputs=lambda size, seed: (shared,)), sizes=(5,))


def test_a_result_is_what_it_was_when_it_was_given():
    out = [0.0]

    def baseline(values):
        out[0] = 1.0
        return out

    def optimised(values):
        out[0] = 2.0
        return out

    with pytest.raises(fm.optimizations.NotEquivalent, match=r"result\[0\]: 1.0, then 2.0"):
        quick(replace(PAIR, baseline=baseline, optimised=optimised), sizes=(5,))


def test_what_is_timed_and_a_drawn_input_are_checked_too():
    seen = []

    def inputs(size, seed):
        seen.append(seed)
        return (seed,)

    pair = replace(PAIR, baseline=lambda seed: seed, optimised=lambda seed: seed, inputs=inputs)
    quick(pair, sizes=(1,))
    assert {0, 1_000, 1_001} < set(seen) and len(set(seen)) == 4, "each seed for both ways"
    drawn = max(seen)
    assert drawn >= 10_000 and all(seen.count(seed) == 2 for seed in seen)
    quick(pair, sizes=(1,))
    assert max(seen) != drawn or len(set(seen)) == 5
    with pytest.raises(fm.optimizations.NotEquivalent, match=r"seed 0 \(timed\): result: 0, then 7"):
        quick(replace(pair, optimised=lambda seed: seed or 7), sizes=(1,))
    with pytest.raises(fm.optimizations.NotEquivalent, match=r"seed \d{5,} \(drawn\): result: \d+, then 1001"):
        quick(replace(pair, optimised=lambda seed: min(seed, 1_001)), sizes=(1,))


def test_a_way_that_changes_its_input_late_is_refused():
    calls = []

    def late(values):
        calls.append(1)
        if len(calls) > 20:
            values.sort()
        return sorted(values)

    with pytest.raises(
        fm.optimizations.NotEquivalent, match=r"seed 0 \(timed\): one of the two, timed, changes its inputs"
    ):
        quick(replace(PAIR, optimised=late), sizes=(50,))


def test_inputs_that_the_seed_does_not_say_are_refused():
    drawn = np.random.default_rng(5)
    with pytest.raises(fm.optimizations.NotEquivalent, match=r"made again, inputs\[0\].*; let the seed say"):
        quick(replace(PAIR, inputs=lambda size, seed: (drawn.random(size).tolist(),)), sizes=(5,))


@pytest.mark.parametrize("side", ["baseline", "optimised"])
def test_a_side_that_raises_is_named_and_is_no_speedup(side):
    def broken(values):
        raise KeyError("gone")

    with pytest.raises(fm.optimizations.SideFailed, match=f"the {side} way raised KeyError: 'gone'"):
        quick(replace(PAIR, **{side: broken}), sizes=(3,))


@pytest.mark.parametrize("side", ["baseline", "optimised"])
@pytest.mark.parametrize("after", [15, "tracing"])
def test_a_side_that_raises_while_it_is_timed_or_its_memory_is_taken_is_no_speedup(side, after):
    calls = []

    def fails_late(values):
        calls.append(1)
        if tracemalloc.is_tracing() if after == "tracing" else len(calls) > after:
            raise KeyError("gone")
        return sorted(values)

    with pytest.raises(fm.optimizations.SideFailed, match=f"the {side} way.* raised KeyError: 'gone'"):
        quick(replace(PAIR, **{side: fails_late}), sizes=(3,))
    assert not tracemalloc.is_tracing()


def test_inputs_that_raise_or_are_no_tuple_are_said():
    def gone(size, seed):
        raise FileNotFoundError("no book")

    with pytest.raises(fm.optimizations.SideFailed, match="the inputs raised FileNotFoundError: no book"):
        quick(replace(PAIR, inputs=gone), sizes=(3,))
    rows = {"baseline": lambda x, y: 0, "optimised": lambda x, y: 0}
    with pytest.raises(
        fm.optimizations.SideFailed, match=r"the inputs are a Tensor; give a tuple of arguments, \(x,\)"
    ):
        quick(replace(PAIR, **rows, inputs=lambda size, seed: torch.ones(2, 3)), sizes=(3,))


def test_results_that_cannot_be_compared_are_refused():
    class Odd:
        def __eq__(self, other):
            raise TypeError("no two are alike")

        __hash__ = None

    with pytest.raises(
        fm.optimizations.NotEquivalent, match=r"result cannot be compared \(Odd\), TypeError: no two are alike"
    ):
        quick(replace(PAIR, baseline=lambda values: Odd(), optimised=lambda values: Odd()), sizes=(3,))

    def around(values):
        found = []
        found.append(found)
        return found

    with pytest.raises(fm.optimizations.NotEquivalent, match=r"result cannot be compared \(list\), RecursionError"):
        quick(replace(PAIR, baseline=around, optimised=around), sizes=(3,))


def test_a_floor_that_raises_is_said_before_anything_is_measured():
    with pytest.raises(fm.optimizations.SideFailed, match="at 0 items: the floor raised ZeroDivisionError"):
        quick(replace(PAIR, floor=lambda size: fm.optimizations.Floor(1 / size, "bytes", "none")), sizes=(0,))


@pytest.mark.parametrize("sizes", [(), (-1,), (3, True)])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes=.*; give several whole numbers"):
        quick(PAIR, sizes=sizes)
    with pytest.raises(ValueError, match="sorting: sizes=.*; give several whole numbers"):
        replace(PAIR, sizes=sizes)


@pytest.mark.parametrize("sizes", [5, "5", None, (2.0,), ("5",)])
def test_what_is_no_sizes_at_all_is_refused(sizes):
    with pytest.raises(ValueError, match="sorting: sizes=.*; give several whole numbers from 0 on"):
        checked_sizes("sorting", sizes)


@pytest.mark.parametrize("tolerance", [float("inf"), float("nan"), -1.0])
def test_a_tolerance_that_lets_everything_pass_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance="):
        replace(PAIR, tolerance=tolerance)


def test_too_few_rounds_are_refused_and_a_measurement_can_be_cancelled():
    with pytest.raises(ValueError, match="rounds=5"):
        compare(PAIR, sizes=(3,), rounds=5)
    heard = []

    def until_two(size, done):
        heard.append((size, done))
        return done < 2

    with pytest.raises(Cancelled, match="after 2 of 40"):
        compare(PAIR, sizes=(3,), after_round=until_two)
    assert heard == [(3, 1), (3, 2)]


def test_what_takes_longer_than_allowed_has_fewer_rounds_but_six():
    slow = replace(PAIR, baseline=lambda values: (time.sleep(0.003), sorted(values))[1])
    (row,) = compare(slow, sizes=(2,), rounds=1_000, seconds=0.01).rows
    assert row.n == 6


@pytest.mark.parametrize("claim", [(0, 1), (2, 1), (-1, 2), (2, float("inf"))])
def test_a_claim_that_is_no_range_of_speedups_is_refused(claim):
    with pytest.raises(ValueError, match="claim="):
        replace(PAIR, claim=claim)


def test_the_speedup_is_the_median_of_the_rounds_ratios():
    baseline = np.array([2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0])
    found = speedup(Times(baseline, np.array([1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 7.0])))
    assert found.speedup == 3.0 and 2.0 <= found.low <= 3.0 <= found.high <= 4.0 and found.n == 7


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Ratios with a known median of 1.1: 400 intervals, of which 95% hold it; 90% is four standard errors less."""
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(400):
        ratios = 1.1 * np.exp(0.05 * draw.standard_t(3, size=40))
        found = speedup(Times(ratios, np.ones(40)), resamples=400)
        held += found.low <= 1.1 <= found.high
    assert 0.90 <= held / 400 <= 0.99


def test_each_round_times_both_in_an_order_that_changes():
    slow = []
    times = in_turn(
        lambda: (slow.append("b"), time.sleep(0.003)), lambda: (slow.append("o"), time.sleep(0.003)), rounds=10
    )
    assert len(times.baseline) == len(times.optimised) == 10
    pairs = ["".join(slow[-20:][at : at + 2]) for at in range(0, 20, 2)]
    assert set(pairs) == {"bo", "ob"}


@pytest.mark.parametrize(
    ("measured", "claim", "said"),
    [
        ((1.2, 1.15, 1.25), (1.1, 1.3), Verdict.CONFIRMED),
        ((1.2, 1.05, 1.35), (1.3, 1.5), Verdict.CONFIRMED),
        ((1.2, 1.15, 1.25), (1.3, 1.5), Verdict.SMALLER),
        ((9.0, 8.0, 9.5), (1.3, 1.5), Verdict.LARGER),
        ((1.2, 0.99, 1.4), (1.1, 1.3), Verdict.NO_DIFFERENCE),
        ((1.005, 1.001, 1.009), (1.1, 1.3), Verdict.NO_DIFFERENCE),
        ((0.8, 0.7, 0.9), (1.1, 1.3), Verdict.SLOWER),
        ((0.8, 0.7, 0.9), None, Verdict.SLOWER),
        ((2.0, 1.9, 2.1), None, Verdict.FASTER),
    ],
)
def test_verdicts(measured, claim, said):
    assert verdict(*measured, claim) == said


def test_of_a_figure_that_is_none_there_is_no_verdict():
    nan = float("nan")
    for measured in ((nan, nan, nan), (1.2, nan, 1.3)):
        with pytest.raises(ValueError, match="give what was measured"):
            verdict(*measured, (1.1, 1.3))


def test_an_unstable_machine_is_said():
    still = np.full(20, 1.0)
    assert Times(still, still).unrest() is None
    assert "apart" in str(Times(still, np.tile([1.0, 2.0], 10)).unrest())
    assert "second half" in str(Times(np.repeat([1.0, 1.2], 10), still).unrest())


def test_peak_bytes_of_tensors_and_arrays():
    def tensors():
        first = torch.zeros(1_000, 250)
        second = first + 1
        del first
        return (second * 2).sum()

    assert math.isclose(peak_nbytes(tensors), 2e6, rel_tol=0.05)
    assert math.isclose(peak_nbytes(lambda: np.zeros(500_000)), 4e6, rel_tol=0.01)
    held = torch.ones(1_000, 1_000)
    assert peak_nbytes(lambda: held.t().add_(1)) < 100_000  # it makes no tensor of its own
    assert math.isclose(peak_nbytes(lambda: [torch.zeros(1_000) for _ in range(100)]), 4e5, rel_tol=0.2)


def test_a_table_of_rows_can_be_joined_with_others():
    both = pd.concat(
        [quick(PAIR, sizes=(1,)).to_dataframe(), quick(replace(PAIR, claim=(1.1, 1.3)), sizes=(2,)).to_dataframe()]
    )
    assert list(both["claim_low"].notna()) == [False, True]
