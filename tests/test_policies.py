import numpy as np
import papers
import pytest
import torch

import fmlab as fm
from fmlab.bag import Bag
from fmlab.contract import example
from fmlab.core import View
from fmlab.policies import (
    CUR,
    H2O,
    TOVA,
    Finch,
    KeyDiff,
    KeyNorm,
    LagKV,
    LeverageScore,
    NonCausalAttention,
    ObservedAttention,
    Random,
    Scissorhands,
    SinkWindow,
    SlidingWindow,
    SnapKV,
)
from fmlab.rope import Rope
from fmlab.trace import Trace

PAPERS = {
    SlidingWindow(): papers.Sliding,
    SinkWindow(): papers.Streaming,
    KeyNorm(): papers.Norm,
    H2O(): papers.HeavyHitter,
    TOVA(): papers.Omission,
    SnapKV(window=6, kernel=3): papers.Observation,
    ObservedAttention(): papers.MeanReceived,
    Scissorhands(window=6, recent=2): papers.Persistent,
    Finch(window=6): papers.Question,
    NonCausalAttention(chunk=7): papers.Tiles,
    KeyDiff(): papers.Likeness,
    LagKV(sinks=1, lag=3): papers.Lag,
    LeverageScore(): papers.Leverage,
    CUR(): papers.Shares,
}


def other(paper, **settings):
    """The same paper with other settings."""
    return type("Other", (paper,), settings)


# settings that a paper leaves open, or that say how it is run
CHOICES = {
    H2O(recent=0.0): other(papers.HeavyHitter, recent=0.0),
    H2O(recent=0.25): other(papers.HeavyHitter, recent=0.25),
    H2O(recent=1.0): other(papers.HeavyHitter, recent=1.0),
    SnapKV(window=1, kernel=1): other(papers.Observation, window=1, kernel=1),
    SnapKV(window=4, kernel=5): other(papers.Observation, window=4, kernel=5),
    SnapKV(window=12, kernel=7): other(papers.Observation, window=12, kernel=7),
    Scissorhands(window=40, recent=0): other(papers.Persistent, window=40, recent=0),
    NonCausalAttention(chunk=100, kernel=1, scaled=True): other(papers.Tiles, chunk=100, kernel=1, scaled=True),
    KeyDiff(directions=False): other(papers.Likeness, directions=False),
    LagKV(sinks=0, lag=7): other(papers.Lag, sinks=0, lag=7),
    LeverageScore(ridge=0.5): other(papers.Leverage, ridge=0.5),
    CUR("mean", block=5, sinks=0): other(papers.Shares, block=5, sinks=0, combine=lambda self, k, v: (k + v) / 2),
    CUR("key", sinks=1): other(papers.Shares, sinks=1, combine=lambda self, k, v: k),
    CUR("value", sinks=1): other(papers.Shares, sinks=1, combine=lambda self, k, v: v),
}
CALLS = {"by token": [1] * 48, "prompt": [30] + [1] * 18, "chunks": [12, 5, 3, 13, 1, 1, 7] + [1] * 6}
IDS = torch.randperm(256, generator=torch.Generator().manual_seed(1))[:48]  # none twice: equal tokens would tie


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()  # six query heads on two KV heads


@pytest.fixture(scope="module")
def trace(tiny):
    return fm.record(tiny, IDS, dtype=torch.float32)


def from_paper(paper, trace, layer, budget, calls):
    return torch.from_numpy(paper(trace, layer, budget).run(calls))


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("policy", "paper"), PAPERS.items(), ids=map(repr, PAPERS))
def test_replay_is_the_paper(trace, policy, paper, calls):
    for layer, budget in ((1, 8), (2, 19)):
        ours = fm.replay(trace, policy, budget, prefill=tuple(calls))[layer]
        assert ours.tolist() == from_paper(paper, trace, layer, budget, calls).tolist()
    assert trace.groups == 3


@torch.no_grad()
@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("policy", "paper"), PAPERS.items(), ids=map(repr, PAPERS))
def test_live_is_the_paper_at_the_first_layer(tiny, trace, policy, paper, calls):
    with fm.finite(tiny.model, policy, 11) as cache:
        for part in IDS[None].split(calls, 1):
            tiny.model(input_ids=part, past_key_values=cache)
    assert cache.expiry[0].tolist() == from_paper(paper, trace, 0, 11, calls).tolist()


@pytest.mark.parametrize(("policy", "paper"), CHOICES.items(), ids=map(repr, CHOICES))
def test_every_choice_is_that_of_the_paper(trace, policy, paper):
    ours = fm.replay(trace, policy, 16, prefill=30)[1]
    assert ours.tolist() == from_paper(paper, trace, 1, 16, [30] + [1] * 18).tolist()


