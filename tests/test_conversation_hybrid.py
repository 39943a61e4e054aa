import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fmlab as fm
from fmlab.conversation import BM25, Hybrid, Memory, Random, Sliding, Span
from fmlab.conversation.hybrid import ranks


def talk(*texts):
    return [Span(text, 5, "user", (turn,)) for turn, text in enumerate(texts)]


TALK = talk("the oven", "rain", "the key", "an oven", "yes", "good bye")


@given(st.lists(st.integers(0, 5), min_size=2, max_size=12))
def test_ranks_are_the_share_of_the_others_below_with_ties_as_half(scores):
    expected = [
        (sum(other < score for other in scores) + (scores.count(score) - 1) / 2) / (len(scores) - 1) for score in scores
    ]
    assert list(ranks(np.array(scores, dtype=float))) == pytest.approx(expected)


def test_one_part_alone_is_that_memory():
    for part in (Random(15), BM25(15)):
        assert Hybrid(15, ((part, 0.3),)).select(TALK, "oven") == part.select(TALK, "oven")


def test_weights_say_how_much_each_part_counts():
    newest, oven = (lambda weight: (Sliding(10), weight)), (BM25(10), 1.0)
    assert Hybrid(10, (oven, newest(0.01))).select(TALK, "oven") == [TALK[0], TALK[3]]
    assert Hybrid(10, (oven, newest(100.0))).select(TALK, "oven") == TALK[4:]
    score = Hybrid(10, (oven, newest(2.0))).score(TALK, "oven")
    assert score == pytest.approx(ranks(BM25(10).score(TALK, "oven")) + 2 * np.arange(6) / 5)


def test_a_part_of_another_scale_does_not_settle_it():
    class Loud(Memory):
        def score(self, spans, query):
            return [1e9 * len(span.text) for span in spans]

    class Quiet(Memory):
        def score(self, spans, query):
            return [1e-9 * len(span.text) for span in spans]

    for part in (Loud(10), Quiet(10)):
        hybrid = Hybrid(10, ((part, 1.0), (Random(10), 1.0)))
        assert hybrid.select(TALK) == Hybrid(10, ((Loud(10), 1.0), (Random(10), 1.0))).select(TALK)


def test_what_a_part_pins_is_pinned():
    class First(Memory):
        def score(self, spans, query):
            return [float("inf")] + [0.0] * (len(spans) - 1)

    assert Hybrid(10, ((First(10), 0.1), (Sliding(10), 9.0))).select(TALK) == [TALK[0], TALK[-1]]
    with pytest.raises(fm.BudgetError, match="pinned"):
        Hybrid(4, ((First(4), 0.1),)).select(TALK)


def test_it_reads_the_query_where_a_part_does():
    blind, aware = ((Sliding(9), 1.0),), ((Sliding(9), 1.0), (Hybrid(9, ((BM25(9), 1.0),)), 1.0))
    assert not Hybrid(9, blind).reads_query and Hybrid(9, aware).reads_query
    with pytest.raises(ValueError, match="BM25 needs a query"):
        Hybrid(9, aware).select(TALK)


def test_a_part_with_wrong_scores_is_named():
    class Wrong(Memory):
        def score(self, spans, query):
            return [-1.0] * len(spans)

    with pytest.raises(ValueError, match="Wrong.score gave"):
        Hybrid(9, ((Sliding(9), 1.0), (Wrong(9), 1.0))).select(TALK)


@pytest.mark.parametrize("parts", [(), ((Sliding(9), 0.0),), ((Sliding(9), -1.0),), ((Sliding(9), float("nan")),)])
def test_parts_are_checked(parts):
    with pytest.raises(ValueError, match="give"):
        Hybrid(9, parts)
