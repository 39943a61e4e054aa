"""Queries by keys cut into blocks: which blocks are past, own or future, and how many causal token pairs each holds."""

from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """`n` queries over `m` keys in blocks of `block` tokens; query i stands at position m - n + i, key j at j.

    Query blocks are counted from the first query, key blocks from the first key, and the last of each may be ragged.
    All that is here is of the size of the blocks, never of the tokens.
    """

    n: int
    m: int
    block: int
    device: torch.device = field(default=torch.device("cpu"), repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.block, bool) or not isinstance(self.block, Integral) or self.block < 1:
            raise ValueError(f"block={self.block!r}; give a whole number of tokens, 1 or more")
        if not 0 <= self.n <= self.m:
            raise ValueError(
                f"{self.n} queries over {self.m} keys: query i stands at position m - n + i, so give as many keys as "
                "queries or more; attention that is not causal is not done here"
            )

    @property
    def rows(self) -> int:
        """Query blocks."""
        return -(-self.n // self.block)

    @property
    def columns(self) -> int:
        """Key blocks."""
        return -(-self.m // self.block)

    @property
    def past(self) -> int:
        """Keys before the first query."""
        return self.m - self.n

    @cached_property
    def first(self) -> Int[Tensor, " rows"]:
        """The position of the first query of each query block."""
        return self.past + torch.arange(self.rows, device=self.device) * self.block

    @cached_property
    def last(self) -> Int[Tensor, " rows"]:
        """The position of the last query of each query block."""
        return (self.first + self.block).clamp(max=self.m) - 1

    @cached_property
    def start(self) -> Int[Tensor, " columns"]:
        """The first key of each key block."""
        return torch.arange(self.columns, device=self.device) * self.block

    @cached_property
    def end(self) -> Int[Tensor, " columns"]:
        """The last key of each key block."""
        return (self.start + self.block).clamp(max=self.m) - 1

    @cached_property
    def visible(self) -> Bool[Tensor, "rows columns"]:
        """Blocks in which at least one query may see at least one key."""
        return self.start <= self.last[:, None]

    @cached_property
    def own(self) -> Bool[Tensor, "rows columns"]:
        """Blocks in which a query finds itself: one a query block, or two where m - n is no multiple of the block."""
        return self.visible & (self.end >= self.first[:, None])

    @cached_property
    def nearest(self) -> Int[Tensor, "rows columns"]:
        """The least distance i - j of a causal pair of positions in the block; 0 in an own block, and in the future."""
        return (self.first[:, None] - self.end).clamp(min=0)

    @cached_property
    def farthest(self) -> Int[Tensor, "rows columns"]:
        """The greatest distance i - j in the block; below 0 in the future."""
        return self.last[:, None] - self.start

    @cached_property
    def pairs(self) -> Int[Tensor, "rows columns"]:
        """Causal (query, key) pairs in each block."""
        # A query at p sees max(p + 1 - c, 0) keys from c on; summed over p those are differences of triangular numbers.
        from_start = _triangle(self.farthest + 1) - _triangle(self.first[:, None] - self.start)
        past_end = _triangle(self.last[:, None] - self.end) - _triangle(self.first[:, None] - self.end - 1)
        return from_start - past_end


def _triangle(x: Int[Tensor, "rows columns"]) -> Int[Tensor, "rows columns"]:
    """1 + 2 + … + x; 0 below 1."""
    x = x.clamp(min=0)
    return x * (x + 1) // 2
