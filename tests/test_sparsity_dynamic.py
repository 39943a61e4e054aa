"""Patterns that read queries and keys against slow references in float64, written from the papers token by token."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmlab.sparsity import AntiDiagonal, BlockTopK, Grid, Oracle, QuestTopK, Streaming, VerticalSlash, block_mass

sizes = st.tuples(st.integers(1, 14), st.integers(0, 9), st.sampled_from([2, 4])).map(
    lambda s: (s[0], s[0] + s[1], s[2])
)
HEADS, KV_HEADS, D = 6, 2, 3


def tensors(n, m, seed=0, batch=1):
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(batch, HEADS, n, D, generator=draw, dtype=torch.float64),
        torch.randn(batch, KV_HEADS, m, D, generator=draw, dtype=torch.float64),
    )


def weights(q, k):
    """Full causal attention, (n, m), of one head."""
    n, m = len(q), len(k)
    scores = q @ k.T / math.sqrt(q.shape[-1])
    return scores.masked_fill(torch.arange(m) > torch.arange(n)[:, None] + m - n, -torch.inf).softmax(-1)


def per_head(reference, pattern, q, k, block):
    """The reference for every sample and head, its KV head found by hand."""
    grid = Grid(q.shape[2], k.shape[2], block)
    heads = [[reference(pattern, q[b, h], k[b, h // 3], grid) for h in range(HEADS)] for b in range(len(q))]
    return torch.stack([torch.stack(some) for some in heads])


def best(scores, grid, top):
    """Own blocks and the past ones of the highest scores, `top` in all; scores[a][c]."""
    chosen = grid.own.clone()
    for a in range(grid.rows):
        past = [c for c in range(grid.columns) if grid.visible[a, c] and not grid.own[a, c]]
        room = max(top - int(grid.own[a].sum()), 0)
        chosen[a, sorted(past, key=lambda c: -scores[a][c])[:room]] = True
    return chosen


def moba(pattern, q, k, grid):
    scores = [[float(rows.mean(0) @ keys.mean(0)) for keys in k.split(grid.block)] for rows in q.split(grid.block)]
    return best(scores, grid, pattern.top)


def q_bound(query, keys):  # section 3.3: the products with the least and the greatest of each dimension
    return sum(max(query[i] * keys[:, i].min(), query[i] * keys[:, i].max()) for i in range(D))


def quest(pattern, q, k, grid):
    scores = [[max(q_bound(x, keys) for x in rows) for keys in k.split(grid.block)] for rows in q.split(grid.block)]
    return best(scores, grid, pattern.top)


def minference(pattern, q, k, grid):
    last = min(pattern.last, grid.n)
    seen = weights(q, k)[-last:]
    vertical = seen.sum(0).topk(min(pattern.vertical, grid.m)).indices.tolist()
    along = torch.zeros(grid.m, dtype=q.dtype)
    for r in range(last):
        for j in range(grid.m - last + r + 1):
            along[grid.m - last + r - j] += seen[r, j]
    along[0] = torch.inf
    slash = along.topk(min(pattern.slash, grid.m)).indices.tolist()
    chosen = torch.zeros_like(grid.own)
    for i in range(grid.n):
        for j in range(grid.past + i + 1):
            if j in vertical or grid.past + i - j in slash:
                chosen[i // grid.block, j // grid.block] = True
    return chosen


def xattention(pattern, q, k, grid):
    stride, block = pattern.stride, grid.block
    rows, columns = -(-grid.n // stride), -(-grid.m // stride)
    scores = torch.full((rows, columns), -torch.inf, dtype=q.dtype)
    for a in range(rows):
        for c in range(columns):
            if c * stride <= grid.past + (a + 1) * stride - 1:
                scores[a, c] = 0
                for s in range(stride):  # one antidiagonal of a stride x stride square
                    i, j = a * stride + stride - 1 - s, c * stride + s
                    if i < grid.n and j < grid.m:
                        scores[a, c] += q[i] @ k[j] / (stride * math.sqrt(D))
    mass = torch.zeros(grid.rows, grid.columns, dtype=q.dtype)
    for a, row in enumerate(scores.softmax(-1)):
        for c, share in enumerate(row):
            mass[a * stride // block, c * stride // block] += share
    chosen = torch.zeros_like(grid.own)
    for a in range(grid.rows):
        covered = 0.0
        for c in sorted(range(grid.columns), key=lambda c: (not grid.own[a, c], -mass[a, c])):
            if grid.own[a, c] or covered < pattern.threshold:
                chosen[a, c] = grid.visible[a, c]
            covered += mass[a, c] / mass[a].sum()
    return chosen


CASES = [
    (BlockTopK(1), moba),
    (BlockTopK(3), moba),
    (QuestTopK(1), quest),
    (QuestTopK(3), quest),
    (VerticalSlash(0, 1, 4), minference),
    (VerticalSlash(2, 3, 5), minference),
    (VerticalSlash(40, 40, 40), minference),
    (AntiDiagonal(0.5, 1), xattention),
    (AntiDiagonal(0.6, 2), xattention),
    (AntiDiagonal(1.0, 2), xattention),
]


@pytest.mark.parametrize(("pattern", "reference"), CASES, ids=[repr(p) for p, _ in CASES])
@settings(deadline=None, max_examples=20)
@given(size=sizes, seed=st.integers(0, 99))
def test_as_in_the_paper(pattern, reference, size, seed):
    n, m, block = size
    q, k = tensors(n, m, seed)
    assert torch.equal(pattern.blocks(q, k, block).blocks, per_head(reference, pattern, q, k, block))


@settings(deadline=None, max_examples=20)
@given(sizes, st.integers(1, 3), st.integers(0, 99))
def test_quest_together_goes_by_the_greatest_bound_of_a_kv_head_s_query_heads(size, top, seed):
    n, m, block = size
    q, k = tensors(n, m, seed)
    chosen, grid = QuestTopK(top, together=True).blocks(q, k, block).blocks, Grid(n, m, block)
    for head in range(KV_HEADS):
        group = slice(head * 3, head * 3 + 3)
        as_one = q[:, group].transpose(1, 2)  # every query three times over, once for each head
        scores = [
            [max(float(q_bound(x, keys)) for x in rows.flatten(0, 1)) for keys in k[0, head].split(block)]
            for rows in as_one[0].split(block)
        ]
        assert torch.equal(chosen[0, group], best(scores, grid, top).expand(3, -1, -1))
    one = q[:, ::3], k, block  # a query head for each KV head has none to choose with
    assert torch.equal(QuestTopK(top, together=True).blocks(*one).blocks, QuestTopK(top).blocks(*one).blocks)


@settings(deadline=None, max_examples=20)
@given(sizes, st.integers(0, 99))
def test_block_mass_is_that_of_full_attention(size, seed):
    n, m, block = size
    q, k = tensors(n, m, seed)
    mass = block_mass(q, k, block)
    for b in range(1):
        for h in range(HEADS):
            for i, row in enumerate(weights(q[b, h], k[b, h // 3]).split(block)):
                for c, part in enumerate(row.split(block, dim=1)):
                    assert float(mass[b, h, i, c]) == pytest.approx(float(part.sum()), abs=1e-9)
    torch.testing.assert_close(block_mass(q, k, block, scale=1 / math.sqrt(D)), mass)


def kept(choice, q, k):
    return (block_mass(q, k, choice.block) * choice.blocks).sum((1, 2, 3))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 99), st.floats(0.3, 1.0))
def test_no_pattern_of_the_oracle_s_density_keeps_more_mass(seed, density):
    q, k = tensors(40, 40, seed)
    oracle = Oracle(density).blocks(q, k, 4)
    assert oracle.density <= density or torch.equal(oracle.blocks, Grid(40, 40, 4).own.expand_as(oracle.blocks))
    mass, grid = block_mass(q, k, 4), Grid(40, 40, 4)
    largest = (mass * ~oracle.blocks).flatten(1).amax(1)  # the block that did not fit
    for pattern in (BlockTopK(4), QuestTopK(4), Streaming(4, 9), AntiDiagonal(0.6, 2), VerticalSlash(3, 8, 16)):
        other = pattern.blocks(q, k, 4)
        pairs = [(c.blocks * grid.pairs).sum((1, 2, 3)) for c in (other, oracle)]
        assert ((kept(other, q, k) <= kept(oracle, q, k) + largest + 1e-9) | (pairs[0] > density * 6 * 820)).all()
    assert Oracle(1.0).blocks(q, k, 4).density == 1.0


def test_the_oracle_finds_what_is_planted():
    q, k = torch.zeros(1, 1, 64, 4), torch.zeros(1, 1, 64, 4)
    q[..., 0], k[..., 20:24, 0] = 20, 1  # every query looks at block 5 alone, once it is past
    oracle = Oracle(0.3).blocks(q, k, 4)
    assert oracle.blocks[0, 0, 5:, 5].all()
    for pattern in (BlockTopK(2), QuestTopK(2), VerticalSlash(4, 1, 8), AntiDiagonal(0.9, 4)):
        chosen = pattern.blocks(q, k, 4).blocks[0, 0]
        assert chosen[6:, 5].all(), pattern
        assert int(chosen[12].sum()) == 2, pattern


@pytest.mark.parametrize("pattern", [p for p, _ in CASES] + [Oracle(0.4)], ids=repr)
def test_samples_do_not_see_each_other_and_inputs_stay(pattern):
    q, k = tensors(12, 20, batch=2)
    before = q.clone(), k.clone()
    both = pattern.blocks(q, k, 4).blocks
    assert torch.equal(both[1:], pattern.blocks(q[1:], k[1:], 4).blocks)
    assert torch.equal(q, before[0]) and torch.equal(k, before[1])
    assert pattern.blocks(q[:, :, :0], k, 4).density == 1.0  # no query, nothing left out


@pytest.mark.parametrize("pattern", [p for p, _ in CASES] + [Oracle(0.4)], ids=repr)
def test_of_an_empty_text_nothing_is_chosen(pattern):
    choice = pattern.blocks(*tensors(0, 0), 4)
    assert choice.blocks.shape == (1, HEADS, 0, 0) and choice.mask().shape == (1, HEADS, 0, 0) and choice.density == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BlockTopK(0), "top=0"),
        (lambda: QuestTopK(0), "top=0"),
        (lambda: VerticalSlash(-1), "vertical=-1"),
        (lambda: VerticalSlash(slash=0), "slash=0"),
        (lambda: AntiDiagonal(0.0), "threshold=0.0"),
        (lambda: AntiDiagonal(stride=0), "stride=0"),
        (lambda: Oracle(1.5), "density=1.5"),
        (lambda: AntiDiagonal(stride=3).blocks(*tensors(8, 8), 4), "stride=3 does not divide blocks of 4"),
        (lambda: BlockTopK().blocks(*(x.float() for x in (torch.ones(1, 3, 4, 2), torch.ones(1, 2, 4, 2)))), "3 query heads over 2"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
