import numpy as np
import pytest
import torch

import fmlab as fm
from fmlab.conversation import Importance, Span, spans
from fmlab.conversation import importance as module
from fmlab.conversation.reading import attention, read, runs

TALK = [
    {"role": "user", "content": "Where did I leave the key? 🙂"},
    {"role": "assistant", "content": "<script>alert(1)</script>\n\nIn the blue drawer."},
    {"role": "user", "content": ""},
    {"role": "assistant", "content": "Ok"},
    {"role": "user", "content": "And the lamp? It is red."},
]
PLANTED = ["The badge of the windmill is 4711.", "My sister Noor moved to Leeds.", "The cello costs 26 pounds a month."]
FILLER = [
    "I had soup again today, and it rained until the evening.",
    "Nothing else happened, the tram was late as always.",
    "Let us talk about what to read this week.",
    "The garden looks well, but the hedge is too high.",
    "I could not sleep and listened to the radio.",
]


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


@torch.no_grad()
@pytest.mark.parametrize("arch", ["llama", "gpt_neox"])
def test_the_attention_of_a_question_is_that_of_an_eager_model(arch):
    lm = fm.tiny(arch)
    window = read(lm, spans(TALK, lm.tokenizer))
    lm.model.set_attn_implementation("eager")
    asked = lm.prompt(window.context, "Where?")[1]
    whole = torch.cat([window.ids, asked])[None]
    weights = torch.stack(lm.model(whole, output_attentions=True).attentions)[:, 0]
    lm.model.set_attn_implementation("sdpa")
    expected = weights[:, :, len(window.ids) :, : len(window.ids)].mean((1, 2))
    for _ in range(2):  # asking leaves what was read as it was
        torch.testing.assert_close(attention(lm, window, "Where?"), expected, rtol=1e-4, atol=1e-6)


def test_a_window_knows_the_tokens_of_each_span(tiny):
    made = spans(TALK, tiny.tokenizer)
    window = read(tiny, made)
    for span, (start, stop) in zip(made, window.places, strict=True):
        assert tiny.tokenizer.decode(window.ids[start:stop]) == span.text


def test_windows_hold_as_many_whole_spans_as_fit():
    talk = [Span("x", tokens, "user", (place,)) for place, tokens in enumerate((3, 4, 9, 1, 1, 5))]
    assert [[span.tokens for span in run] for run in runs(talk, 7)] == [[3, 4], [9], [1, 1, 5]]
    assert list(runs([], 7)) == []


@pytest.mark.parametrize("window", [1000, 50])
def test_the_score_is_the_calibrated_attention_to_the_best_tokens(tiny, window):
    made = spans(TALK, tiny.tokenizer)
    expected = []
    for part in (read(tiny, run) for run in runs(made, window)):
        paid, nothing = attention(tiny, part, "Where?").double(), attention(tiny, part, "N/A").double()
        ratios = ((paid + 1e-6) / (nothing + 1e-6)).mean(0).tolist()
        for start, stop in part.places:
            best = sorted(ratios[start:stop], reverse=True)[:8]
            expected.append((sum(best) + 8 - len(best)) / 8)
    scores = Importance(40, tiny, window=window).score(made, "Where?")
    np.testing.assert_allclose(scores, expected, rtol=1e-4)
    assert scores[2] == 1 and len(set(scores)) == len(made)


def test_asking_nothing_leaves_every_span_as_it_is(tiny):
    assert Importance(40, tiny).score(spans(TALK, tiny.tokenizer), "N/A").tolist() == [1.0] * len(TALK)


def test_without_a_query_the_newest_words_ask(tiny):
    made = spans([*TALK, {"role": "user", "content": " "}], tiny.tokenizer)
    memory = Importance(60, tiny)
    for nothing in (None, "", " \n"):
        assert memory.select(made, nothing) == memory.select(made, TALK[-1]["content"])
    silent = spans([{"role": "user", "content": ""}] * 2, tiny.tokenizer)
    assert memory.score(silent, None).tolist() == [0, 0]


def test_what_was_read_is_not_read_again(monkeypatch):
    lm, asked = fm.tiny(seed=3), []
    monkeypatch.setattr(module, "attention", lambda *given: asked.append(given[2]) or attention(*given))
    made = spans(TALK, lm.tokenizer)
    chosen = [Importance(budget, lm).select(made, "Where?") for budget in (30, 60, 90, 60)]
    assert asked == ["N/A", "Where?"] and chosen[1] == chosen[3] != chosen[0]
    Importance(30, lm).select(made, "Which?")
    assert asked[2:] == ["Which?"]


def test_bad_input_is_refused(tiny):
    with pytest.raises(ValueError, match="window=0; give a number"):
        Importance(10, tiny, window=0)


def test_a_window_longer_than_the_context_is_refused():
    lm = fm.tiny(max_position_embeddings=128)
    made = [Span("x" * 60, 67, "user", (turn,)) for turn in range(3)]
    for window in (140, 200):  # the second exceeds it without the question
        with pytest.raises(
            fm.BudgetError, match=f"window={window}: .* > the context of 128 tokens of tiny .* smaller window"
        ):
            Importance(70, lm, window=window).select(made, "Where?")
    assert len(Importance(70, lm, window=70).select(made, "Where?")) == 1
    with pytest.raises(fm.BudgetError, match="window=70: .* > the context of 128 tokens"):
        Importance(70, lm, window=70).select(made, "Where? " * 10)


@pytest.mark.real
def test_planted_facts_are_found_wherever_they_stand(lm):
    said = [text for fact in PLANTED for text in (*FILLER, fact)] + FILLER
    made = spans([{"role": "user", "content": text} for text in said], lm.tokenizer)
    questions = [
        "What number has the badge of the windmill?",
        "Where does Noor live now?",
        "What is paid for the cello?",
    ]
    for window in (2_048, 150):
        memory = Importance(sum(span.tokens for span in made) // 8, lm, window=window)
        for fact, question in zip(PLANTED, questions, strict=True):
            assert fact in [span.text for span in memory.select(made, question)]
