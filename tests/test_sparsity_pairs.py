"""The sparsity room's pairs: both ways give the same at every size, and change none of their input."""

import copy

import numpy as np
import pytest
import torch

from fmlab.optimizations import (
    block_sparse_kernel,
    mask_bool,
    mask_broadcast,
    mask_construction,
    mask_coo,
    mask_csr,
    mask_naive,
    mask_nonzero,
)
from fmlab.sparsity import LocalGlobal, attention

CLAIMED = [module.PAIR for module in (mask_construction, mask_bool, mask_naive, mask_coo, mask_csr)]
MASKS = [*CLAIMED, mask_broadcast.PAIR, mask_nonzero.COO, mask_nonzero.CSR]


def same(one, other):
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one.dtype == other.dtype and np.array_equal(one, other)


@pytest.mark.parametrize("pair", MASKS, ids=lambda pair: pair.name)
@pytest.mark.parametrize("size", [0, 1, 63, 64, 200])
def test_both_ways_build_the_same_mask(pair, size):
    for seed in range(3):
        given = pair.inputs(size, seed)
        before = copy.deepcopy(given)
        one, other = pair.baseline(*given), pair.optimised(*given)
        assert same(one, other)
        if isinstance(given[0], int):
            assert given == before
        else:
            assert torch.equal(given[0].blocks, before[0].blocks)
    assert pair.floor(size).amount >= 0 and pair.claim == ((50, 100) if pair in CLAIMED else None)


def test_the_floors_of_lists_of_entries_count_the_entries():
    (choice,) = mask_bool.inputs(200, 0)
    entries = int(choice.mask().sum())
    assert mask_coo.PAIR.floor(200).amount == 16 * entries and mask_csr.PAIR.floor(200).amount == 8 * (200 + entries)


def test_the_masks_of_the_pairs_are_no_full_ones():
    tokens, pattern = mask_construction.inputs(1_024, 0)
    blocks = mask_construction.optimised(tokens, pattern)
    assert 0 < blocks.sum() < 16 * 17 / 2
    assert (
        mask_bool.optimised(*mask_bool.inputs(1_024, 0)).sum() == mask_csr.optimised(*mask_csr.inputs(1_024, 0))[0][-1]
    )


def test_a_kernel_that_attends_elsewhere_would_be_found():
    q, k, v = (torch.randn(1, h, 700, 8, generator=torch.Generator().manual_seed(h)) for h in (9, 3, 3))
    choice = block_sparse_kernel.PATTERN.blocks(q, k)
    given = q, k, v, choice, choice.mask()[:, :1]
    one = block_sparse_kernel.baseline(*given)
    assert (one - block_sparse_kernel.optimised(*given)).abs().max() < block_sparse_kernel.PAIR.tolerance
    other = attention(q, k, v, LocalGlobal(256, (100,)).blocks(q, k), "gather")
    assert (one - other).abs().max() > 100 * block_sparse_kernel.PAIR.tolerance


@pytest.mark.real
@pytest.mark.parametrize("size", [0, 1, 500])
def test_both_kernels_give_the_same_on_the_real_model(lm, size):
    given = block_sparse_kernel.inputs(size, 0)
    one, other = block_sparse_kernel.baseline(*given), block_sparse_kernel.optimised(*given)
    assert one.shape == other.shape == (1, 9, size, 64)
    torch.testing.assert_close(one, other, atol=block_sparse_kernel.PAIR.tolerance, rtol=0)
