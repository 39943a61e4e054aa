"""One choice in the forms that others take: COO, CSR and BSR indices, a FlexAttention BlockMask, Longformer's masks."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from .choice import BlockChoice

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Rows(NamedTuple):
    """Compressed rows: row r has the columns `columns[starts[r] : starts[r + 1]]`, ascending."""

    starts: Int[Tensor, " rows_and_one"]
    columns: Int[Tensor, " entries"]


class Longformer(NamedTuple):
    """What transformers' Longformer is given. Its attention looks both ways; its causal half covers the choice."""

    attention_mask: Int[Tensor, "batch tokens"]
    """1 everywhere: no token is padding."""
    global_attention_mask: Int[Tensor, "batch tokens"]
    """1 for tokens that see all and are seen by all."""
    attention_window: int
    """The configuration's: half of it on each side, the token itself not counted."""


def bsr(choice: BlockChoice) -> Rows:
    """Block sparse rows: a row for each sample, head and query block, in this order; columns are key blocks."""
    return _rows(choice.blocks.flatten(0, 2))


def csr(choice: BlockChoice) -> Rows:
    """Compressed rows of tokens: a row for each sample, head and query, in this order; columns are keys.

    As many entries as `choice.pairs`, 8 bytes each. What all heads have in common is worked out once.
    """
    grid, distinct = choice.grid, choice.distinct
    within = np.arange(grid.block)
    lengths, parts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    # A query sees the keys of its row of blocks up to its own place: of one list for the row, a beginning. Copying
    # beginnings costs one pass over the entries; a gather would cost three.
    for head in distinct.flatten(0, 1).cpu().numpy():
        for row, chosen in enumerate(head):
            keys = (np.flatnonzero(chosen)[:, None] * grid.block + within).ravel()
            first = grid.past + row * grid.block
            ends = keys.searchsorted(np.arange(first, min(first + grid.block, grid.m)), side="right")
            lengths.append(ends)
            parts += [keys[:end] for end in ends.tolist()]
    starts = np.concatenate([[0], np.concatenate(lengths).cumsum()])
    rows = Rows(*(torch.from_numpy(x).to(distinct.device) for x in (starts, np.concatenate(parts))))
    return _repeated(rows, choice)


def coo(choice: BlockChoice, axes: int = 4) -> Int[Tensor, "axes entries"]:
    """Coordinates (sample, head, query, key) of every pair that attends, in this order of importance, as int64.

    `axes` is how many of the four, counted from the last: with 2 the queries and keys alone are made. Raises ValueError for
    a number of axes that is not 1 to 4.
    """
    if axes not in (1, 2, 3, 4):
        raise ValueError(f"axes={axes!r}; give 1 to 4, counted from the last: 2 for (query, key)")
    (batch, heads), (starts, columns) = choice.blocks.shape[:2], csr(choice)
    sizes, lengths = (batch, heads, choice.n), np.diff(starts.cpu().numpy())
    out = np.empty((axes, len(columns)), np.int64)
    out[-1] = columns.cpu().numpy()
    for axis in range(4 - axes, 3):
        behind = int(np.prod(sizes[axis + 1 :]))
        places = np.arange(len(lengths)) // max(behind, 1) % max(sizes[axis], 1)
        out[axis - 4] = 0 if sizes[axis] == 1 else places.repeat(lengths)
    return torch.from_numpy(out).to(columns.device)


