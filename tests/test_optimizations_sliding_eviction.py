"""A window of the newest tokens as a list and as a deque, and as two slices."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmlab.optimizations.sliding_eviction import BUDGET, PAIR


@given(st.lists(st.integers(0, 9), max_size=40), st.integers(1, 12))
def test_both_leave_the_newest_and_evict_the_rest_in_order(ids, budget):
    before = list(ids)
    leaves = max(0, len(ids) - budget)
    assert PAIR.baseline(ids, budget) == PAIR.optimised(ids, budget) == (before[:leaves], before[leaves:])
    assert ids == before


@pytest.mark.real
@pytest.mark.parametrize("size", [0, 1, BUDGET, BUDGET + 1, 3_000])
def test_real_inputs(lm, size):
    ids, budget = PAIR.inputs(size, 3)
    evicted, window = PAIR.optimised(ids, budget)
    assert (evicted, window) == PAIR.baseline(ids, budget)
    assert len(evicted) == max(0, size - BUDGET) and evicted + window == ids


def test_the_floor_counts_what_is_evicted():
    assert [PAIR.floor(size).amount for size in (0, 1, BUDGET, BUDGET + 10)] == [0, 1, BUDGET, BUDGET + 20]
