from copy import deepcopy

import numpy as np
import pytest
import torch

import fmlab as fm
from fmlab.conversation import Span, spans
from fmlab.conversation.ablation import Ablation, AnswerLogProb, QuestionLogProb

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


@torch.no_grad()
def greedy(model, lm, context, question, tokens):
    """The answer in float64, token by token, without a cache."""
    before = torch.cat(lm.prompt(context, question))
    ids = before
    while len(ids) < len(before) + tokens and not (len(ids) > len(before) and int(ids[-1]) in lm.ends):
        ids = torch.cat([ids, model(ids[None]).logits[0, -1].argmax()[None]])
    return ids[len(before) :]


@torch.no_grad()
def given(model, lm, context, question, answer):
    """The log-probability of an answer in float64, token by token."""
    ids, total = torch.cat(lm.prompt(context, question)), 0.0
    for token in answer:
        total += float(model(ids[None]).logits[0, -1].log_softmax(-1)[token])
        ids = torch.cat([ids, token[None]])
    return total


@pytest.mark.parametrize(("arch", "end"), [("llama", False), ("gpt_neox", False), ("llama", True)])
def test_an_answer_is_worth_what_it_loses_without_a_span(arch, end):
    lm = fm.tiny(arch)
    model = deepcopy(lm.model).double()
    context = "user: key\nassistant: lamp 🙂\nuser: red"
    if end:  # the model ends its answer with its third token
        lm.model.generation_config.eos_token_id = int(greedy(model, lm, context, "Where?", 6)[2])
    talk = [
        Span(text, 4, role, (turn,))
        for turn, (role, text) in enumerate([("user", "key"), ("assistant", "lamp 🙂"), ("user", "red")])
    ]
    answer = greedy(model, lm, context, "Where?", 6)
    assert len(answer) <= 3 if end else len(answer) == 6
    whole = given(model, lm, context, "Where?", answer)
    assert AnswerLogProb(lm, 6)(context, "Where?") == pytest.approx(whole, abs=1e-3)
    parts = context.split("\n")
    expected = []
    for place, span in enumerate(talk):
        without = "\n".join([*parts[:place], f"{span.role}: …", *parts[place + 1 :]])
        expected.append(max(0, whole - given(model, lm, without, "Where?", answer)) / 4)
    assert any(expected)
    scores = Ablation(12, AnswerLogProb(lm, 6)).score(talk, "Where?")
    np.testing.assert_allclose(scores, expected, atol=1e-3)


class Answer:
    """Is shown a context, then measures others; it remembers what it was shown."""

    def __init__(self):
        self.shown = []

    def begin(self, context, question):
        self.shown.append(context)
        return lambda part, question: -10.0 * (question not in part)

    def __call__(self, context, question):
        raise AssertionError("what has a begin is asked through it")


def test_the_answer_is_made_once_for_each_window_and_question():
    log_prob = Answer()
    talk = [Span(text, 5, "user", (turn,)) for turn, text in enumerate(("key", "lamp", "rug"))]
    memory = Ablation(6, log_prob, window=10)
    assert memory.score(talk, "lamp").tolist() == [0, 2, 0]
    assert log_prob.shown == ["user: key\nuser: lamp", "user: rug"]
    assert memory.score(talk, "rug").tolist() == [0, 0, 2] and len(log_prob.shown) == 4
    memory.select(talk, "lamp")
    assert len(log_prob.shown) == 4


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
    for nothing in (None, "", " \n"):
        assert memory.select(made, nothing) == memory.select(made, TALK[-1]["content"])
    assert Ablation(60, log_prob) == Ablation(60, QuestionLogProb(lm)) and memory.select([]) == []


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="window=0; give a number"):
        Ablation(10, Words(), window=0)
    for wrong in (0, True):
        with pytest.raises(ValueError, match=f"max_new_tokens={wrong}; give a number"):
            AnswerLogProb(fm.tiny(), wrong)


def test_a_window_longer_than_the_context_is_refused():
    lm = fm.tiny(max_position_embeddings=128)
    made = [Span("x" * 40, 47, "user", (turn,)) for turn in range(3)]
    for log_prob, fits in ((QuestionLogProb(lm), 100), (AnswerLogProb(lm, 60), 50)):
        with pytest.raises(
            fm.BudgetError, match="window=141: .* > the context of 128 tokens of tiny .* smaller window"
        ):
            Ablation(70, log_prob, window=141).select(made, "Where?")
        assert len(Ablation(70, log_prob, window=fits).select(made, "Where?")) == 1
    with pytest.raises(fm.BudgetError, match="window=100: messages, question and answer are"):
        Ablation(70, log_prob, window=100).select(made, "Where?")


@pytest.mark.real
def test_a_planted_fact_is_found_by_log_probability_alone(lm):
    said = [
        "It rained until the evening.",
        "The badge of the windmill is 4711.",
        "The tram was late again.",
        "We had soup.",
    ]
    made = spans([{"role": "user", "content": text} for text in said], lm.tokenizer)
    memories = [Ablation(20 + made[0].beside, log_prob) for log_prob in (QuestionLogProb(lm), AnswerLogProb(lm))]
    for memory in memories:
        assert memory.select(made, "What number has the badge of the windmill?") == [made[1]]
