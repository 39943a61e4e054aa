import inspect

import pytest
import torch

import fmlab as fm
from fmlab.models import CONFIGS
from fmlab.policies import TOVA, KeyNorm, Random, SinkWindow
from fmlab.tasks import answer, ask, needle, nll, recall

CONTEXT = "The cat sat on the mat. It was a warm day, and nothing happened for a very long time after that."
QUESTIONS = ["Where did the cat sit?", "How was the day?"]
IDS = list(range(40, 120))


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


def greedy(lm, ids, tokens):
    """What the stock model says, one full forward pass for each word."""
    for _ in range(tokens):
        ids = torch.cat([ids, lm.model(ids[None]).logits[0, -1].argmax()[None]])
    return ids[-tokens:]


def stock_losses(lm, ids):
    logits = lm.model(torch.tensor(ids)[None]).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids)[1:], reduction="none")


@pytest.mark.parametrize("arch", CONFIGS)
@pytest.mark.parametrize("query_aware", [False, True])
def test_the_full_cache_says_what_the_stock_model_says(arch, query_aware):
    lm = fm.tiny(arch)
    replies = ask(lm, CONTEXT, QUESTIONS, max_new_tokens=6, query_aware=query_aware)
    for question, reply in zip(QUESTIONS, replies, strict=True):
        ids = torch.cat(lm.prompt(CONTEXT, question))
        assert reply.text == lm.tokenizer.decode(greedy(lm, ids, 6)).strip()
        assert reply.query_aware == query_aware
        assert reply.expiry.shape[-1] == (len(ids) if query_aware else len(lm.ids(CONTEXT)))
        assert (reply.expiry == reply.expiry.shape[-1] + 1).all()
        assert reply.seconds > 0 and reply.prefill_seconds > 0


@pytest.mark.parametrize("arch", CONFIGS)
@pytest.mark.parametrize("chunk", [None, 7])
def test_a_budget_for_everything_is_the_full_cache(arch, chunk):
    lm = fm.tiny(arch)
    full = ask(lm, CONTEXT, QUESTIONS, max_new_tokens=6, chunk=chunk)
    ours = ask(lm, CONTEXT, QUESTIONS, SinkWindow(), 500, max_new_tokens=6, chunk=chunk)
    assert [reply.text for reply in ours] == [reply.text for reply in full]
    assert all(torch.equal(a.expiry, b.expiry) for a, b in zip(ours, full, strict=True))


def test_every_question_starts_from_the_same_cache(tiny):
    settings = {"policy": TOVA(), "budget": 20, "max_new_tokens": 6}
    both = ask(tiny, CONTEXT, QUESTIONS, **settings)
    alone = [ask(tiny, CONTEXT, [question], **settings)[0] for question in QUESTIONS]
    assert [reply.text for reply in both] == [reply.text for reply in alone]
    assert both[0].text != both[1].text
    assert all(torch.equal(a.expiry, b.expiry) for a, b in zip(both, alone, strict=True))
    assert both[0].nbytes == both[1].nbytes


def test_what_is_said_under_a_policy_is_what_generate_says(tiny):
    context_ids, question_ids = tiny.prompt(CONTEXT, QUESTIONS[0])
    with fm.finite(tiny.model, KeyNorm(), 20) as cache:
        tiny.model(context_ids[None], past_key_values=cache)
        whole = torch.cat([context_ids, question_ids])[None]
        out = tiny.model.generate(whole, past_key_values=cache, max_new_tokens=6, do_sample=False)
    (reply,) = ask(tiny, CONTEXT, QUESTIONS[:1], KeyNorm(), 20, max_new_tokens=6)
    assert reply.text == tiny.tokenizer.decode(out[0, -6:]).strip()


def test_query_aware_shows_the_question_before_the_eviction(tiny):
    blind, aware = (ask(tiny, CONTEXT, QUESTIONS, TOVA(), 20, query_aware=aware)[0] for aware in (False, True))
    context_ids, question_ids = tiny.prompt(CONTEXT, QUESTIONS[0])
    assert blind.expiry.shape[-1] == len(context_ids)
    assert aware.expiry.shape[-1] == len(context_ids) + len(question_ids)
    assert ((aware.expiry > aware.expiry.shape[-1]).sum(-1) == 20).all()
    assert (aware.query_aware, blind.query_aware) == (True, False)


