"""Blocks against a count of every token pair: what is causal, own, chosen, and how dense."""

import inspect

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fmlab as fm
from fmlab.sparsity import BlockChoice, Grid

sizes = st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(1, 7)).map(lambda s: (s[0], s[0] + s[1], s[2]))


def causal(n, m):
    return torch.arange(m) <= torch.arange(n)[:, None] + m - n


def in_blocks(tokens, grid):
    """Token pairs as (query blocks, key blocks): how many of each are True, counted one by one."""
    count = torch.zeros(grid.rows, grid.columns, dtype=torch.int64)
    for i, j in tokens.nonzero().tolist():
        count[i // grid.block, j // grid.block] += 1
    return count


def some_choice(n, m, block, share=0.3, batch=2, heads=3, seed=0):
    grid = Grid(n, m, block)
    drawn = torch.rand(batch, heads, grid.rows, grid.columns, generator=torch.Generator().manual_seed(seed)) < share
    return BlockChoice(drawn | grid.own, n, m, block)


@settings(deadline=None, max_examples=40)
@given(sizes)
def test_the_grid_counts_every_pair(size):
    n, m, block = size
    grid = Grid(n, m, block)
    assert torch.equal(grid.pairs, in_blocks(causal(n, m), grid))
    assert torch.equal(grid.visible, grid.pairs > 0)
    itself = torch.arange(m) == torch.arange(n)[:, None] + m - n
    assert torch.equal(grid.own, in_blocks(itself, grid) > 0)
    for a, c in grid.visible.nonzero().tolist():
        i, j = causal(n, m).nonzero().T
        inside = (i // block == a) & (j // block == c)
        distance = (i + m - n - j)[inside]
        assert (distance.min(), distance.max()) == (grid.nearest[a, c], grid.farthest[a, c])


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(0, 9))
def test_mask_and_density_are_those_of_the_tokens(size, seed):
    choice = some_choice(*size, seed=seed)
    mask = choice.mask()
    for i in range(choice.n):
        for j in range(choice.m):
            seen = choice.blocks[..., i // choice.block, j // choice.block] & (j <= i + choice.m - choice.n)
            assert torch.equal(mask[..., i, j], seen)
    every = 6 * int(causal(choice.n, choice.m).sum())
    assert choice.pairs == mask.sum()
    assert choice.density == (mask.sum() / every if every else 1.0)


def test_a_choice_of_all_is_causal_attention():
    choice = BlockChoice(torch.ones(1, 2, 3, 5, dtype=torch.bool), 5, 10, 2)
    assert choice.density == 1.0
    assert torch.equal(choice.mask(), causal(5, 10).expand(1, 2, -1, -1))
    assert not choice.blocks[0, 0, 0, 4]  # in the future: dropped


def test_what_heads_share_is_neither_copied_nor_counted_apart():
    grid = Grid(16_384, 16_384, 64)
    q = torch.empty(1, 9, 16_384, 1)
    shared = BlockChoice.over(grid, q, grid.own[None, None])
    assert shared.blocks.stride(1) == 0
    assert shared.distinct.shape[:2] == (1, 1)
    apart = BlockChoice(shared.blocks.clone(), grid.n, grid.m, 64)
    assert apart.distinct.shape[:2] == (1, 1)
    assert apart.density == shared.density == 65 / 16_385  # 256 triangles of 64 x 65 / 2


def test_union_and_intersection():
    one, other = some_choice(9, 14, 4, seed=1), some_choice(9, 14, 4, seed=2)
    assert torch.equal((one | other).mask(), one.mask() | other.mask())
    assert torch.equal((one & other).mask(), one.mask() & other.mask())
    with pytest.raises(ValueError, match="do not fit together"):
        one | some_choice(9, 14, 2)
    with pytest.raises(TypeError):
        one & one.blocks


@pytest.mark.parametrize(("n", "m", "row", "column"), [(8, 8, 1, 1), (5, 8, 0, 0), (5, 8, 0, 1), (1, 8, 0, 1)])
def test_a_hidden_own_block_is_named(n, m, row, column):
    blocks = torch.ones(2, 3, *Grid(n, m, 4).own.shape, dtype=torch.bool)
    blocks[1, 2, row, column] = False
    with pytest.raises(ValueError, match=f"sample 1, head 2: .* block {row} .* own block {column}"):
        BlockChoice(blocks, n, m, 4)


@pytest.mark.parametrize(
    ("n", "m", "block", "message"),
    [
        (9, 8, 4, "9 queries over 8 keys.*not causal"),
        (8, 8, 0, "block=0"),
        (8, 9, 4, "are 2 x 3"),
        (16, 16, 4, "are 4 x 4"),
    ],
)
def test_what_does_not_fit_is_refused(n, m, block, message):
    with pytest.raises(ValueError, match=message):
        BlockChoice(torch.ones(1, 1, 2, 2, dtype=torch.bool), n, m, block)


def unchecked(kind, *values):
    """Made as users make it, without our check of annotations."""
    inspect.unwrap(kind.__init__)(made := object.__new__(kind), *values)
    return made


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: unchecked(BlockChoice, torch.ones(1, 1, 2, 2), 8, 8, 4), r"\(1, 1, 2, 2\) and torch.float32; give booleans"),
        (lambda: unchecked(BlockChoice, torch.ones(2, 2, dtype=torch.bool), 8, 8, 4), r"\(2, 2\) .* blocks\[None, None\]"),
        (lambda: unchecked(Grid, 8, 8, 2.5), "block=2.5; give a whole number of tokens"),
        (lambda: unchecked(Grid, 8, 8, True), "block=True; give a whole number of tokens"),
        (lambda: unchecked(fm.sparsity.BlockTopK, 2.5), "top=2.5 is no whole number; give 1 or more"),
        (lambda: unchecked(fm.sparsity.Streaming, True, 4), "sinks=True is no whole number; give 0 or more"),
        (lambda: unchecked(fm.sparsity.LocalGlobal, 4, [0, 2.0]), "a global position=2.0 is no whole number"),
    ],
)  # fmt: skip
def test_what_is_of_another_kind_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert unchecked(fm.sparsity.Streaming, np.int64(1), np.int32(4)) == fm.sparsity.Streaming(1, 4)


def test_positions_in_a_list_become_a_tuple():
    pattern = unchecked(fm.sparsity.LocalGlobal, 4, [0, 5])
    assert pattern == fm.sparsity.LocalGlobal(4, (0, 5)) and hash(pattern) == hash(fm.sparsity.LocalGlobal(4, (0, 5)))


def test_it_says_what_it_is():
    choice = fm.sparsity.Streaming(1, 1).blocks(torch.empty(1, 3, 4, 2), torch.empty(1, 1, 8, 2), block=2)
    assert repr(choice) == "BlockChoice(batch 1, heads 3, 4 queries, 8 keys, block 2, density 0.538)"
