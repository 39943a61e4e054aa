"""Every policy against its paper: replayed and live, in three patterns of calls."""

from dataclasses import replace

import papers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fmlab as fm
from fmlab.needs import LIVE
from fmlab.policies import (
    CUR,
    H2O,
    TOVA,
    ChunkKV,
    CriticalKV,
    DuoAttention,
    ExpectedAttention,
    Finch,
    KeyDiff,
    KeyNorm,
    KVZip,
    LagKV,
    LeverageScore,
    NonCausalAttention,
    ObservedAttention,
    Pinned,
    Scissorhands,
    SimLayerKV,
    SinkWindow,
    SlidingWindow,
    SnapKV,
    ValueWeighted,
)
from fmlab.policies.wrappers import _best

SNAP = SnapKV(window=6, kernel=3)
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
    ExpectedAttention(horizon=20, sinks=2, window=6): papers.Foretold,
    KVZip(): papers.Repeated,
    ChunkKV(SNAP, chunk=5): papers.Chunked,
    CriticalKV(SNAP): papers.Critical,
    ValueWeighted(): papers.Valued,
    Pinned(sinks=2, recent=3): papers.Pinning,
    DuoAttention(SNAP, sinks=2, recent=5, window=6): papers.Duo,
    SimLayerKV(SNAP, threshold=0.7, sinks=2, recent=5, window=6): papers.Lazy,
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
    LeverageScore(ridge=1e-6): other(papers.Leverage, ridge=1e-6),
    CUR("mean", block=5, sinks=0): other(papers.Shares, block=5, sinks=0, combine=lambda self, k, v: (k + v) / 2),
    CUR("key", sinks=1): other(papers.Shares, sinks=1, combine=lambda self, k, v: k),
    CUR("value", sinks=1): other(papers.Shares, sinks=1, combine=lambda self, k, v: v),
    ExpectedAttention(9, 0, covariance=False, value_norms=False): other(
        papers.Foretold, horizon=9, sinks=0, covariance=False, value_norms=False, window=32
    ),
    ExpectedAttention(horizon=500, epsilon=0.02): other(papers.Foretold, horizon=500, sinks=4, epsilon=0.02, window=32),
    ChunkKV(SNAP, chunk=3, shared=True): other(papers.Chunked, chunk=3, shared=True),
    CriticalKV(SNAP, share=0.0, epsilon=0.1): other(papers.Critical, share=0.0, epsilon=0.1),
    CriticalKV(SNAP, share=1.0): papers.Observation,
    ValueWeighted(H2O(recent=0.25), order=2): other(papers.Valued, recent=0.25, order=2),
    Pinned(sinks=0, recent=0): papers.Norm,
    DuoAttention(SNAP, by="area", sinks=1, recent=5, window=6): other(papers.Area, sinks=1),
    DuoAttention(SNAP, streaming=0.0, recent=5): papers.Observation,
    DuoAttention(SNAP, streaming=1.0, recent=5): papers.Streaming,
    SimLayerKV(SNAP, threshold=0.0, recent=5): papers.Streaming,
    SimLayerKV(SNAP, threshold=1.0, recent=5): papers.Observation,
}
CALLS = {"by token": [1] * 48, "prompt": [30] + [1] * 18, "chunks": [12, 5, 3, 13, 1, 1, 7] + [1] * 6}
IDS = torch.randperm(256, generator=torch.Generator().manual_seed(1))[:48]  # none twice: equal tokens would tie


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()  # six query heads on two KV heads


@pytest.fixture(scope="module")
def trace(tiny):
    return fm.record(tiny, IDS, dtype=torch.float32, second_pass=True)


def from_paper(paper, trace, layer, budget, calls):
    return torch.from_numpy(paper(trace, layer, budget).run(calls))


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("policy", "paper"), PAPERS.items(), ids=map(repr, PAPERS))
def test_replay_is_the_paper(trace, policy, paper, calls):
    for layer, budget in ((1, 8), (2, 19)):
        ours = fm.replay(trace, policy, budget, prefill=tuple(calls))[layer]
        assert ours.tolist() == from_paper(paper, trace, layer, budget, calls).tolist()
    assert trace.groups == 3


@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "policy", [LagKV(sinks=1, lag=3), CUR(), ValueWeighted(), NonCausalAttention(chunk=7)], ids=repr
)
def test_values_may_be_narrower_than_keys(trace, policy, calls):
    narrow = replace(trace, values=trace.values[..., :5].contiguous())
    ours = fm.replay(narrow, policy, 19, prefill=tuple(calls))[2]
    assert ours.tolist() == from_paper(PAPERS[policy], narrow, 2, 19, calls).tolist()


LIVING = {policy: paper for policy, paper in PAPERS.items() if policy.needs <= LIVE}


@torch.no_grad()
@pytest.mark.parametrize("calls", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(("policy", "paper"), LIVING.items(), ids=map(repr, LIVING))
def test_live_is_the_paper_at_the_first_layer(tiny, trace, policy, paper, calls):
    with fm.finite(tiny.model, policy, 11) as cache:
        for part in IDS[None].split(calls, 1):
            tiny.model(input_ids=part, past_key_values=cache)
    assert cache.expiry[0].tolist() == from_paper(paper, trace, 0, 11, calls).tolist()


@pytest.mark.parametrize(("policy", "paper"), CHOICES.items(), ids=map(repr, CHOICES))
def test_every_choice_is_that_of_the_paper(trace, policy, paper):
    ours = fm.replay(trace, policy, 16, prefill=30)[1]
    assert ours.tolist() == from_paper(paper, trace, 1, 16, [30] + [1] * 18).tolist()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_the_best_are_those_that_a_full_ranking_gives(data):
    heads, n = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 9))
    numbers = st.sampled_from([0.0, 1.0, 2.0, torch.inf])  # many ties
    scores = torch.tensor(data.draw(st.lists(numbers, min_size=heads * n, max_size=heads * n))).view(heads, n)
    positions = torch.stack([torch.tensor(data.draw(st.permutations(range(n)))) for _ in range(heads)])
    count = torch.tensor(data.draw(st.lists(st.integers(0, n + 1), min_size=heads, max_size=heads)))
    kept = _best(scores, positions, count)
    for head in range(heads):
        ranked = sorted(range(n), key=lambda i: (scores[head, i].item(), positions[head, i].item()), reverse=True)
        assert set(kept[head].nonzero()[:, 0].tolist()) == set(ranked[: int(count[head])])