def test_generation_stops_at_the_end_of_the_turn(tiny):
    (reply,) = ask(tiny, CONTEXT, QUESTIONS[:1], max_new_tokens=6)
    first = greedy(tiny, torch.cat(tiny.prompt(CONTEXT, QUESTIONS[0])), 3)
    lm = fm.tiny()
    for ends in (int(first[2]), [0, int(first[2])]):
        lm.model.generation_config.eos_token_id = ends
        assert ask(lm, CONTEXT, QUESTIONS[:1], max_new_tokens=6)[0].text == lm.tokenizer.decode(first[:2]).strip()
        assert reply.text.startswith(lm.tokenizer.decode(first[:2]).strip())


def test_answers_say_where_the_fact_was_and_whether_it_is_held(tiny):
    sample = recall(tiny, 900, facts=3)
    answers = answer(tiny, sample, SinkWindow(), 300, max_new_tokens=2)
    assert [each.planted for each in answers] == list(sample.planted)
    held = [each.present for each in answers]
    assert [float(share.mean()) for share in held] == [0, 0, 1]  # the window of the last 296 holds the late third
    assert held[0].shape == (3, 2)
    assert not any(each.answered for each in answers)


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("It is {}.", True),
        ("{}", True),
        ("It is 1{}.", False),
        ("It is {}0", False),
        ("nothing", False),
        ("no: {}", True),
    ],
)
def test_an_answer_must_stand_as_a_word(tiny, monkeypatch, said, right):
    sample = needle(tiny, 600)
    text = said.format(sample.planted[0].fact.answer)
    monkeypatch.setattr("fmlab.tasks.speak", lambda *args: text)
    (one,) = answer(tiny, sample)
    assert one.answered == right and one.reply.text == text


def test_the_question_is_the_fact_s(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr("fmlab.tasks.ask", lambda lm, context, questions, *rest, **more: asked.extend(questions) or [])
    sample = needle(tiny, 600)
    with pytest.raises(ValueError):  # no replies came back
        answer(tiny, sample)
    assert asked == [sample.planted[0].fact.question]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"policy": SinkWindow()}, r"policy SinkWindow\(sinks=4\) with budget None; give both"),
        ({"budget": 20}, "policy None with budget 20; give both"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"chunk": 0}, "chunk=0"),
        ({"policy": SinkWindow(), "budget": 0}, "budget"),
        ({"policy": SinkWindow(), "budget": 3}, "3"),
    ],
)
def test_what_cannot_be_asked_is_refused(tiny, settings, says):
    with pytest.raises(ValueError, match=says):
        ask(tiny, CONTEXT, QUESTIONS, **settings)


def test_empty_questions_are_refused(tiny):
    with pytest.raises(ValueError, match="no questions"):
        ask(tiny, CONTEXT, [])
    with pytest.raises(ValueError, match="must say something"):
        ask(tiny, CONTEXT, [" "])


@pytest.mark.parametrize("chunk", [1, 5, 100])
@pytest.mark.parametrize("arch", CONFIGS)
def test_nll_at_full_cache_is_the_stock_model_s(arch, chunk):
    lm = fm.tiny(arch)
    run = nll(lm, IDS, prefill=30, chunk=chunk)
    assert run.first == 31 and run.evicting_from is None
    assert torch.allclose(run.losses, stock_losses(lm, IDS)[30:], atol=1e-4)
    within = nll(lm, IDS, Random(), 500, prefill=30, chunk=chunk)
    assert torch.allclose(within.losses, run.losses, atol=1e-4)
    assert within.evicting_from is None and len(within.delta(run)) == 0


def test_nll_under_eviction_is_that_of_one_masked_pass(tiny):
    from fmlab.masked import masked_logits

    run = nll(tiny, IDS, TOVA(), 12, prefill=30)
    logits = masked_logits(tiny.model, torch.tensor([IDS[:-1]]), run.expiry)[0]
    losses = torch.nn.functional.cross_entropy(logits, torch.tensor(IDS)[1:], reduction="none")
    assert torch.allclose(run.losses, losses[30:], atol=1e-3)
    assert run.nbytes < nll(tiny, IDS, prefill=30).nbytes


