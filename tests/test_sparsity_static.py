"""Static patterns against their rule for every pair of tokens, written from the papers and rounded outwards by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sparsity_choice import sizes

from fmlab.sparsity import BigBird, Dilated, Grid, LocalGlobal, SlidingBlocks, Streaming, Strided

RULES = [  # pattern, and whether a query at i sees a key at j <= i
    (SlidingBlocks(1), lambda i, j: i == j),
    (SlidingBlocks(5), lambda i, j: i - j < 5),
    (Streaming(0, 3), lambda i, j: i - j < 3),
    (Streaming(2, 3), lambda i, j: j < 2 or i - j < 3),
    (Streaming(7, 1), lambda i, j: j < 7 or i == j),
    (LocalGlobal(2, (0, 6, 99)), lambda i, j: i - j < 2 or i in (0, 6) or j in (0, 6)),
    (LocalGlobal(3, ()), lambda i, j: i - j < 3),
    (BigBird(3, 2, random=0), lambda i, j: j < 3 or i - j < 2),
    (Strided(1), lambda i, j: True),
    (Strided(4), lambda i, j: i - j <= 4 or (i - j) % 4 == 0),  # section 4.2: A(1) and A(2)
    (Strided(9), lambda i, j: i - j <= 9 or (i - j) % 9 == 0),
    (Dilated(1, 5), lambda i, j: i == j),
    (Dilated(3, 4), lambda i, j: i - j in (0, 4, 8)),
    (Dilated(4, 1), lambda i, j: i - j < 4),
]


def tensors(n, m, heads=2, kv_heads=1, batch=1, d=2):
    return torch.empty(batch, heads, n, d), torch.empty(batch, kv_heads, m, d)


@pytest.mark.parametrize(("pattern", "sees"), RULES, ids=[repr(p) for p, _ in RULES])
@settings(deadline=None, max_examples=40)
@given(size=sizes)
def test_every_block_that_the_rule_touches_and_no_other(pattern, sees, size):
    n, m, block = size
    choice = pattern.blocks(*tensors(n, m), block)
    expected = torch.zeros(choice.blocks.shape[2:], dtype=torch.bool)
    for i in range(n):
        for j in range(i + m - n + 1):
            if sees(i + m - n, j):
                expected[i // block, j // block] = True
    assert torch.equal(choice.blocks[0, 0], expected)
    assert choice.blocks.shape[:2] == (1, 2)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 5), st.integers(0, 3), st.integers(0, 5))
def test_bigbird_draws_as_many_blocks_as_there_are(random, sinks, seed):
    q, k = tensors(37, 37, heads=3)
    sure = Streaming(sinks, 5).blocks(q, k, 4)
    drawn = BigBird(sinks, 5, random, seed).blocks(q, k, 4).blocks & ~sure.blocks
    left = (Grid(37, 37, 4).visible & ~sure.blocks).sum(-1)
    assert torch.equal(drawn.sum(-1), left.clamp(max=random))


def test_bigbird_draws_uniformly_and_apart_in_each_head_and_seed():
    q, k = tensors(4 * 101, 4 * 101, heads=300)
    drawn = [BigBird(0, 1, 10, seed).blocks(q, k, 4).blocks[0, :, -1, :-1] for seed in (0, 0, 1)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert len(drawn[0].unique(dim=0)) == 300
    often = drawn[0].float().mean(0)  # of each key block: 10 of 100 in 300 heads, six standard deviations
    assert often.min() > 0.0 and often.max() < 0.21 and often.mean() == pytest.approx(0.1)


@pytest.mark.parametrize("pattern", [p for p, _ in RULES] + [BigBird(3, 2, random=2)], ids=repr)
def test_a_chunk_is_attended_to_as_the_whole(pattern):
    whole = pattern.blocks(*tensors(26, 26), 4).blocks
    chunk = pattern.blocks(*tensors(10, 26), 4).blocks
    assert torch.equal(chunk, whole[:, :, 4:])


@pytest.mark.parametrize("pattern", [p for p, _ in RULES], ids=repr)
@settings(deadline=None, max_examples=40)
@given(size=sizes)
def test_a_chunk_that_begins_within_a_block_sees_at_least_what_the_rule_says(pattern, size):
    n, m, block = size
    ruled = pattern.blocks(*tensors(m, m), 1).mask()[:, :, m - n :]
    assert not (ruled & ~pattern.blocks(*tensors(n, m), block).mask()).any()


def test_a_chunk_that_begins_within_a_block_rounds_otherwise():
    def seen(pattern, n):
        whole, chunk = (pattern.blocks(*tensors(some, 40), 4).mask()[:, :, -n:] for some in (40, n))
        return int((chunk & ~whole).sum()), int((whole & ~chunk).sum())  # more, and less, than in one piece

    assert seen(SlidingBlocks(3), 12) == seen(BigBird(0, 1, 2), 12) == (0, 0)
    assert seen(SlidingBlocks(3), 11)[0] > 0 == seen(SlidingBlocks(3), 11)[1]
    assert seen(SlidingBlocks(2), 11)[0] == 0 < seen(SlidingBlocks(2), 11)[1]
    assert min(seen(BigBird(0, 1, 2), 11)) > 0, "other blocks are drawn"


def test_union_and_intersection_are_patterns():
    q, k = tensors(20, 30)
    one, other = Streaming(4, 2), Strided(6)
    masks = [p.blocks(q, k, 2).mask() for p in (one, other, one | other, one & other)]
    assert torch.equal(masks[0] | masks[1], masks[2]) and torch.equal(masks[0] & masks[1], masks[3])
    assert repr(one & other) == "Intersection(one=Streaming(sinks=4, window=2), other=Strided(stride=6))"
    assert (one | other) == (one | other)
    with pytest.raises(TypeError):
        one | 3


@pytest.mark.parametrize(
    "pattern", [SlidingBlocks(), Streaming(), LocalGlobal(), BigBird(), Strided(), Dilated()], ids=repr
)
def test_16k_tokens_take_megabytes(pattern):
    q, k = (torch.empty(1, 9, 16_384, 1) for _ in range(2))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        choice = pattern.blocks(q, k)
        assert 0 < choice.density < 0.3
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest <= 9 * 256 * 256 * 16  # two integers a block of each head, where tokens squared are 268 million


@pytest.mark.parametrize(
    "make",
    [
        lambda: SlidingBlocks(0),
        lambda: Streaming(-1, 4),
        lambda: Streaming(1, 0),
        lambda: LocalGlobal(4, (-1,)),
        lambda: BigBird(random=-1),
        lambda: Strided(0),
        lambda: Dilated(2, 0),
    ],
)
def test_bad_counts_are_refused(make):
    with pytest.raises(ValueError, match=r"=?-?\d; give \d or more"):
        make()


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="4 query heads over 3 KV heads"):
        Streaming().blocks(*tensors(8, 8, heads=4, kv_heads=3))
    with pytest.raises(ValueError, match="9 queries over 8 keys"):
        Streaming().blocks(*tensors(9, 8))
