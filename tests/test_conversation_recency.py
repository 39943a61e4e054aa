import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmlab.conversation import Full, Random, Sliding, Span

SIZES = st.lists(st.integers(0, 9), max_size=12)


def talk(sizes):
    return [Span("x" * size, size, "user", (turn,)) for turn, size in enumerate(sizes)]


@given(SIZES, st.integers(1, 40))
def test_sliding_is_the_longest_end_that_fits(sizes, budget):
    spans = talk(sizes)
    ends = [spans[first:] for first in range(len(spans) + 1)]
    fitting = [end for end in ends if sum(span.tokens for span in end) <= budget]
    assert Sliding(budget).select(spans) == max(fitting, key=len)


def test_sliding_stops_at_the_first_that_does_not_fit():
    system = Span("s", 2, "system", (9,))
    assert Sliding(7).select(talk([1, 6, 3])) == talk([1, 6, 3])[2:]
    assert Sliding(7).select([system, *talk([1, 1, 6])]) == [system]
    assert Sliding(9).select([*talk([1, 1, 6]), system]) == [*talk([1, 1, 6])[1:], system]


def test_sliding_scores_by_recency():
    assert list(Sliding(1).score(talk([1, 5, 1, 1]), None)) == [0.25, 0.5, 0.75, 1.0]


@given(SIZES)
def test_full_keeps_everything(sizes):
    assert Full().select(talk(sizes)) == talk(sizes)


def test_full_has_no_budget_to_give():
    with pytest.raises(TypeError):
        Full(5)
    assert repr(Full()) == "Full()" and Full().budget == sys.maxsize


def test_random_draws_by_place_and_keeps_its_draw():
    long, short = talk([1] * 40), talk([1] * 7)
    assert list(Random(5, seed=3).score(long, None))[:7] == list(Random(5, seed=3).score(short, "other"))
    kept = [tuple(span.sources[0] for span in Random(5, seed=seed).select(long)) for seed in range(8)]
    assert len(set(kept)) == 8
    with pytest.raises(ValueError, match="seed=-1"):
        Random(5, seed=-1)


def test_random_keeps_every_place_as_often():
    """Of 20 equal turns a quarter is kept: over 400 seeds each place 100 times, give or take 5 standard deviations."""
    spans = talk([2] * 20)
    counts = [0] * 20
    for seed in range(400):
        for span in Random(10, seed=seed).select(spans):
            counts[span.sources[0]] += 1
    assert sum(counts) == 400 * 5 and all(57 <= count <= 143 for count in counts)


def test_what_random_keeps_is_the_same_in_every_process():
    assert [span.sources[0] for span in Random(4).select(talk([1] * 12))] == [4, 5, 9, 10]
