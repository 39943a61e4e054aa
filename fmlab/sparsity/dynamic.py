"""Patterns that look at queries and keys, and choose other blocks for each head and each block of queries."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import pad

from .choice import BlockChoice
from .grid import Grid
from .pattern import Pattern, at_least, grid_of

Queries = Float[Tensor, "batch heads n d"]
Keys = Float[Tensor, "batch kv_heads m d"]
Scores = Float[Tensor, "batch heads rows columns"]
Chosen = Bool[Tensor, "batch heads rows columns"]
_ROWS = 16  # of query blocks that are scored at a time: few enough to stay in the processor's cache


@dataclass(frozen=True)
class VerticalSlash(Pattern):
    """MInference (arXiv:2407.02490, section 3.2 and algorithm 2): the best `vertical` keys and `slash` diagonals.

    To find them, the last `last` queries are scored against all keys, for every head apart; the keys and the distances
    i - j of which they make most are what all queries see, those last ones themselves no more than others. Distance 0 is
    always one of the diagonals. Rounded outwards: a diagonal fills the one or two diagonals of blocks it runs through, a
    key its whole column, so few of each go a long way.
    """

    vertical: int = 16
    slash: int = 64
    last: int = 64

    def __post_init__(self) -> None:
        at_least("vertical", self.vertical, 0)
        at_least("slash", self.slash, 1)
        at_least("last", self.last, 1)

    def blocks(self, q: Queries, k: Keys, block: int = 64) -> BlockChoice:
        grid = grid_of(q, k, block)
        weights = _last_weights(q, k, min(self.last, grid.n))
        keys = _top(weights.sum(2), self.vertical)
        distances = _along_diagonals(weights)
        distances[..., :1] = torch.inf
        distances = _top(distances, self.slash)
        vertical = pad(keys, (0, grid.columns * block - grid.m)).unflatten(-1, (grid.columns, block)).any(-1)
        so_far = pad(distances.long().cumsum(-1), (1, 0))  # before each distance
        nearest, farthest = grid.nearest.clamp(max=max(grid.m - 1, 0)), grid.farthest.clamp(min=-1)
        slash = so_far[..., farthest + 1] > so_far[..., nearest]
        return BlockChoice.over(grid, q, (vertical[:, :, None] | slash) & grid.visible)


@dataclass(frozen=True)
class BlockTopK(Pattern):
    """MoBA (arXiv:2502.13189, equations 5 and 6): the `top` blocks whose mean key is closest to the queries.

    The own block is always one of them (two, where queries begin within a block), and a block that has begun when the
    queries do, but is not past, is never another. In MoBA each query chooses; here the queries of a block choose
    together, by the sum of their scores, so a single query (decode) chooses as in the paper.
    """

    top: int = 16

    def __post_init__(self) -> None:
        at_least("top", self.top, 1)

    def blocks(self, q: Queries, k: Keys, block: int = 64) -> BlockChoice:
        grid = grid_of(q, k, block)
        means = _by_group(_pooled(q, block), k) @ _pooled(k, block)[:, :, None].transpose(-1, -2)
        return BlockChoice.over(grid, q, _best(means.flatten(1, 2), grid, self.top))


@dataclass(frozen=True)
class QuestTopK(Pattern):
    """Quest (arXiv:2406.10774, section 3.3): the `top` pages by an upper bound of q·k over the page's keys.

    The bound of a page is the sum over dimensions of max(q x least, q x greatest) of its keys. A page is a block; the
    own one is always chosen. Quest is made for decode, where one query chooses; of a block of queries the greatest
    bound counts, so that no query's best page is passed over for what others like on average. The paper keeps the first
    two layers dense and has pages of 16 tokens; here it is all layers, and pages of the block that is given. There each
    query head chooses for itself; `together` those of a KV head choose the same pages, by the greatest bound that any of
    them has, so that a page is read once and not once for each.
    """

    top: int = 16
    together: bool = False

    def __post_init__(self) -> None:
        at_least("top", self.top, 1)

    def blocks(self, q: Queries, k: Keys, block: int = 64) -> BlockChoice:
        grid = grid_of(q, k, block)
        low = _paged(k, block, value=torch.inf).amin(3)[:, :, None].transpose(-1, -2)
        high = _paged(k, block, value=-torch.inf).amax(3)[:, :, None].transpose(-1, -2)
        table, best = torch.cat([high, low], -2), q.new_full((*q.shape[:2], grid.rows, grid.columns), -torch.inf)
        for rows, seen in _stretches(grid):
            queries = signed(_by_group(q[:, :, rows.start * block : rows.stop * block], k))
            bounds = (queries @ table[..., :seen]).flatten(1, 2)
            best[:, :, rows, :seen] = _paged(bounds, block, value=-torch.inf).amax(3)
        if not self.together:
            return BlockChoice.over(grid, q, _best(best, grid, self.top))
        chosen = _best(_by_group(best, k).amax(2), grid, self.top)
        return BlockChoice.over(grid, q, chosen.repeat_interleave(q.shape[1] // k.shape[1], 1))


@dataclass(frozen=True)
class AntiDiagonal(Pattern):
    """XAttention (arXiv:2503.16428, algorithm 1): the fewest blocks whose antidiagonals carry `threshold` of the mass.

    Within each block the products q·k along every `stride`-th antidiagonal are summed: queries and keys are folded by
    the stride, queries in reverse, so one product does it at 1 / stride of the cost. Their softmax over the keys, summed
    over a block, is what the block is worth. The own block is always chosen. So the density depends on the text.

    Raises ValueError for a block that the stride does not divide.
    """

    threshold: float = 0.9
    stride: int = 16

    def __post_init__(self) -> None:
        at_least("stride", self.stride, 1)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}; give a share of the mass, above 0 and at most 1")

    def blocks(self, q: Queries, k: Keys, block: int = 64) -> BlockChoice:
        grid = grid_of(q, k, block)
        if block % self.stride:
            raise ValueError(f"stride={self.stride} does not divide blocks of {block} tokens; give one that does")
        folds = block // self.stride
        queries = _paged(q, self.stride).flip(3).flatten(3)
        keys = _paged(k, self.stride).flatten(3)[:, :, None].transpose(-1, -2)
        begins = torch.arange(keys.shape[-1], device=q.device) * self.stride
        ends = grid.past + (torch.arange(queries.shape[2], device=q.device) + 1) * self.stride - 1
        worth = q.new_zeros(*q.shape[:2], grid.rows, grid.columns)
        for rows, seen in _stretches(grid):
            some, sees = slice(rows.start * folds, rows.stop * folds), slice(seen * folds)
            scores = (_by_group(queries[:, :, some], k) @ keys[..., sees]).flatten(1, 2)
            scores /= self.stride * math.sqrt(q.shape[-1])
            weights = scores.masked_fill_(begins[sees] > ends[some, None], -torch.inf).softmax(-1)
            by_row = _paged(weights, folds).sum(3)
            by_row = pad(by_row, (0, seen * folds - by_row.shape[-1]))
            worth[:, :, rows, :seen] = by_row.unflatten(-1, (seen, folds)).sum(-1)
        share = worth / worth.sum(-1, keepdim=True)
        ordered, order = share.masked_fill(grid.own, torch.inf).sort(dim=-1, descending=True, stable=True)
        value = share.gather(-1, order)
        before = value.cumsum(-1) - value  # what is covered without this block
        needed = (before < self.threshold) | ordered.isinf()
        return BlockChoice.over(grid, q, torch.zeros_like(needed).scatter_(-1, order, needed) & grid.visible)


def signed(queries: Float[Tensor, "*heads n d"]) -> Float[Tensor, "*heads n twice_d"]:
    """What, times the greatest and then the least key of a page, is Quest's bound: which of both counts is q's sign."""
    return torch.cat([queries.clamp(min=0), queries.clamp(max=0)], -1)


def _stretches(grid: Grid) -> Iterator[tuple[slice, int]]:
    """Rows of blocks, a few at a time, and how many columns of them see: half of a square is future, and of no use."""
    for begin in range(0, grid.rows, _ROWS):
        end = min(begin + _ROWS, grid.rows)
        yield slice(begin, end), -(-min(grid.past + end * grid.block, grid.m) // grid.block)


def _by_group(q: Tensor, k: Keys) -> Tensor:
    """Query heads as (KV heads, heads of each), so that the group's keys are broadcast and not copied."""
    return q.unflatten(1, (k.shape[1], q.shape[1] // k.shape[1]))


def _paged(x: Float[Tensor, "batch heads n d"], block: int, value: float = 0.0) -> Float[Tensor, "batch heads pages block d"]:  # fmt: skip
    """The tokens in blocks, the last filled up with `value`."""
    pages = -(-x.shape[2] // block)
    if missing := pages * block - x.shape[2]:  # `pad` copies also where nothing is missing
        x = pad(x, (0, 0, 0, missing), value=value)
    return x.unflatten(2, (pages, block))


def _pooled(x: Float[Tensor, "batch heads n d"], block: int) -> Float[Tensor, "batch heads pages d"]:
    """The mean of each block; of the last over the tokens it has."""
    pages = _paged(x, block)
    counts = torch.full((pages.shape[2], 1), block, device=x.device)
    counts[-1:] = x.shape[2] - (pages.shape[2] - 1) * block
    return pages.sum(3) / counts


def _best(scores: Scores, grid: Grid, top: int) -> Chosen:
    """The own blocks, and the past ones of the highest scores, `top` in all."""
    past = grid.visible & ~grid.own
    scores = scores.masked_fill(~past, -torch.inf).masked_fill(grid.own, torch.inf)
    order = scores.topk(min(top, grid.columns), -1).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)
    return (chosen & past) | grid.own


def _top(scores: Float[Tensor, "batch heads k"], top: int) -> Bool[Tensor, "batch heads k"]:
    """The `top` highest of the last axis."""
    order = scores.topk(min(top, scores.shape[-1]), -1).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, order, True)


def _last_weights(q: Queries, k: Keys, last: int) -> Float[Tensor, "batch heads last m"]:
    """Softmaxed attention of the last queries over all keys they see."""
    (n, d), m = q.shape[2:], k.shape[2]
    scores = (_by_group(q[:, :, n - last :], k) @ k[:, :, None].transpose(-1, -2)).flatten(1, 2) / math.sqrt(d)
    position = torch.arange(m - last, m, device=q.device)[:, None]
    return scores.masked_fill_(torch.arange(m, device=q.device) > position, -torch.inf).softmax(-1)


def _along_diagonals(weights: Float[Tensor, "batch heads last m"]) -> Float[Tensor, "batch heads m"]:
    """The sum of the weights at each distance i - j, the last query at the last key."""
    batch, heads, last, m = weights.shape
    # Reversed, distance o of row r lies at column o + (last - 1 - r): a view whose rows begin one element earlier each.
    rows = pad(weights.flip(-1), (0, last)).contiguous()
    width = m + last
    shape, stride = (batch, heads, last, m), (heads * last * width, last * width, max(width - 1, 0), 1)
    return rows.as_strided(shape, stride, max(last - 1, 0)).sum(2)
