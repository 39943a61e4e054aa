import numpy as np
import papers
import pytest
import torch

import fmlab as fm
from fmlab.policies import H2O, TOVA, KeyNorm, Random, SinkWindow, SlidingWindow, SnapKV
from fmlab.trace import Trace

PAPERS = {
    SlidingWindow(): papers.Sliding,
    SinkWindow(): papers.Streaming,
    KeyNorm(): papers.Norm,
    H2O(): papers.HeavyHitter,
    TOVA(): papers.Omission,
    SnapKV(window=6, kernel=3): papers.Observation,
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
    queries, keys = trace.queries[layer].double().numpy(), trace.keys[layer].double().numpy()
    return torch.from_numpy(paper(queries, keys, trace.scaling, budget).run(calls))


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


@pytest.mark.parametrize("recent", [0.0, 0.25, 1.0])
def test_the_recent_share_of_h2o(trace, recent):
    paper = type("Share", (papers.HeavyHitter,), {"recent": recent})
    ours = fm.replay(trace, H2O(recent), 12, prefill=20)[1]
    assert ours.tolist() == from_paper(paper, trace, 1, 12, [20] + [1] * 28).tolist()


@pytest.mark.parametrize(("window", "kernel"), [(1, 1), (4, 5), (12, 7)])
def test_window_and_kernel_of_snapkv(trace, window, kernel):
    paper = type("Kernel", (papers.Observation,), {"window": window, "kernel": kernel})
    ours = fm.replay(trace, SnapKV(window, kernel), 16, prefill=30)[2]
    assert ours.tolist() == from_paper(paper, trace, 2, 16, [30] + [1] * 18).tolist()


def drawn(layers=2, kv_heads=2, groups=3, tokens=24):
    """A trace of random numbers that every machine draws alike."""
    numbers = np.random.default_rng(20).standard_normal((layers, kv_heads * (groups + 2), tokens, 4)).astype(np.float32)
    queries, keys, values = torch.from_numpy(numbers).split([kv_heads * groups, kv_heads, kv_heads], 1)
    ids, pieces = torch.arange(tokens), tuple("x" * tokens)
    return Trace(ids, pieces, tuple(range(layers)), "drawn", 2 * queries, keys.contiguous(), values.contiguous(), 0.5)


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


@pytest.mark.parametrize(
    ("policy", "least"), [(SinkWindow(4), 5), (SnapKV(6, 3), 6), (SlidingWindow(), 1), (H2O(1.0), 1), (TOVA(), 1)]
)
def test_the_least_budget(policy, least):
    assert (fm.replay(drawn(), policy, least, prefill=20) == 25).sum(-1).eq(least).all()
    if least > 1:
        with pytest.raises(fm.BudgetError, match=rf"{type(policy).__name__}.*budget {least - 1} < {least} pinned"):
            fm.replay(drawn(), policy, least - 1, prefill=20)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SinkWindow(sinks=-1), "sinks=-1; give 0 or more"),
        (lambda: H2O(recent=1.5), "recent=1.5; give a share of the budget from 0 to 1"),
        (lambda: H2O(recent=-0.1), "recent=-0.1"),
        (lambda: SnapKV(window=0), "window=0; give 1 or more"),
        (lambda: SnapKV(kernel=4), "kernel=4; give an odd number"),
        (lambda: SnapKV(kernel=0), "kernel=0"),
    ],
)
def test_settings_that_mean_nothing(make, says):
    with pytest.raises(ValueError, match=says):
        make()
