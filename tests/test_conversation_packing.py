from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmlab.conversation.packing import greedy, optimal

SPANS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 12)), max_size=9)


def columns(spans):
    scores, tokens = zip(*spans, strict=True) if spans else ((), ())
    return np.array(scores, dtype=np.float64), np.array(tokens, dtype=np.int64)


def best_value(scores, tokens, room):
    sets = (
        list(chosen)
        for size in range(len(scores) + 1)
        for chosen in combinations(range(len(scores)), size)
        if sum(tokens[i] for i in chosen) <= room
    )
    return max(float((scores[chosen] * tokens[chosen]).sum()) for chosen in sets)


def test_a_budget_far_above_the_spans_costs_nothing():
    scores, tokens = np.ones(3), np.array([12, 12, 12])
    assert optimal(scores, tokens, 10**13).tolist() == [0, 1, 2]


@given(SPANS, st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_the_optimum_is_that_of_all_subsets_and_greedy_is_as_near_as_it_says(spans, room):
    scores, tokens = columns(spans)
    value = scores * tokens
    best, near = optimal(scores, tokens, room), greedy(scores, tokens, room)
    for kept in (best, near):
        assert tokens[kept].sum() <= room and list(kept) == sorted(set(kept.tolist()))
    most = best_value(scores, tokens, room)
    assert value[best].sum() == pytest.approx(most)
    ranked = sorted(range(len(spans)), key=lambda place: (-scores[place], -place))
    passed = next((place for place in ranked if place not in near), None)
    assert value[near].sum() + (0 if passed is None else value[passed]) >= most - 1e-9


@given(SPANS, st.integers(0, 60))
@settings(max_examples=200, deadline=None)
def test_greedy_takes_the_best_that_fits_of_what_is_left(spans, room):
    scores, tokens = columns(spans)
    left, kept = set(range(len(spans))), set()
    while fits := [place for place in left if tokens[place] <= room - sum(tokens[i] for i in kept)]:
        taken = max(fits, key=lambda place: (scores[place], place))
        kept.add(taken)
        left.remove(taken)
    assert kept == set(greedy(scores, tokens, room).tolist())
