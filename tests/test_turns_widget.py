"""The Turns widget without a browser: what is kept is what the memories keep, remembered, told, and asked about."""

import threading
from dataclasses import dataclass

import numpy as np
import pytest

import fmlab as fm
from fmlab.widgets import Turns
from fmlab.widgets.selections import STOPS, Selections

C = fm.conversation
SAID = [
    "I planted leeks.", "Good.", "The pump is green <b>now</b>.", "Noted.",
    "My key is number 42.", "Fine.", "Bye.", "Bye!",
]  # fmt: skip
ASKED = C.Question("What number is the key?", "42", (), "fact", (4,))


@dataclass(frozen=True)
class Slow(C.Memory):
    """Waits until it is let go."""

    gate: threading.Event = threading.Event()

    def score(self, spans, query):
        assert self.gate.wait(20)
        return np.ones(len(spans))


@pytest.fixture(scope="module")
def lm():
    return fm.tiny()


@pytest.fixture(scope="module")
def spans(lm):
    messages = [{"role": "user" if at % 2 == 0 else "assistant", "content": text} for at, text in enumerate(SAID)]
    return C.spans(messages, lm.tokenizer)


@pytest.fixture
def turns(spans, lm):
    memories = {"newest": C.Sliding(1), "random": lambda budget: C.Random(budget, seed=3), "BM25": C.BM25(1)}
    view = Turns(spans, memories, [ASKED], lm=lm, max_new_tokens=4)
    yield view
    view.close()


def test_both_sides_keep_what_their_memories_keep_at_every_stop(turns, spans):
    turns.wait()
    total = sum(span.tokens for span in spans)
    for side, memory in (("a", C.Sliding), ("b", lambda budget: C.Random(budget, seed=3))):
        told = getattr(turns, f"kept_{side}")["stops"]
        assert sorted(map(int, told)) == list(range(1, STOPS + 1))
        for stop in range(1, STOPS + 1):
            kept = memory(spans[0].beside + max(1, round(total * stop / STOPS))).select(spans)
            entry = told[str(stop)]
            assert [spans[place] for place in entry["places"]] == kept and entry["turns"] == entry["places"]
            assert entry["tokens"] == sum(span.tokens for span in kept) + spans[0].beside <= entry["budget"]
            assert not entry["aware"] and entry["added"] == []
    assert turns.show(stop=16).kept[0] == C.Sliding(spans[0].beside + round(total / 2)).select(spans)


def test_a_memory_that_reads_the_question_is_told_apart_and_refuses_without(turns, spans):
    turns.show(b="BM25", stop=8)
    assert spans[4] in turns.kept[1]
    assert turns.kept_b["stops"]["8"]["aware"] and turns.kept_b["query"] == ASKED.question
    with pytest.raises(ValueError, match="BM25 needs a query"):
        _ = turns.show(aware=False).kept
    assert "BM25 needs a query" in turns.kept_b["error"]["text"]
    assert turns.kept_a["error"] is None and turns.kept_a["stops"]
    assert turns.show(b="random").kept[1] == C.Random(turns.selections.budget(8), seed=3).select(spans)
    assert turns.kept_b["error"] is None


def test_what_was_selected_is_not_selected_again(spans):
    calls = []

    def counted(budget):
        calls.append(budget)
        return C.Sliding(budget)

    selections = Selections(spans, {"x": counted})
    assert selections.at("x", None, 5) is selections.at("x", None, 5) and len(calls) == 1
    selections.at("x", "why", 5)
    assert len(calls) == 2


def test_a_summary_is_told_as_what_was_added(spans):
    @dataclass(frozen=True)
    class Summing(C.Memory):
        def score(self, spans, query):
            raise NotImplementedError

        def select(self, spans, query=None):
            return [C.Span("leeks", 3, "user", (0, 1)), spans[-1]]

    view = Turns(spans, {"sum": Summing(1)})
    entry = view.wait().kept_a["stops"]["4"]
    view.close()
    assert entry["added"] == [["user", "leeks"]] and entry["places"] == [7] == entry["turns"]


def test_a_slow_memory_holds_nobody_up(spans):
    gate = threading.Event()
    view = Turns(spans, {"newest": C.Sliding(1), "slow": lambda budget: Slow(budget, gate=gate)})
    try:
        assert view.show(stop=20).choice["stop"] == 20  # returns while the memory waits
        assert view.kept_b.get("stops", {}) == {}
    finally:
        gate.set()
    assert view.kept[1] and set(view.wait().kept_b["stops"]) >= {"20"}
    view.close()


def test_the_model_is_asked_with_what_each_keeps(turns, spans, lm):
    turns.show(b="BM25", stop=16).ask().wait()
    question = C.spans([{"role": "user", "content": ASKED.question}], lm.tokenizer)[0]
    prompts = [C.prompt([C.opening(lm.tokenizer), *kept, question], lm.tokenizer) for kept in turns.kept]
    assert [row["text"] for row in turns.answers["rows"]] == C.replies(lm, prompts, 4)
    assert [row["prompt"] for row in turns.answers["rows"]] == [len(ids) for ids in prompts]
    assert turns.answers["expected"] == "42"
    assert all(row["right"] == C.answered(row["text"], ASKED) for row in turns.answers["rows"])
    assert turns.status["state"] == "ready"
    turns.show(question="What else?").ask().wait()
    assert turns.answers["expected"] is None and [row["right"] for row in turns.answers["rows"]] == [None, None]


def test_a_prompt_too_long_for_the_model_is_refused(turns, lm, monkeypatch):
    monkeypatch.setattr(lm.model.config, "max_position_embeddings", 20)
    turns.ask().wait()
    assert turns.status["state"] == "error" and "room for 16" in turns.status["text"]


def test_what_there_is_not_is_named(turns, spans):
    with pytest.raises(ValueError, match="no memory 'nobody'; there are newest, random, BM25"):
        turns.show(a="nobody")
    with pytest.raises(ValueError, match="stop=33"):
        turns.show(stop=33)
    with pytest.raises(ValueError, match="0 spans"):
        Turns([], {"x": C.Sliding(1)})
    with pytest.raises(ValueError, match="nobody to ask"):
        Turns(spans, {"x": C.Sliding(1)}).ask()


def test_a_slow_memory_selects_only_where_the_slider_stops(spans, monkeypatch):
    monkeypatch.setattr("fmlab.widgets.turns.SLOW_SECONDS", 0.0)
    view = Turns(spans, {"newest": C.Sliding(1)})
    assert len(view.wait().kept_a["stops"]) == 2
    assert len(view.show(stop=30).wait().kept_a["stops"]) == 4
    view.close()