def mask_mod(choice: BlockChoice) -> MaskMod:
    """The choice as FlexAttention's `mask_mod(b, h, q_idx, kv_idx)`."""
    blocks, block, past = choice.blocks, choice.block, choice.m - choice.n

    return lambda b, h, i, j: blocks[b, h, i // block, j // block] & (j <= i + past)


@cache  # one function for each, which FlexAttention compiles once
def causal(past: int) -> MaskMod:
    """The `mask_mod` of causal attention whose queries follow `past` keys."""

    return lambda b, h, i, j: j <= i + past


def block_mask(choice: BlockChoice, mod: MaskMod | None = None) -> BlockMask:
    """The choice as torch's BlockMask. Blocks of which every pair is causal are 'full': `mod` is not asked there.

    `mod` is `mask_mod(choice)` unless another is given. A kernel that goes by the blocks needs `causal` only, which is
    cheaper; FlexAttention uncompiled goes by the `mask_mod` alone.
    """
    grid = choice.grid
    whole = grid.pairs == grid.block * grid.block
    heads = choice.blocks.shape[:2]  # written out for all, since compiled kernels are made for the strides they get
    lists = [
        x.expand(*heads, *x.shape[2:]).contiguous() for part in (~whole, whole) for x in _lists(choice.distinct & part)
    ]
    return BlockMask.from_kv_blocks(
        *lists, BLOCK_SIZE=grid.block, mask_mod=mod or mask_mod(choice), seq_lengths=(grid.n, grid.m)
    )


def longformer(choice: BlockChoice) -> Longformer:
    """A window and few global tokens whose causal half covers the choice.

    The window covers every block that stands neither in a full column (all later queries see it) nor in a full row (it
    sees all before it); of what is farther, blocks are made global one by one, the one that covers most first. Exact for
    a LocalGlobal of window 3 or more in blocks of 1 token (transformers' Longformer fails below); a window of whole
    blocks is ragged in tokens, and is covered.

    Raises ValueError where heads differ, since Longformer has one mask for all, and for queries that are not the keys.
    """
    if choice.n != choice.m:
        raise ValueError(f"{choice.n} queries over {choice.m} keys; Longformer's queries are its keys")
    grid, blocks = choice.grid, choice.distinct
    if blocks.shape[1] > 1:
        raise ValueError("the heads of this choice differ, and Longformer has one mask for all heads; export one head")
    blocks = blocks[:, 0]
    unseen = grid.visible & ~blocks
    column, row = ~unseen.any(1), ~unseen.any(2)  # full ones
    inside = blocks & ~column[:, None] & ~row[..., None]
    width = int((grid.farthest * inside).amax()) if blocks.numel() else 0
    left = blocks & (grid.farthest > width)
    tokens = torch.zeros_like(column)
    while left.any():  # take the block that covers most of what no window does
        most = (left.sum(1) * column + left.sum(2) * row).argmax(-1, keepdim=True)
        tokens.scatter_(1, most, True)
        left = left & ~tokens[:, None] & ~tokens[..., None]
    tokens = tokens.repeat_interleave(grid.block, -1)[:, : grid.m].expand(choice.blocks.shape[0], -1).long()
    return Longformer(torch.ones_like(tokens), tokens, max(2 * width, 4))


def _rows(blocks: Bool[Tensor, "rows columns"]) -> Rows:
    starts = torch.nn.functional.pad(blocks.sum(-1).cumsum(0), (1, 0))
    return Rows(starts, blocks.nonzero()[:, 1])


def _lists(blocks: Bool[Tensor, "batch heads rows columns"]) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and which, filled up with zeros: int32, as BlockMask wants them."""
    place = torch.where(
        blocks, blocks.cumsum(-1) - 1, blocks.shape[-1]
    )  # in its list; what is not chosen, past its end
    column = torch.arange(blocks.shape[-1], dtype=torch.int32, device=blocks.device).expand_as(blocks)
    lists = column.new_zeros(*blocks.shape[:-1], blocks.shape[-1] + 1).scatter_(-1, place, column)
    return blocks.sum(-1, dtype=torch.int32), lists[..., :-1].contiguous()


def _repeated(rows: Rows, choice: BlockChoice) -> Rows:
    """The rows of the distinct heads, for all heads."""
    (batch, heads), distinct = choice.blocks.shape[:2], choice.distinct.shape[:2]
    if distinct == (batch, heads) or choice.n == 0:
        return rows
    lengths = rows.starts.diff().view(*distinct, choice.n).expand(batch, heads, -1)
    starts = torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 0))
    ends = rows.starts[:: choice.n].tolist()
    parts = [rows.columns[a:b] for a, b in zip(ends, ends[1:], strict=False)]
    picked = [
        parts[(b if distinct[0] > 1 else 0) * distinct[1] + (h if distinct[1] > 1 else 0)]
        for b in range(batch)
        for h in range(heads)
    ]
    return Rows(starts, torch.cat(picked) if picked else rows.columns)
