"""What published implementations get wrong and what policies promise: settings, least budgets, pins, chunks, needs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import drawn

import fmlab as fm
from fmlab.bag import Bag
from fmlab.contract import example
from fmlab.core import View
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
    Random,
    Scissorhands,
    SimLayerKV,
    SinkWindow,
    SlidingWindow,
    SnapKV,
    ValueWeighted,
)
from fmlab.rope import Rope
from fmlab.trace import Trace


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
def test_random_treats_a_sequence_in_a_batch_as_alone():
    tiny = fm.tiny()
    ids = torch.stack([torch.arange(48), torch.arange(48).flip(0)])
    with fm.finite(tiny.model, Random(5), 8) as cache:
        tiny.model(input_ids=ids, past_key_values=cache)
    assert torch.equal(cache.expiry[0], cache.expiry[1]) and cache.expiry.shape == (2, 3, 2, 48)


@pytest.mark.parametrize("sinks", [1, 4])
def test_sinks_survive_a_thousand_evictions(sinks):
    expiry = fm.replay(drawn(tokens=1_100), SinkWindow(sinks), 16)
    held = expiry == 1_101
    assert held[..., :sinks].all() and held[..., -(16 - sinks) :].all() and (held.sum(-1) == 16).all()


SNAP = SnapKV(window=6, kernel=3)
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
    ExpectedAttention(sinks=3): 3,
    KVZip(): 1,
    ChunkKV(SNAP): 6,
    ChunkKV(KeyDiff()): 1,
    CriticalKV(SNAP): 6,
    CriticalKV(ObservedAttention()): 1,
    ValueWeighted(): 1,
    Pinned(sinks=2, recent=3): 5,
    DuoAttention(SNAP, sinks=1, recent=2): 6,
    DuoAttention(ObservedAttention(), sinks=2, recent=5): 7,
    SimLayerKV(SNAP, threshold=1.0, sinks=1, recent=2): 6,
    SimLayerKV(TOVA(), sinks=2, recent=5): 7,
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
        (lambda: ExpectedAttention(horizon=0), "horizon=0; give 1 or more"),
        (lambda: ExpectedAttention(sinks=-1), "sinks=-1; give 0 or more"),
        (lambda: ExpectedAttention(window=0), "window=0; give 1 or more"),
        (lambda: ExpectedAttention(epsilon=-1.0), "epsilon=-1.0; give 0 or more"),
        (lambda: ChunkKV(chunk=0), "chunk=0; give 1 or more tokens"),
        (lambda: CriticalKV(share=1.5), "share=1.5; give a share of the budget from 0 to 1"),
        (lambda: CriticalKV(epsilon=-0.1), "epsilon=-0.1; give 0 or more"),
        (lambda: Pinned(sinks=-1), "sinks=-1; give 0 or more"),
        (lambda: Pinned(recent=-1), "recent=-1; give 0 or more"),
        (lambda: DuoAttention(streaming=2.0), "streaming=2.0; give a share of the heads from 0 to 1"),
        (lambda: DuoAttention(window=0), "window=0; give 1 or more"),
        (lambda: DuoAttention(recent=-1), "recent=-1; give 0 or more"),
        (lambda: SimLayerKV(threshold=-0.1), "threshold=-0.1; give a share of the attention from 0 to 1"),
        (lambda: SimLayerKV(sinks=-1), "sinks=-1; give 0 or more"),
    ],
)
def test_settings_that_mean_nothing(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("kind", "field", "value"), [(CUR, "leverage", "keys"), (ValueWeighted, "order", 3), (DuoAttention, "by", "length")]
)
def test_a_choice_that_there_is_not(kind, field, value):
    with pytest.raises((ValueError, TypeError), match=f"(?s){field}.*{value}"):
        kind(**{field: value})


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


def test_chunks_stay_whole_but_for_one_that_is_leaving():
    trace = drawn(tokens=80)
    for prefill in (1, 40):
        expiry = fm.replay(trace, ChunkKV(H2O(recent=0.0), chunk=5), 23, prefill=prefill)
        for seen in range(45, 81, 5):
            held = (expiry[..., :seen] > seen).unflatten(-1, (-1, 5)).sum(-1)
            assert (((held > 0) & (held < 5)).sum(-1) <= 1).all(), seen


def test_chunks_that_a_layer_shares():
    expiry = fm.replay(drawn(tokens=60), ChunkKV(KeyNorm(), chunk=5, shared=True), 23, prefill=30)
    assert torch.equal(expiry[:, 0], expiry[:, 1]) and not torch.equal(expiry[0], expiry[1])
    alone = fm.replay(drawn(tokens=60), ChunkKV(KeyNorm(), chunk=5), 23, prefill=30)
    assert not torch.equal(alone[:, 0], alone[:, 1])


@pytest.mark.parametrize("inner", [SnapKV(window=6, kernel=3), Finch(window=6), Scissorhands(recent=6)], ids=repr)
@pytest.mark.parametrize("wrap", [lambda p: p, ChunkKV, Pinned, ValueWeighted, CriticalKV], ids=lambda w: w.__name__)
def test_a_pinned_window_survives_a_thousand_evictions(inner, wrap):
    if wrap in (ValueWeighted, CriticalKV) and isinstance(inner, Scissorhands):
        with pytest.raises(
            ValueError, match="multiplies scores, and some are negative; wrap a policy that scores by att"
        ):
            fm.replay(drawn(tokens=40), wrap(inner), 20)
        return
    expiry = fm.replay(drawn(layers=1, tokens=1_020), wrap(inner), 20, prefill=9)
    held = expiry == 1_021
    assert held[..., -6:].all() and (held.sum(-1) == 20).all()


def test_columns_of_policies_in_policies_do_not_meet():
    twice = ValueWeighted(ValueWeighted(ObservedAttention(), order=1), order=2)
    view = example(entries=40, new=40)
    stats = twice.observe(view, {})
    assert sorted(stats) == ["inside.inside.received", "inside.norm", "norm"]
    received = ObservedAttention().score(view, ObservedAttention().observe(view, {}))
    by_hand = received * view.values.abs().sum(-1) * view.values.norm(dim=-1)
    torch.testing.assert_close(twice.score(view, stats), by_hand)


def test_what_a_wrapper_needs():
    assert CriticalKV(LeverageScore()).needs == {"pre_rope", "output_projection"}
    assert Pinned(CriticalKV(KVZip())).needs == {"output_projection", "second_pass"}
    assert DuoAttention(by="area").needs == {"pre_rope"} and SimLayerKV().needs == frozenset()
    bare = replace(drawn(), rope=None)
    with pytest.raises(ValueError, match=r"Pinned\(policy=LeverageScore.* needs pre_rope, which a replay"):
        fm.replay(bare, Pinned(LeverageScore()), 16)


def test_lazy_layers_are_decided_once_and_one_by_one():
    trace, policy = drawn(layers=6, tokens=60), SimLayerKV(ObservedAttention(), 0.805, sinks=2, recent=12)
    expiry, streamed = fm.replay(trace, policy, 16, prefill=30), fm.replay(trace, SinkWindow(2), 16, prefill=30)
    lazy = (expiry == streamed).flatten(1).all(-1)
    rest = fm.replay(trace, ObservedAttention(), 16, prefill=30)
    assert lazy.tolist() == [False, True, True, False, True, False] and torch.equal(expiry[~lazy], rest[~lazy])


def test_heads_that_part_cannot_be_averaged():
    with pytest.raises(ValueError, match="heads of one layer hold different positions"):
        fm.replay(drawn(), DuoAttention(TOVA(), recent=4), 9, prefill=12)


@pytest.mark.parametrize("kind", [DuoAttention, SimLayerKV])
def test_a_budget_of_sinks_and_newest_alone_tells_nobody_apart(kind):
    with pytest.raises(fm.BudgetError, match=rf"budget 27 < 28 = sinks \+ recent of {kind.__name__}.*or lower recent"):
        fm.replay(drawn(tokens=60), kind(H2O()), 27)


def test_the_first_tokens_are_nothing_special_to_kvzip():
    trace = drawn()
    for likely, kept in ((1e-3, False), (0.9999, True)):
        repeated = trace.repeated.index_fill(-1, torch.arange(4), likely)
        held = fm.replay(replace(trace, repeated=repeated), KVZip(), 12, prefill=24) == 25
        assert bool(held[..., :4].any()) == bool(held[..., :4].all()) == kept


def test_how_far_a_head_looks_is_what_falls_on_neither_sinks_nor_newest():
    view = example(entries=40, new=40)
    far = DuoAttention(sinks=3, recent=5, window=8).observe(view, {})["far"]
    paid = view.attention(last=8)
    for row in range(4):
        by_query = [sum(float(paid[row, q, p]) for p in range(3, 32 + q + 1 - 5)) for q in range(8)]
        assert far[row].tolist() == pytest.approx([sum(by_query) / 8] * 40)


def test_heads_that_stream_go_on_streaming_when_an_allocation_parts_them():
    trace, policy = replace(drawn(tokens=120), depth=2), DuoAttention(ObservedAttention(), sinks=4, recent=24)
    held = (fm.replay(trace, policy, fm.policies.Ada(40), prefill=90) == 121).flatten(0, 1)
    counts = held.sum(-1).tolist()
    streaming = [row[:4].all().item() and row[4 - n :].all().item() for row, n in zip(held, counts, strict=True)]
    assert len(set(counts)) > 1 and sum(streaming[:2]) == 1 == sum(streaming[2:])
