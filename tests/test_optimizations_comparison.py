"""Pairs are checked before they are timed; what the times say is said, also when it is slower or the machine restless."""

import math
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import fmlab as fm
from fmlab.optimizations.clock import Cancelled, Times, in_turn, speedup
from fmlab.optimizations.memory import peak_nbytes
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


def test_a_way_that_changes_its_input_is_refused():
    def empties(values):
        found = sorted(values)
        values.clear()
        return found

    with pytest.raises(fm.optimizations.NotEquivalent, match="changes its inputs"):
        quick(replace(PAIR, optimised=empties), sizes=(5,))


@pytest.mark.parametrize("side", ["baseline", "optimised"])
def test_a_side_that_raises_is_named_and_is_no_speedup(side):
    def broken(values):
        raise KeyError("gone")

    with pytest.raises(fm.optimizations.SideFailed, match=f"the {side} way raised KeyError: 'gone'"):
        quick(replace(PAIR, **{side: broken}), sizes=(3,))


@pytest.mark.parametrize("sizes", [(), (-1,), (3, True)])
def test_sizes_that_are_none_are_refused(sizes):
    with pytest.raises(ValueError, match="sizes="):
        quick(PAIR, sizes=sizes)


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


@pytest.mark.parametrize("claim", [(0, 1), (2, 1), (-1, 2)])
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
