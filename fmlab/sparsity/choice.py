"""Which blocks of keys each block of queries may see: the one thing that patterns give and kernels take."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .grid import Grid


@dataclass(frozen=True, eq=False, repr=False)
class BlockChoice:
    """`blocks[b, h, a, c]`: whether the queries of block `a` see the keys of block `c`, those of the future excepted.

    `n` queries over `m` keys, query i at position m - n + i. Blocks that lie wholly in the future are dropped, so a
    choice made of ones alone is full causal attention. `|` and `&` are union and intersection.

    Raises ValueError for blocks that are not 4-D booleans, sizes that do not fit, and a choice that hides a query's own
    block from it: a query that sees nothing has no softmax.
    """

    blocks: Bool[Tensor, "batch heads rows columns"]
    n: int
    m: int
    block: int = 64

    def __post_init__(self) -> None:
        if self.blocks.ndim != 4 or self.blocks.dtype != torch.bool:
            raise ValueError(
                f"blocks of shape {tuple(self.blocks.shape)} and {self.blocks.dtype}; give booleans (batch, query heads, query "
                "blocks, key blocks), for one head of one sample blocks[None, None]"
            )
        grid, (*_, rows, columns) = self.grid, self.blocks.shape
        if (rows, columns) != (grid.rows, grid.columns):
            raise ValueError(
                f"blocks of {rows} x {columns}, where {self.n} queries over {self.m} keys in blocks of {self.block} "
                f"are {grid.rows} x {grid.columns}"
            )
        shared = _one_of_equal(self.blocks)  # what is the same for all heads is looked at once
        if grid.past % self.block == 0 and rows:  # own blocks are one diagonal, and what is right of it is the future
            ahead = grid.past // self.block
            if shared.diagonal(ahead, -2, -1).all():
                seen = shared.tril(ahead)
                if not torch.equal(seen, shared):
                    object.__setattr__(self, "blocks", seen.expand_as(self.blocks))
                return
        if (hidden := grid.own & ~shared).any():
            sample, head, row, column = hidden.nonzero()[0].tolist()
            raise ValueError(
                f"sample {sample}, head {head}: the queries of block {row} do not see their own block {column}; "
                "add `Grid.own` to the choice"
            )
        if (shared & ~grid.visible).any():
            object.__setattr__(self, "blocks", (shared & grid.visible).expand_as(self.blocks))

    @classmethod
    def over(
        cls, grid: Grid, q: Float[Tensor, "batch heads n d"], blocks: Bool[Tensor, "#batch #heads rows columns"]
    ) -> "BlockChoice":
        """The choice of `blocks` for every sample and query head of `q`, without copying what is the same for all."""
        return cls(blocks.expand(*q.shape[:2], -1, -1), grid.n, grid.m, grid.block)

    @cached_property
    def grid(self) -> Grid:
        return Grid(self.n, self.m, self.block, self.blocks.device)

    @cached_property
    def distinct(self) -> Bool[Tensor, "#batch #heads rows columns"]:
        """The blocks with an axis of 1 where all samples, or all heads, have the same: no more is worked out."""
        blocks = _one_of_equal(self.blocks)
        for axis in (0, 1):
            if blocks.shape[axis] > 1 and bool((blocks == blocks.narrow(axis, 0, 1)).all()):
                blocks = blocks.narrow(axis, 0, 1)
        return blocks

    @cached_property
    def pairs(self) -> int:
        """Token pairs (query, key) that attend, over all samples and heads."""
        blocks = _one_of_equal(self.blocks)
        repeats = self.blocks.shape[0] * self.blocks.shape[1] // max(blocks.shape[0] * blocks.shape[1], 1)
        return int((blocks * self.grid.pairs).sum()) * repeats

    @cached_property
    def density(self) -> float:
        """The token pairs that attend over all causal ones; 1.0 where there are none."""
        every = int(self.grid.pairs.sum()) * self.blocks.shape[0] * self.blocks.shape[1]
        return self.pairs / every if every else 1.0

    def mask(self) -> Bool[Tensor, "batch heads n m"]:
        """True where a query sees a key: n x m for every sample and head, so for pictures, tests and short texts."""
        blocks, grid, block = _one_of_equal(self.blocks), self.grid, self.block
        begun = grid.past % block  # tokens of the own block that are before a row's first query
        row = blocks.repeat_interleave(block, -1)
        if begun:
            row = torch.nn.functional.pad(
                row, (0, block)
            )  # room for what a window of two blocks reaches beyond the end
        mask = row[..., None, :].expand(*row.shape[:3], block, -1).flatten(2, 3).contiguous()
        # Only own blocks have a future: windows along the diagonal, one a row of blocks, that overlap nowhere.
        shape, stride, reach = mask.shape, mask.stride(), block * (1 + (begun > 0))
        own = mask.as_strided(
            (*shape[:2], grid.rows, block, reach),
            (*stride[:2], block * stride[2] + block, stride[2], 1),
            mask.storage_offset() + grid.past // block * block,
        )
        place = torch.arange(reach, device=blocks.device)
        own &= place <= place[:block, None] + begun
        return mask[:, :, : self.n, : self.m].expand(*self.blocks.shape[:2], -1, -1)

    def __or__(self, other: "BlockChoice") -> "BlockChoice":
        return self._joined(other, torch.logical_or)

    def __and__(self, other: "BlockChoice") -> "BlockChoice":
        return self._joined(other, torch.logical_and)

    def _joined(self, other: "BlockChoice", how) -> "BlockChoice":
        if not isinstance(other, BlockChoice):
            return NotImplemented
        ours, theirs = ((c.n, c.m, c.block, *c.blocks.shape) for c in (self, other))
        if ours != theirs:
            raise ValueError(f"{self!r} and {other!r} do not fit together; choose both for the same queries and keys")
        mine, others = _one_of_equal(self.blocks), _one_of_equal(other.blocks)
        return type(self)(how(mine, others).expand_as(self.blocks), self.n, self.m, self.block)

    def __repr__(self) -> str:
        batch, heads = self.blocks.shape[:2]
        return (
            f"BlockChoice(batch {batch}, heads {heads}, {self.n} queries, {self.m} keys, block {self.block}, "
            f"density {self.density:.3f})"
        )


def _one_of_equal(blocks: Bool[Tensor, "batch heads rows columns"]) -> Bool[Tensor, "#batch #heads rows columns"]:
    """The blocks with an axis of 1 where `expand` repeats one sample or head."""
    for axis in (0, 1):
        if blocks.stride(axis) == 0 and blocks.shape[axis] > 1:
            blocks = blocks.narrow(axis, 0, 1)
    return blocks
