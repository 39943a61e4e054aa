import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fmlab.conversation import BM25, Span

WORDS = ("oven", "key", "rye", "7", "the", "né")
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), min_size=1, max_size=8)


def talk(*texts):
    return [Span(text, 5, "user", (turn,)) for turn, text in enumerate(texts)]


def reference(texts, query, k1=1.5, b=0.75):
    """Lucene's BM25 by its formula, a query word counted as often as it is asked."""
    said = [text.split() for text in texts]
    mean = sum(map(len, said)) / len(said)
    scores = []
    for words in said:
        score = 0.0
        for word in query.split():
            having = sum(word in other for other in said)
            if not having:
                continue
            times = words.count(word)
            idf = math.log(1 + (len(said) - having + 0.5) / (having + 0.5))
            score += idf * times / (times + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


@given(TEXTS, st.lists(st.sampled_from((*WORDS, "unheard")), max_size=5).map(" ".join))
@settings(max_examples=100, deadline=None)
def test_scores_are_those_of_the_formula(texts, query):
    assert list(BM25(5).score(talk(*texts), query)) == pytest.approx(reference(texts, query), abs=1e-9)


def test_what_shares_words_with_the_query_is_kept():
    spans = talk("The oven broke.", "It rained all day, I think.", "A new OVEN costs 7 pounds", "Bye!")
    assert BM25(10).select(spans, "the oven?") == [spans[0], spans[2]]
    assert BM25(5).select(spans, "is it 7?") == [spans[2]]
    assert BM25(10).select(spans, "unheard of") == spans[2:] == BM25(10).select(spans, "?!")


def test_nothing_is_written_while_it_reads(capfd):
    assert BM25(5).select(talk("a b", "c d"), "a") == talk("a b")
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("wrong", [{"k1": -1.0}, {"b": 1.5}, {"b": -0.1}, {"k1": float("nan")}])
def test_parameters_are_checked(wrong):
    with pytest.raises(ValueError, match="give a k1 of 0 or more and a b from 0 to 1"):
        BM25(5, **wrong)
