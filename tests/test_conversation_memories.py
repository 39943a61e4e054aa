"""One contract for every memory of the package, found by walking the subclasses of Memory."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fmlab as fm
import fmlab.conversation
from fmlab.conversation import (
    BM25,
    Ablation,
    Full,
    Hybrid,
    Importance,
    Memory,
    QuestionLogProb,
    Random,
    RollingSummary,
    Semantic,
    Sliding,
    Span,
    TokenEmbeddings,
)
from fmlab.conversation.memory import scores_of
from fmlab.conversation.packing import optimal

TINY = fm.tiny()
ENCODER = TokenEmbeddings(TINY)
QUERY = "Where did we say 🙂 the <script> key is, and when?"


@dataclass(frozen=True)
class Case:
    """How a memory is made, and what of the contract does not apply to it."""

    make: Callable[..., Memory]  # (budget) or (budget, exact=True)
    bounded: bool = True  # it has a budget
    packs: bool = True  # it keeps what `packing` says, by its scores, so that exact=True means something
    rewrites: bool = False  # it may say spans of its own instead of those it was given
    needs_query: bool = False
    swift: bool = True  # it reads a long conversation in seconds


def noted(lm, text: str, tokens: int, seed: int) -> str:
    """A summary of one word."""
    return "Talk."


CASES = {
    "Ablation": Case(lambda budget, **exact: Ablation(budget, QuestionLogProb(TINY), **exact), swift=False),
    "BM25": Case(BM25, needs_query=True),
    "Full": Case(lambda budget: Full(), bounded=False, packs=False),
    "Hybrid": Case(
        lambda budget, **exact: Hybrid(budget, ((Semantic(budget, ENCODER), 1.0), (Sliding(budget), 0.5)), **exact)
    ),
    "Importance": Case(lambda budget, **exact: Importance(budget, TINY, **exact), swift=False),
    "Random": Case(Random),
    "RollingSummary": Case(
        lambda budget, **exact: RollingSummary(budget, TINY, write=noted, **exact), packs=False, rewrites=True
    ),
    "Semantic": Case(lambda budget, **exact: Semantic(budget, ENCODER, **exact)),
    "Sliding": Case(Sliding, packs=False),
}


def every_memory() -> set[str]:
    for module in pkgutil.iter_modules(fmlab.conversation.__path__, "fmlab.conversation."):
        importlib.import_module(module.name)
    found, left = set(), [Memory]
    while left:
        left += (kind := left.pop()).__subclasses__()
        found |= {kind.__name__} if kind is not Memory and kind.__module__.startswith("fmlab.") else set()
    return found


def test_every_memory_is_in_the_table():
    assert every_memory() == set(CASES)


WORDS = ("key", "drawer", "🙂", "<script>alert(1)</script>", "paid 12.50", "oven", "Tuesday", "", "né", "yes")
TEXTS = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
ROLES = st.sampled_from(("user", "assistant", "user", "system"))
PIECES = st.lists(st.tuples(TEXTS, st.integers(0, 12), ROLES), max_size=12)


def talk_of(pieces) -> list[Span]:
    return [Span(text, tokens, role, (turn,)) for turn, (text, tokens, role) in enumerate(pieces)]


def asked(case: Case, query: str | None) -> str | None:
    return QUERY if case.needs_query else query


def total(spans) -> int:
    return sum(span.tokens for span in spans)


def within(selected, spans) -> bool:
    """Whether it is a subsequence: whole spans, in order, none twice."""
    rest = iter(spans)
    return all(any(span is other for other in rest) for span in selected)


def held(case: Case, spans: list[Span], budget: int, query: str | None) -> list[Span] | None:
    """What is selected, after everything that the contract says of it; None where the pinned do not fit."""
    memory, query = case.make(budget), asked(case, query)
    pinned = [span for span in spans if span.role == "system"]
    if case.bounded and total(pinned) > budget:
        with pytest.raises(fm.BudgetError, match=f"budget {budget} < {total(pinned)} tokens of the system prompt"):
            memory.select(spans, query)
        return None
    given = list(spans)
    selected = memory.select(given, query)
    assert given == spans and all(span is other for span, other in zip(given, spans, strict=True)), "input is unmutated"
    assert selected == memory.select(tuple(spans), query) == case.make(budget).select(spans, query), "it is pure"
    assert not case.bounded or total(selected) <= budget
    assert case.rewrites or within(selected, spans)
    assert [span for span in selected if span.role == "system"] == pinned
    if total(spans) <= budget:
        assert selected == spans, "identity where all fits"
    return selected


@pytest.mark.parametrize("name", CASES)
@given(PIECES, st.integers(1, 80), st.sampled_from((None, QUERY)))
@settings(max_examples=40, deadline=None)
def test_a_selection_keeps_the_contract(name, pieces, budget, query):
    spans = talk_of(pieces)
    selected = held(CASES[name], spans, budget, query)
    assert selected is None or len(selected) <= len(spans)


@pytest.mark.parametrize("name", CASES)
def test_what_is_at_the_edge(name):
    case = CASES[name]
    assert held(case, [], 5, None) == []
    one = talk_of([("the key", 5, "user")])
    assert held(case, one, 5, None) == one
    assert not case.bounded or held(case, one, 4, None) == []
    system = talk_of([("Be brief.", 5, "system")])
    assert held(case, system, 5, None) == system
    same = talk_of([("yes", 3, "user")] * 9)
    empty = talk_of([("", 4, "user")] * 7)
    alike = [held(case, same, 9, None), held(case, [same[0]] * 9, 9, None), held(case, empty, 12, None)]
    if not case.rewrites:  # of the very same span again and again, too, as many are kept as fit
        assert list(map(len, alike)) == ([3, 3, 3] if case.bounded else [9, 9, 7])
    free = talk_of([("", 0, "user")] * 4)
    assert held(case, free, 1, "key") == free
    larger = talk_of([("key " * 40, 40, "user"), ("the key", 5, "user"), ("key", 30, "user")])
    assert not case.bounded or all(span.tokens < 30 for span in held(case, larger, 12, None))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.swift])
def test_two_thousand_spans(name):
    numbers = np.random.default_rng(0)
    words = [str(n) for n in range(400)]
    talk = [" ".join(numbers.choice(words, size=12)) for _ in range(2000)]
    spans = talk_of([(text, int(numbers.integers(5, 60)), "user") for text in talk])
    case = CASES[name]
    selected = case.make(8000).select(spans, asked(case, None))
    assert not case.bounded or total(selected) <= 8000
    assert not case.bounded or case.rewrites or 8000 - 4 * 60 < total(selected)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.packs])
@given(PIECES.map(lambda pieces: [piece for piece in pieces if piece[2] != "system"]), st.integers(1, 60))
@settings(max_examples=25, deadline=None)
def test_exact_is_worth_no_less_than_greedy(name, pieces, budget):
    case, spans = CASES[name], talk_of(pieces)
    near, best = case.make(budget), case.make(budget, exact=True)
    query = asked(case, None)
    scores = scores_of(near, spans, query) if spans else np.zeros(0)
    worth = {span: score * span.tokens for span, score in zip(spans, scores, strict=True)}
    kept, most = near.select(spans, query), best.select(spans, query)
    assert total(most) <= budget and within(most, spans)
    assert sum(map(worth.get, most)) >= sum(map(worth.get, kept)) - 1e-9
    optimum = optimal(scores, np.array([span.tokens for span in spans], dtype=np.int64), budget)
    assert sum(map(worth.get, most)) == pytest.approx(sum(worth[spans[place]] for place in optimum))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.packs])
def test_exact_is_refused_where_it_means_nothing(name):
    with pytest.raises((TypeError, ValueError), match="exact"):
        CASES[name].make(5, exact=True)


@pytest.mark.parametrize("name", CASES)
def test_a_query_is_read_only_by_those_that_say_so(name):
    case = CASES[name]
    spans = talk_of([(f"{word} and {word}", 4, "user") for word in WORDS * 3])
    memory = case.make(20)
    first, second = (memory.select(spans, query) for query in ("the oven", "on Tuesday we paid 12.50"))
    assert memory.reads_query == (first != second)
    if case.needs_query:
        with pytest.raises(ValueError, match="needs a query"):
            memory.select(spans)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.bounded])
@pytest.mark.parametrize("budget", [0, -1, True])
def test_a_budget_is_a_number_of_tokens(name, budget):
    with pytest.raises(fm.BudgetError, match="give a number of tokens"):
        CASES[name].make(budget)
