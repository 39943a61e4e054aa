"""One head's full causal attention kept block by block, so that any choice of blocks is judged in milliseconds."""

import math
from collections.abc import Iterator
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .grid import Grid

Vectors = Float[Tensor, "tokens d"]
_PIXEL_ROWS = 32  # worked out at a time: at 16,384 tokens 64 MB of weights


class BlockedHead:
    """Attention over each block of keys alone, and the log of its sum of exponentials: what FlashAttention merges.

    Attention over any choice is the mean of its blocks' by those sums, so a choice costs tokens x blocks and not tokens x
    tokens. It holds 2 d tokens² / block bytes in float32: 34 MB at 4,096 tokens, 64 dimensions and blocks of 64. In
    float32 at least. Raises ValueError for no token, or vectors that do not fit each other.
    """

    def __init__(self, q: Vectors, k: Vectors, v: Float[Tensor, "tokens d_value"], block: int = 64):
        if len(q) == 0 or q.shape != k.shape or len(v) != len(k):
            shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
            raise ValueError(
                f"queries, keys and values {shapes}; give those of one head for the same tokens, one or more"
            )
        precise = torch.promote_types(q.dtype, torch.float32)
        self.q, self.k, v = q.to(precise) / math.sqrt(q.shape[-1]), k.to(precise), v.to(precise)
        self.grid = Grid(len(q), len(q), block, q.device)
        self._rows = [self._row(row, v) for row in range(self.grid.rows)]
        self.total = torch.cat([logs.logsumexp(-1) for logs, _ in self._rows])

    def _row(self, row: int, v: Tensor) -> tuple[Tensor, Tensor]:
        """Of the queries of a block, over each block of keys up to their own: (queries, blocks), (queries, blocks, d)."""
        block, end = self.grid.block, int(self.grid.last[row]) + 1
        scores = self.q[row * block : end] @ self.k[:end].T
        places = torch.arange(end, device=scores.device)
        scores.masked_fill_(places > places[row * block :, None], -torch.inf)
        short = (row + 1) * block - end
        scores = torch.nn.functional.pad(scores, (0, short), value=-torch.inf).unflatten(-1, (row + 1, block))
        values = torch.nn.functional.pad(v[:end], (0, 0, 0, short)).unflatten(0, (row + 1, block))
        return scores.logsumexp(-1), (scores.softmax(-1).transpose(0, 1) @ values).transpose(0, 1).contiguous()

    @cached_property
    def mass(self) -> Float[Tensor, "rows columns"]:
        """The softmax mass of full attention on each block, summed over its queries: `block_mass` of this head."""
        mass = self.total.new_zeros(self.grid.rows, self.grid.columns)
        for row, (logs, total) in enumerate(zip(self._logs, self._parts(self.total), strict=True)):
            mass[row, : row + 1] = (logs - total[:, None]).exp().sum(0)
        return mass

    @property
    def _logs(self) -> Iterator[Tensor]:
        return (logs for logs, _ in self._rows)

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(self.grid.block)

    @cached_property
    def _dense(self) -> list[Tensor]:
        return [_merged(logs, out) for logs, out in self._rows]

    def error(self, blocks: Bool[Tensor, "rows columns"]) -> float:
        """`output_error` of this head. Raises ValueError for blocks that are not those of the grid."""
        if blocks.shape != self.grid.visible.shape:
            wanted = tuple(self.grid.visible.shape)
            raise ValueError(f"blocks of {tuple(blocks.shape)} for a head of {wanted}; choose for the same tokens")
        off = whole = 0.0
        for row, ((logs, out), dense) in enumerate(zip(self._rows, self._dense, strict=True)):
            sparse = _merged(logs.masked_fill(~blocks[row, : row + 1], -torch.inf), out)
            off, whole = off + float((sparse - dense).square().sum()), whole + float(dense.square().sum())
        return math.sqrt(off / whole) if whole else math.sqrt(off)

    def weights(self, queries: range, keys: range) -> Float[Tensor, "queries keys"]:
        """The attention of these queries to these keys: a part of the softmax over all that each sees."""
        some = slice(queries.start, queries.stop)
        scores = self.q[some] @ self.k[keys.start : keys.stop].T
        places = torch.arange(keys.start, keys.stop, device=scores.device)
        future = places > torch.arange(queries.start, queries.stop, device=scores.device)[:, None]
        return scores.sub_(self.total[some, None]).exp_().masked_fill_(future, 0.0)

    def pooled(self, queries: range, keys: range, each: int) -> Float[Tensor, "rows columns"]:
        """The mean attention of the causal pairs in squares of `each` tokens, counted from the first query and the
        first key; NaN where a square has none."""
        rows, columns = (-(-len(span) // each) for span in (queries, keys))
        mean = self.total.new_zeros(rows, columns)
        for begin in range(0, rows, _PIXEL_ROWS):
            some = queries[begin * each : (begin + _PIXEL_ROWS) * each]
            seen = keys[: max(some.stop - keys.start, 0)]  # the others are their future
            if not seen:
                continue
            weights = self.weights(some, seen)
            down, across = (-(-size // each) for size in weights.shape)
            weights = torch.nn.functional.pad(weights, (0, across * each - len(seen), 0, down * each - len(some)))
            mean[begin : begin + down, :across] = weights.view(down, each, across, each).sum((1, 3))
        return mean / _pairs(_edges(queries, each), _edges(keys, each))


def _merged(logs: Tensor, out: Tensor) -> Tensor:
    """The blocks' outputs, weighed by their shares of the sum of exponentials."""
    return (logs.softmax(-1)[:, None] @ out)[:, 0]


def _edges(span: range, each: int) -> Int[Tensor, " edges"]:
    return torch.tensor([*range(span.start, span.stop, each), span.stop])


def _pairs(queries: Int[Tensor, " rows_and_one"], keys: Int[Tensor, " columns_and_one"]) -> Int[Tensor, "rows columns"]:
    """Causal pairs in each rectangle between the edges; 0 / 0 is NaN, so the future divides to none."""
    i, j = queries[:, None], keys
    least = torch.minimum(i, j)
    before = least * (least + 1) // 2 + (i - least) * j  # pairs of a query below i and a key below j
    return before.diff(dim=0).diff(dim=1)