def drawn(layers=2, kv_heads=2, groups=3, tokens=24):
    """A trace of random numbers that every machine draws alike."""
    numbers = np.random.default_rng(20).standard_normal((layers, kv_heads * (groups + 2), tokens, 4)).astype(np.float32)
    queries, keys, values = torch.from_numpy(numbers).split([kv_heads * groups, kv_heads, kv_heads], 1)
    ids, pieces = torch.arange(tokens), tuple("x" * tokens)
    rope = Rope(0.1 ** torch.arange(2))
    norms, repeated = values.abs().sum(-1), keys[..., 0].sigmoid()
    columns = {"output_norms": norms, "repeated": repeated, "rope": rope}
    vectors = (2 * queries, keys.contiguous(), values.contiguous())
    return Trace(ids, pieces, tuple(range(layers)), "drawn", *vectors, 0.5, **columns)


# policy and budget: what the two heads of the second layer hold at the end, and a sum over all expiries
GOLDEN = {
    (SlidingWindow(), 5): ([[19, 20, 21, 22, 23], [19, 20, 21, 22, 23]], 85244),
    (SinkWindow(sinks=4), 7): ([[0, 1, 2, 3, 21, 22, 23], [0, 1, 2, 3, 21, 22, 23]], 87896),
    (Random(seed=0), 5): ([[0, 9, 17, 20, 22], [0, 1, 3, 7, 19]], 83423),
    (Random(seed=3), 5): ([[3, 10, 11, 14, 23], [5, 11, 12, 16, 20]], 83713),
    (KeyNorm(), 3): ([[12, 14, 16], [1, 2, 4]], 78905),
    (KeyNorm(), 8): ([[1, 2, 12, 14, 16, 18, 21, 23], [1, 2, 4, 6, 13, 15, 22, 23]], 90631),
    (H2O(recent=0.5), 4): ([[0, 1, 22, 23], [0, 3, 22, 23]], 81279),
    (H2O(recent=0.5), 9): ([[0, 1, 2, 4, 8, 20, 21, 22, 23], [0, 1, 2, 3, 5, 20, 21, 22, 23]], 92727),
    (TOVA(), 4): ([[18, 21, 22, 23], [18, 21, 22, 23]], 82378),
    (TOVA(), 9): ([[0, 3, 11, 13, 15, 20, 21, 22, 23], [0, 3, 11, 13, 15, 20, 21, 22, 23]], 93800),
    (SnapKV(window=3, kernel=3), 5): ([[4, 7, 21, 22, 23], [17, 18, 21, 22, 23]], 84652),
    (SnapKV(window=3, kernel=3), 9): ([[3, 4, 5, 7, 8, 9, 21, 22, 23], [4, 6, 7, 9, 17, 18, 21, 22, 23]], 93275),
    (ObservedAttention(), 5): ([[0, 4, 13, 20, 22], [0, 3, 14, 17, 23]], 83367),
    (ObservedAttention(), 9): ([[0, 1, 2, 3, 4, 8, 13, 20, 22], [0, 1, 2, 3, 5, 6, 7, 17, 23]], 91846),
    (Scissorhands(window=4, recent=2), 5): ([[19, 20, 21, 22, 23], [18, 20, 21, 22, 23]], 84959),
    (Scissorhands(window=4, recent=2), 9): (
        [[4, 13, 15, 18, 19, 20, 21, 22, 23], [11, 14, 17, 18, 19, 20, 21, 22, 23]],
        94345,
    ),
    (Finch(window=3), 5): ([[4, 13, 21, 22, 23], [7, 17, 21, 22, 23]], 84468),
    (Finch(window=3), 9): ([[0, 3, 4, 8, 13, 20, 21, 22, 23], [0, 3, 6, 7, 16, 17, 21, 22, 23]], 93319),
    (NonCausalAttention(chunk=5), 5): ([[5, 9, 12, 18, 19], [6, 7, 15, 16, 19]], 83469),
    (NonCausalAttention(chunk=256, kernel=1, scaled=True), 9): (
        [[0, 4, 8, 12, 16, 17, 18, 19, 22], [3, 7, 10, 12, 14, 15, 16, 18, 19]],
        92948,
    ),
    (KeyDiff(), 4): ([[0, 12, 13, 22], [0, 12, 14, 16]], 81332),
    (KeyDiff(), 9): ([[0, 1, 2, 4, 9, 10, 11, 16, 17], [0, 5, 6, 10, 14, 15, 17, 20, 22]], 92531),
    (LagKV(sinks=2, lag=3), 8): ([[0, 1, 16, 19, 20, 21, 22, 23], [0, 1, 16, 17, 20, 21, 22, 23]], 91413),
    (LagKV(sinks=1, lag=4), 12): (
        [[0, 4, 8, 9, 16, 17, 18, 19, 20, 21, 22, 23], [0, 3, 7, 11, 16, 17, 18, 19, 20, 21, 22, 23]],
        100633,
    ),
    (LeverageScore(), 4): ([[8, 13, 20, 22], [11, 17, 18, 19]], 81355),
    (LeverageScore(sketch=2), 9): ([[0, 3, 4, 5, 8, 11, 13, 17, 22], [3, 5, 10, 11, 14, 16, 17, 19, 21]], 92710),
    (CUR(), 6): ([[0, 1, 2, 3, 19, 22], [0, 1, 2, 3, 16, 19]], 84941),
    (CUR(leverage="mean", block=4, sinks=1, sketch=3, seed=2), 9): (
        [[0, 2, 5, 6, 8, 13, 17, 19, 22], [0, 3, 7, 9, 10, 14, 19, 22, 23]],
        92815,
    ),
}


