"""Mass recall and output error of a choice against whole attention matrices in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fmlab as fm
from fmlab.sparsity import BlockChoice, BlockTopK, Grid, Oracle, SlidingBlocks, mass_recall, output_error

HEADS, KV_HEADS, D = 6, 2, 4
sizes = st.tuples(st.integers(1, 14), st.integers(0, 9), st.sampled_from([1, 2, 4]), st.integers(0, 99))


def tensors(n, m, seed=0, dtype=torch.float64):
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(2, HEADS, n, D, generator=draw, dtype=torch.float64)
    k, v = (torch.randn(2, KV_HEADS, m, D, generator=draw, dtype=torch.float64) for _ in range(2))
    return q.to(dtype), k.to(dtype), v.to(dtype)


def any_choice(n, m, block, seed):
    grid, draw = Grid(n, m, block), torch.Generator().manual_seed(seed)
    blocks = torch.rand(2, HEADS, grid.rows, grid.columns, generator=draw) < 0.4
    return BlockChoice(blocks | grid.own, n, m, block)


def reference(q, k, v, choice, scale):
    """Recall and error head by head, each over its whole n x m matrix."""
    (n, m), mask = (q.shape[2], k.shape[2]), choice.mask()
    future = torch.arange(m) > torch.arange(n)[:, None] + m - n
    recall, error = torch.zeros(2, HEADS, dtype=q.dtype), torch.zeros(2, HEADS, dtype=q.dtype)
    for b in range(2):
        for h in range(HEADS):
            scores = q[b, h] @ k[b, h // 3].T * scale
            full = scores.masked_fill(future, -torch.inf).softmax(-1)
            few = scores.masked_fill(~mask[b, h], -torch.inf).softmax(-1)
            recall[b, h] = full[mask[b, h]].sum() / n
            dense = full @ v[b, h // 3]
            error[b, h] = (few @ v[b, h // 3] - dense).norm() / dense.norm()
    return recall, error


@settings(max_examples=60, deadline=None)
@given(sizes, st.sampled_from([None, 0.3]))
def test_both_are_those_of_the_whole_matrix(size, scale):
    n, past, block, seed = size
    q, k, v = tensors(n, n + past, seed)
    choice = any_choice(n, n + past, block, seed)
    recall, error = reference(q, k, v, choice, 1 / math.sqrt(D) if scale is None else scale)
    torch.testing.assert_close(mass_recall(q, k, choice, scale), recall, rtol=0, atol=1e-12)
    torch.testing.assert_close(output_error(q, k, v, choice, scale), error, rtol=0, atol=1e-12)


def test_seeing_all_loses_nothing_and_seeing_more_never_lowers_recall():
    q, k, v = tensors(23, 23)
    whole = SlidingBlocks(23).blocks(q, k, 4)
    torch.testing.assert_close(mass_recall(q, k, whole), torch.ones(2, HEADS, dtype=q.dtype))
    assert output_error(q, k, v, whole).max() < 1e-12
    some = BlockTopK(2).blocks(q, k, 4)
    assert (mass_recall(q, k, some) < 1).all() and (output_error(q, k, v, some) > 0).all()
    assert (mass_recall(q, k, some | SlidingBlocks(8).blocks(q, k, 4)) >= mass_recall(q, k, some)).all()


def test_nothing_of_the_same_density_sees_more_than_the_oracle_and_half_a_block():
    q, k, _ = tensors(64, 64)
    some = BlockTopK(3).blocks(q, k, 4)
    best = mass_recall(q, k, Oracle(some.density).blocks(q, k, 4)).mean()
    assert mass_recall(q, k, some).mean() < best + 4 / (64 * HEADS)  # a block of 4 queries holds a mass of 4 at most


def test_half_precision_is_worked_out_in_single():
    exact, (q, k, v) = tensors(40, 40), tensors(40, 40, dtype=torch.float16)
    choice = any_choice(40, 40, 4, 1)
    recall, error = mass_recall(q, k, choice), output_error(q, k, v, choice)
    assert recall.dtype == error.dtype == torch.float32
    torch.testing.assert_close(recall, mass_recall(*exact[:2], choice).float(), rtol=0, atol=2e-3)
    torch.testing.assert_close(error, output_error(*exact, choice).float(), rtol=0, atol=2e-3)


def test_no_queries_and_no_values_lose_nothing():
    q, k, v = tensors(0, 5)
    choice = BlockChoice(torch.zeros(2, HEADS, 0, 2, dtype=torch.bool), 0, 5, 4)
    assert mass_recall(q, k, choice).tolist() == [[1.0] * HEADS] * 2
    assert output_error(q, k, v, choice).tolist() == [[0.0] * HEADS] * 2
    q, k, v = tensors(9, 9)
    assert output_error(q, k, v * 0, any_choice(9, 9, 4, 0)).tolist() == [[0.0] * HEADS] * 2


def test_what_does_not_fit_is_named():
    q, k, v = tensors(8, 8)
    for call in (lambda c: mass_recall(q, k, c), lambda c: output_error(q, k, v, c)):
        with pytest.raises(ValueError, match=r"\(2, 6, 7, 7\), and these tensors are \(2, 6, 8, 8\)"):
            call(any_choice(7, 7, 4, 0))
    with pytest.raises(ValueError, match="differ in batch, heads or tokens"):
        output_error(q, k, v[:, :, 1:], any_choice(8, 8, 4, 0))


def test_they_are_the_rooms_own_names():
    assert fm.sparsity.mass_recall is mass_recall and fm.sparsity.output_error is output_error
