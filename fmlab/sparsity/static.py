"""Patterns that look at positions alone; worked out block by block, so 16,384 tokens cost no more than megabytes."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .choice import BlockChoice
from .grid import Grid
from .pattern import Pattern, at_least, grid_of

Queries = Float[Tensor, "batch heads n d"]
Keys = Float[Tensor, "batch kv_heads m d"]
Blocks = Bool[Tensor, "rows columns"]


@dataclass(frozen=True)
class SlidingBlocks(Pattern):
    """Every query sees the last `window` tokens, itself among them: Longformer's sliding window (arXiv:2004.05150), causal."""

    window: int = 1_024

    def __post_init__(self) -> None:
        at_least("window", self.window, 1)

    def blocks(self, q: Queries, k: Keys, block: int = 64) -> BlockChoice:
        grid = grid_of(q, k, block)
        return BlockChoice.over(grid, q, _window(grid, self.window)[None, None])


@dataclass(frozen=True)
class Streaming(Pattern):
    """StreamingLLM (arXiv:2309.17453): the first `sinks` tokens and the last `window` ones, the query among them.

    Positions stay those of the text; StreamingLLM, which evicts, numbers anew what is left in its cache.
    """

    sinks: int = 4
    window: int = 1_024

    def __post_init__(self) -> None:
        at_least("sinks", self.sinks, 0)
        at_least("window", self.window, 1)

    def blocks(self, q: Queries, k: Keys, block: int = 64) -> BlockChoice:
        grid = grid_of(q, k, block)
        return BlockChoice.over(grid, q, _window(grid, self.window, self.sinks)[None, None])


@dataclass(frozen=True)
class LocalGlobal(Pattern):
    """Longformer (arXiv:2004.05150, section 3.1), causal: a window, and global tokens that all see and that see all.

    `window` counts the query and those before it; Longformer's own, which looks both ways, is 2 (window - 1).
    `positions` are the places of the global tokens in the text; those beyond its end are left out. Longformer's global
    tokens have projections of their own for queries, keys and values; here they have those of all others.
    """

    window: int = 1_024
    positions: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        at_least("window", self.window, 1)
        object.__setattr__(self, "positions", tuple(self.positions))  # a list would have no hash
        for position in self.positions:
            at_least("a global position", position, 0)

    def blocks(self, q: Queries, k: Keys, block: int = 64) -> BlockChoice:
        grid = grid_of(q, k, block)
        tokens = torch.tensor(self.positions, dtype=torch.int64, device=q.device)
        column = _any_within(tokens, grid.start, grid.end)
        row = _any_within(tokens, grid.first, grid.last)
        return BlockChoice.over(grid, q, (_window(grid, self.window) | column | row[:, None])[None, None])


@dataclass(frozen=True)
class BigBird(Pattern):
    """BigBird (arXiv:2007.14062, section 2, ITC), causal: `sinks` global tokens, a window, `random` blocks a query block.

    The global tokens are the first ones; that they see all says nothing new where all they may see is before them. The
    random blocks are drawn apart in each head, among those that the query block does not see anyway; a draw depends on
    the places of both blocks, not on the length, so a text in chunks that begin on whole blocks is attended to as it is
    in one piece. A chunk that begins elsewhere has other blocks of queries, and they draw anew.
    """

    sinks: int = 128
    window: int = 192
    random: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("sinks", self.sinks, 0)
        at_least("window", self.window, 1)
        at_least("random", self.random, 0)

    def blocks(self, q: Queries, k: Keys, block: int = 64) -> BlockChoice:
        grid = grid_of(q, k, block)
        sure = _window(grid, self.window) | (grid.start < self.sinks)
        left = grid.visible & ~sure
        heads = torch.arange(q.shape[1], device=q.device)
        draw = _stir(_stir(_stir(torch.full_like(heads, self.seed), heads)[:, None], grid.last // block)[..., None],
                     torch.arange(grid.columns, device=q.device))  # fmt: skip
        draw = draw.masked_fill(~left, 1 << 32)
        best = draw.argsort(-1)[..., : self.random]
        drawn = torch.zeros_like(draw, dtype=torch.bool).scatter_(-1, best, True) & left
        return BlockChoice.over(grid, q, (drawn | sure)[None])


@dataclass(frozen=True)
class Strided(Pattern):
    """Sparse Transformer (arXiv:1904.10509, section 4.2), strided: the last `stride` tokens, besides every `stride`-th.

    A query sees a key where i - j < stride or where i - j is a multiple of it: the union of both in one head (the paper's
    'merged' heads). Below twice the block, rounding outwards makes it full attention.
    """

    stride: int = 1_024

    def __post_init__(self) -> None:
        at_least("stride", self.stride, 1)

    def blocks(self, q: Queries, k: Keys, block: int = 64) -> BlockChoice:
        grid = grid_of(q, k, block)
        multiple = grid.farthest.div(self.stride, rounding_mode="floor") * self.stride  # the greatest one in reach
        return BlockChoice.over(grid, q, (_window(grid, self.stride) | _reaches(grid, multiple))[None, None])


@dataclass(frozen=True)
class Dilated(Pattern):
    """Longformer's dilated window (arXiv:2004.05150, section 3.1): `window` tokens, the query first, `dilation` apart.

    With a dilation no greater than the block, rounding outwards makes it a plain window of window x dilation tokens.
    """

    window: int = 16
    dilation: int = 512

    def __post_init__(self) -> None:
        at_least("window", self.window, 1)
        at_least("dilation", self.dilation, 1)

    def blocks(self, q: Queries, k: Keys, block: int = 64) -> BlockChoice:
        grid = grid_of(q, k, block)
        steps = grid.farthest.div(self.dilation, rounding_mode="floor").clamp(max=self.window - 1)
        return BlockChoice.over(grid, q, _reaches(grid, steps * self.dilation)[None, None])


def _window(grid: Grid, window: int, sinks: int = 0) -> Blocks:
    """Blocks with a causal pair less than `window` apart, and those of the first `sinks` keys."""
    near = grid.end > grid.first[:, None] - window
    near[:, : -(-sinks // grid.block)] = True
    return near & grid.visible


def _reaches(grid: Grid, distance: Int[Tensor, "rows columns"]) -> Blocks:
    """Blocks with a causal pair at the distance given for each, which is no greater than the block's farthest."""
    return grid.visible & (distance >= grid.nearest)


def _any_within(tokens: Int[Tensor, " tokens"], low: Int[Tensor, " k"], high: Int[Tensor, " k"]) -> Bool[Tensor, " k"]:
    """Whether any of the tokens lies from `low` to `high`."""
    return ((tokens >= low[:, None]) & (tokens <= high[:, None])).any(-1)


def _stir(state: Tensor, value: Tensor) -> Tensor:
    """Mix `value` into a 32-bit `state` by multiply, xor and shift, within int64."""
    x = (state * 0x9E3779B1 + value + 0x85EBCA6B) & 0xFFFFFFFF
    for factor, shift in ((0x45D9F3B, 16), (0x119DE1F3, 15)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