@pytest.mark.parametrize(("policy", "budget"), GOLDEN, ids=str)
def test_golden(policy, budget):
    expiry = fm.replay(drawn(), policy, budget, prefill=12)
    held = [row.nonzero().flatten().tolist() for row in (expiry[1] == 25)]
    assert (held, int(expiry.flatten() @ torch.arange(expiry.numel()))) == GOLDEN[policy, budget]


def test_random_keeps_a_uniform_sample_at_every_step():
    rows, tokens, budget = 40 * 10, 48, 12
    zeros = torch.zeros(40, 10, tokens, 1)
    trace = Trace(torch.arange(tokens), tuple("x" * tokens), tuple(range(40)), "none", zeros, zeros, zeros, 1.0)
    for seed in range(2):
        expiry = fm.replay(trace, Random(seed), budget).flatten(0, 1)
        for after in (13, 30, tokens):
            counts = (expiry[:, :after] > after).double().sum(0)
            expected = rows * budget / after
            chi_square = float(((counts - expected) ** 2 / (expected * (1 - budget / after))).sum())
            assert chi_square < after + 4 * (2 * after) ** 0.5  # mean plus four deviations
        assert len({tuple(row) for row in expiry.tolist()}) == rows  # every layer and head draws for itself
    assert not torch.equal(expiry, fm.replay(trace, Random(0), budget).flatten(0, 1))


@torch.no_grad()
def test_random_treats_a_sequence_in_a_batch_as_alone(tiny):
    ids = torch.stack([IDS, IDS.flip(0)])
    with fm.finite(tiny.model, Random(5), 8) as cache:
        tiny.model(input_ids=ids, past_key_values=cache)
    assert torch.equal(cache.expiry[0], cache.expiry[1]) and cache.expiry.shape == (2, 3, 2, 48)


@pytest.mark.parametrize("sinks", [1, 4])
def test_sinks_survive_a_thousand_evictions(sinks):
    expiry = fm.replay(drawn(tokens=1_100), SinkWindow(sinks), 16)
    held = expiry == 1_101
    assert held[..., :sinks].all() and held[..., -(16 - sinks) :].all() and (held.sum(-1) == 16).all()


LEAST = {
    SinkWindow(4): 5,
    SnapKV(6, 3): 6,
    SlidingWindow(): 1,
    H2O(1.0): 1,
    TOVA(): 1,
    ObservedAttention(): 1,
    Scissorhands(6, 3): 3,
    Finch(6): 6,
    NonCausalAttention(): 1,
    KeyDiff(): 1,
    LagKV(2, 3): 8,
    LeverageScore(): 1,
    CUR(sinks=3): 3,
}


