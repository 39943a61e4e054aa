import numpy as np
import pytest
import torch

import fmlab as fm
from fmlab.conversation import Span, spans
from fmlab.conversation.ablation import Ablation, QuestionLogProb

TALK = [
    {"role": "user", "content": "Where did I leave the key? 🙂"},
    {"role": "assistant", "content": "<script>alert(1)</script>"},
    {"role": "user", "content": "And the lamp?"},
]


@torch.no_grad()
def test_the_log_probability_is_that_of_every_token_in_turn():
    lm = fm.tiny()
    before, asked = lm.prompt("user: 🙂", "Where?")
    logits = lm.model(torch.cat([before, asked])[None]).logits[0].double().log_softmax(-1)
    expected = sum(float(logits[len(before) + place - 1, token]) for place, token in enumerate(asked))
    assert QuestionLogProb(lm)("user: 🙂", "Where?") == pytest.approx(expected, abs=1e-4)


class Words:
    """As improbable as there are words of the question that the context lacks; it remembers the contexts."""

    def __init__(self):
        self.contexts = []

    def __call__(self, context, question):
        self.contexts.append(context)
        return -10.0 * sum(word not in context for word in question.split())


def test_a_span_is_worth_what_is_lost_without_it():
    log_prob = Words()
    talk = [
        Span(text, tokens, "user", (turn,))
        for turn, (text, tokens) in enumerate([("key", 5), ("lamp key", 4), ("", 1)])
    ]
    assert Ablation(6, log_prob, window=9).score(talk, "lamp key").tolist() == [0, 2.5, 0]
    assert log_prob.contexts == [
        "user: key\nuser: lamp key", "user: …\nuser: lamp key", "user: key\nuser: …", "user: ", "user: …",
    ]  # fmt: skip
    for budget in (4, 9, 4):  # scored once for all budgets
        assert talk[1] in Ablation(budget, log_prob, window=9).select(talk, "lamp key")
    assert len(log_prob.contexts) == 5
    assert Ablation(6, log_prob, window=5).score(talk, "lamp key").tolist() == [2, 5, 0]  # each in a window of its own


def test_it_asks_a_local_model():
    lm = fm.tiny()
    made = spans(TALK, lm.tokenizer)
    memory = Ablation(60, QuestionLogProb(lm), window=60)
    scores = memory.score(made, "Where?")
    log_prob = QuestionLogProb(lm)
    first = log_prob(f"user: {TALK[0]['content']}", "Where?") - log_prob("user: …", "Where?")
    assert scores[0] == pytest.approx(max(0, first) / made[0].tokens) and np.isfinite(scores).all()
    assert memory.select(made) == memory.select(made, TALK[-1]["content"])
    assert Ablation(60, log_prob) == Ablation(60, QuestionLogProb(lm)) and memory.select([]) == []


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="window=0; give a number"):
        Ablation(10, Words(), window=0)


@pytest.mark.real
def test_a_planted_fact_is_found_by_log_probability_alone(lm):
    said = [
        "It rained until the evening.",
        "The badge of the windmill is 4711.",
        "The tram was late again.",
        "We had soup.",
    ]
    made = spans([{"role": "user", "content": text} for text in said], lm.tokenizer)
    memory = Ablation(20 + made[0].beside, QuestionLogProb(lm))
    assert memory.select(made, "What number has the badge of the windmill?") == [made[1]]