@pytest.mark.parametrize(("budget", "evicting_from"), [(20, 31), (30, 32), (40, 42), (78, 80 - 1 + 1)])
def test_nll_compares_only_what_was_predicted_after_eviction_began(tiny, budget, evicting_from):
    full = nll(tiny, IDS, prefill=30)
    run = nll(tiny, IDS, SinkWindow(), budget, prefill=30)
    expected = evicting_from if evicting_from < len(IDS) else None
    assert run.evicting_from == expected
    before = len(IDS) if expected is None else expected
    assert torch.allclose(run.losses[: before - 31], full.losses[: before - 31], atol=1e-4)
    delta = run.delta(full)
    assert len(delta) == len(IDS) - before
    assert torch.equal(delta, (run.losses - full.losses)[before - 31 :])
    if len(delta):
        assert int(run.expiry.min()) == before - 1  # the query that predicts token `before` is the first to miss one
        assert abs(float(delta[0])) > 0


def test_nll_runs_over_other_tokens_are_not_compared(tiny):
    with pytest.raises(ValueError, match="tokens 31 to 80 were scored here, 21 to 80 there"):
        nll(tiny, IDS, prefill=30).delta(nll(tiny, IDS, prefill=20))


def test_nll_takes_half_as_prefill_and_tells_how_far_it_is(tiny):
    seen = []
    run = nll(tiny, "a text of some length, in bytes", chunk=4, progress=seen.append)
    assert run.first == 16 and len(run.losses) == 15
    assert seen == [15, 19, 23, 27, 30]


def test_nll_can_be_cancelled(tiny):
    def cancel(done):
        raise KeyboardInterrupt

    before = tiny.model.config._attn_implementation
    with pytest.raises(KeyboardInterrupt):
        nll(tiny, IDS, SinkWindow(), 12, progress=cancel)
    assert tiny.model.config._attn_implementation == before


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"prefill": 79}, "80 tokens with a prefill of 79 leave none to score"),
        ({"prefill": 0}, "prefill=0"),
        ({"chunk": 0}, "chunk=0"),
        ({"budget": 20}, "policy None with budget 20"),
    ],
)
def test_nll_refuses(tiny, settings, says):
    with pytest.raises(ValueError, match=says):
        nll(tiny, IDS, **settings)


def test_a_model_s_own_window_counts_as_forgetting():
    lm = fm.tiny("mistral", sliding_window=16)
    (reply,) = ask(lm, CONTEXT, QUESTIONS[:1], max_new_tokens=1)
    seen = reply.expiry.shape[-1]
    assert reply.expiry[0, 0].tolist() == [min(j + 16, seen + 1) if j + 16 <= seen else seen + 1 for j in range(seen)]


def test_nothing_here_keeps_gradients(tiny):
    assert not nll(tiny, IDS).losses.requires_grad
    assert inspect.signature(ask).parameters["query_aware"].default is False


@pytest.mark.real
@pytest.mark.parametrize("tokens", [256, 512, 1024])
def test_smollm2_finds_the_needle_with_a_full_cache(lm, tokens):
    depths = [0, 0.25, 0.5, 0.75, 0.9, 1] if tokens > 256 else [0, 0.1, 0.25, 0.35, 0.5, 0.6, 0.75, 0.8, 0.9, 1]
    found = [answer(lm, needle(lm, tokens, depth, seed))[0] for seed, depth in enumerate(depths)]
    assert sum(each.answered for each in found) >= len(depths) - 1, [
        each.reply.text for each in found if not each.answered
    ]
    assert all(bool((each.present == 1).all()) for each in found)


@pytest.mark.real
def test_smollm2_forgets_what_was_evicted(lm):
    (lost,) = answer(lm, needle(lm, 512, 0.4), SinkWindow(), 64)
    assert not lost.answered and float(lost.present.max()) == 0
    (kept,) = answer(lm, needle(lm, 512, 1), SinkWindow(), 64)
    assert kept.answered and float(kept.present.min()) == 1


@pytest.mark.real
def test_smollm2_loses_likelihood_under_a_small_budget(lm):
    ids = lm.ids(needle(lm, 512).context)[:400]
    full, small = nll(lm, ids, prefill=300, chunk=20), nll(lm, ids, SinkWindow(), 32, prefill=300, chunk=20)
    assert 1 < float(full.losses.mean()) < 5
    assert float(small.delta(full).mean()) > 0.05