@pytest.mark.parametrize(("policy", "least"), LEAST.items(), ids=map(repr, LEAST))
def test_the_least_budget(policy, least):
    assert (fm.replay(drawn(), policy, least, prefill=20) == 25).sum(-1).eq(least).all()
    if least > 1:
        with pytest.raises(fm.BudgetError, match=rf"(?s)budget {least - 1} < {least}.*raise the budget") as caught:
            fm.replay(drawn(), policy, least - 1, prefill=20)
        assert type(policy).__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SinkWindow(sinks=-1), "sinks=-1; give 0 or more"),
        (lambda: H2O(recent=1.5), "recent=1.5; give a share of the budget from 0 to 1"),
        (lambda: H2O(recent=-0.1), "recent=-0.1"),
        (lambda: SnapKV(window=0), "window=0; give 1 or more"),
        (lambda: SnapKV(kernel=4), "kernel=4; give an odd number"),
        (lambda: SnapKV(kernel=0), "kernel=0"),
        (lambda: Scissorhands(window=0), "window=0; give 1 or more"),
        (lambda: Scissorhands(recent=-1), "recent=-1; give 0 or more"),
        (lambda: Finch(window=-2), "window=-2; give 1 or more"),
        (lambda: NonCausalAttention(chunk=0), "chunk=0; give 1 or more tokens"),
        (lambda: NonCausalAttention(kernel=2), "kernel=2; give an odd number"),
        (lambda: LagKV(sinks=-1), "sinks=-1; give 0 or more"),
        (lambda: LagKV(lag=0), "lag=0; give 1 or more tokens"),
        (lambda: LeverageScore(sketch=0), "sketch=0; give 1 or more columns"),
        (lambda: LeverageScore(ridge=0.0), "ridge=0.0; give a number above 0"),
        (lambda: CUR(block=0), "block=0; give 1 or more places"),
        (lambda: CUR(sinks=-1), "sinks=-1; give 0 or more"),
        (lambda: CUR(sketch=-1), "sketch=-1; give 0 for exact norms"),
    ],
)
def test_settings_that_mean_nothing(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_leverage_that_there_is_not():
    with pytest.raises((ValueError, TypeError), match="(?s)leverage.*'keys'"):
        CUR(leverage="keys")


def test_a_short_last_chunk_is_not_inflated():
    view = example(entries=10, new=10)
    worth = NonCausalAttention(chunk=7, kernel=1).observe(view, {})["worth"] / view.values.norm(dim=-1)
    torch.testing.assert_close(worth[:, :7].sum(-1), torch.full((4,), 7.0))
    torch.testing.assert_close(worth[:, 7:].sum(-1), torch.full((4,), 3.0))


def test_a_sketch_is_close_to_the_leverage_itself():
    keys = torch.from_numpy(np.random.default_rng(3).standard_normal((1, 1, 400, 64)).astype(np.float32))
    keys *= 0.9 ** torch.arange(64)  # some directions matter more
    bag, rope = Bag.of(1, [0], 1, 1), Rope(torch.zeros(32))
    view = View(
        bag, torch.arange(400)[None], 400, torch.tensor([100]), scaling=0.125, keys=lambda: keys[0],
        values=lambda: keys[0], queries=lambda: keys[0], prepared={"pre_rope": lambda: rope},
    )  # fmt: skip
    exact, *sketched = (
        LeverageScore(sketch, seed=seed).score(view, {})[0] for sketch, seed in ((64, 0), (48, 0), (48, 1))
    )
    for close in sketched:
        assert float(torch.corrcoef(torch.stack([exact, close]))[0, 1]) > 0.8
    assert not torch.equal(*sketched)


@pytest.mark.parametrize("sketch", [8, 20])
def test_norms_of_a_projection_are_those_of_the_vectors_on_average(sketch):
    view = example(entries=40, new=40)
    drawn = torch.stack([CUR(sketch=sketch, seed=seed).observe(view, {})["key"] for seed in range(60)])
    ratio = drawn.mean(0) / view.keys.square().sum(-1)
    assert abs(float(ratio.mean()) - 1) < 0.05 and float(drawn.std(0).mean()) > 0


def test_lagkv_refuses_a_budget_in_which_it_would_rank_nothing():
    with pytest.raises(fm.BudgetError, match=r"budget 27 < 28 = sinks \+ 2 \* lag of LagKV\(sinks=4, lag=12\)"):
        fm.replay(drawn(tokens=60), LagKV(), 27)
    expiry = fm.replay(drawn(tokens=200), LagKV(), 28)
    assert (expiry != fm.replay(drawn(tokens=200), SinkWindow(4), 28)).any()


@pytest.mark.parametrize("budget", [44, 68])
def test_lagkv_keeps_an_equal_share_of_each_block(budget):
    held = fm.replay(drawn(tokens=4 + 12 * 8), LagKV(), budget, prefill=100) == 101
    blocks = held[..., 4:].view(2, 2, 8, 12).sum(-1)
    assert held[..., :4].all() and (blocks[..., -1] == 12).all()
    assert (blocks[..., :-1].amax(-1) - blocks[..., :-1].amin(-1) <= 1).all()
