"""What a choice of blocks costs: the attention mass it lets a query see, and the error of what attention gives."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .choice import BlockChoice
from .oracle import block_mass
from .pattern import grid_of

Queries = Float[Tensor, "batch heads n d"]
Keys = Float[Tensor, "batch kv_heads m d"]


def mass_recall(q: Queries, k: Keys, choice: BlockChoice, scale: float | None = None) -> Float[Tensor, "batch heads"]:
    """The softmax mass of full causal attention on what the choice lets a query see: the mean over all queries.

    Between 0 and 1; 1.0 where there are no queries. `scale` is 1 / sqrt(d) unless given. Worked out in float32 at least.
    Its own block counts, so even the sparsest choice has some. Raises ValueError for a choice of other sizes.
    """
    _fits(q, k, choice)
    if choice.n == 0:
        return q.new_ones(q.shape[:2], dtype=_precise(q))
    mass = block_mass(q.to(_precise(q)), k.to(_precise(q)), choice.block, scale)
    return (mass * choice.blocks).sum((-2, -1)) / choice.n


def output_error(
    q: Queries, k: Keys, v: Float[Tensor, "_ _ _ _"], choice: BlockChoice, scale: float | None = None
) -> Float[Tensor, "batch heads"]:
    """How far attention over the choice is from full causal attention: |sparse - dense| / |dense|, norms of Frobenius.

    A norm is over all queries and dimensions of a head, so it is not the mean of the queries' own errors. 0.0 where
    dense attention gives nothing but zeros. One row of blocks is held at a time: tokens x block, not tokens x tokens.
    In float32 at least. Raises ValueError for a choice of other sizes.
    """
    _fits(q, k, choice)
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(f"values {tuple(v.shape)} and keys {tuple(k.shape)} differ in batch, heads or tokens")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    q, k, v = (x.to(_precise(q)) for x in (q, k, v))
    grid, block, group = choice.grid, choice.block, q.shape[1] // k.shape[1]
    off, whole = q.new_zeros(q.shape[:2]), q.new_zeros(q.shape[:2])
    for row in range(grid.rows):
        last = int(grid.last[row]) + 1
        queries = q[:, :, row * block : (row + 1) * block].unflatten(1, (k.shape[1], group)) * scale
        scores = (queries @ k[:, :, None, :last].transpose(-1, -2)).flatten(1, 2)
        keys = torch.arange(last, device=q.device)
        scores.masked_fill_(keys > keys[last - scores.shape[2] :, None], -torch.inf)
        seen = choice.blocks[:, :, row].repeat_interleave(block, -1)[..., None, :last]
        dense, sparse = (_mixed(some, v[:, :, :last]) for some in (scores, scores.masked_fill(~seen, -torch.inf)))
        off += (sparse - dense).square().sum((-2, -1))
        whole += dense.square().sum((-2, -1))
    return torch.where(whole > 0, off / whole, off).sqrt()


def _mixed(scores: Tensor, v: Tensor) -> Tensor:
    """The values mixed by the softmax of the scores, each KV head's for its group of query heads."""
    weights = scores.softmax(-1).unflatten(1, (v.shape[1], scores.shape[1] // v.shape[1]))
    return (weights @ v[:, :, None]).flatten(1, 2)


def _precise(q: Tensor) -> torch.dtype:
    return torch.promote_types(q.dtype, torch.float32)


def _fits(q: Tensor, k: Tensor, choice: BlockChoice) -> None:
    grid = grid_of(q, k, choice.block)
    wanted, given = (*q.shape[:2], grid.n, grid.m), (*choice.blocks.shape[:2], choice.n, choice.m)
    if wanted != given:
        raise ValueError(f"the choice is for (batch, heads, queries, keys) {given}, and these tensors are {wanted}")
