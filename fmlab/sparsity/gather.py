"""Block-sparse attention in plain torch, for the CPU, without a compiler: runs of blocks as views, few and large calls.

What a row of query blocks sees is its band (the run of blocks that ends at its own) and the rest. Bands of one width are
one call, over windows that overlap in memory (`as_strided`), so no key is copied. Rows with the same rest are one call
over it. Rows with a rest of their own are gathered, as many together as have equally many blocks. A rest joins its band,
by their log-sum-exp, a few queries at a time, while both are in the processor's cache.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .backward import with_gradient
from .choice import BlockChoice
from .grid import Grid

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # SDPA's own kernel; it also gives the log-sum-exp
_FEW = 4  # rows with the same rest, from which on a call of their own pays
_LONG = 4  # blocks in one run, from which on a call over the run where it lies is quicker than a copy of it
_JOINED = 1_024  # queries whose rest is joined to their band at a time
_GATHERED = 512  # blocks of keys that are copied at a time: 16 MB of keys and values at 64 dimensions in float32


class Bands(NamedTuple):
    """How the rows of one head are cut up."""

    triangle: int
    """The first rows, which see all there is: plain causal attention."""
    width: int
    """Blocks that a row of `wide` sees up to its own."""
    wide: list[range]
    narrow: list[range]
    """Rows of which only the own block is taken as the band."""
    shared: list[tuple[range, list[int]]]
    """Rows and the rest that all of them see."""
    single: dict[int, list[tuple[int, list[int]]]]
    """By the number of blocks in the rest: a row and its rest."""


def gather(
    q: Float[Tensor, "batch heads n d"],
    k: Float[Tensor, "batch kv_heads m d"],
    v: Float[Tensor, "batch kv_heads m d"],
    choice: BlockChoice,
    scale: float,
) -> Float[Tensor, "batch heads n d"]:
    """Attention of `q` over the chosen blocks of `k` and `v`. Raises ValueError for tensors that are not on the CPU."""
    if q.device.type != "cpu":
        raise ValueError(f"the kernel 'gather' is for the CPU, and these tensors are on {q.device}; use 'flex'")
    return with_gradient(_gather, q, k, v, choice, scale)


def _gather(q: Tensor, k: Tensor, v: Tensor, choice: BlockChoice, scale: float) -> Tensor:
    q, k, v = (x.contiguous() for x in (q, k, v))
    group, grid, distinct = q.shape[1] // k.shape[1], choice.grid, choice.distinct
    if grid.n == 0:
        return torch.empty_like(q)
    cuts = [[cut(blocks, grid) for blocks in heads] for heads in distinct]
    precise = torch.promote_types(q.dtype, torch.float32)
    out, lse = torch.empty_like(q), torch.empty_like(q[..., 0], dtype=precise)
    for sample in range(q.shape[0]):
        bands = cuts[sample if len(cuts) > 1 else 0]
        if len(bands) == 1:  # all heads see the same: the KV heads together, as often as each has query heads
            some = [(slice(head, None, group), slice(None), bands[0]) for head in range(group)]
        else:
            some = [(slice(h, h + 1), slice(h // group, h // group + 1), bands[h]) for h in range(q.shape[1])]
        for heads, kv_heads, cut_up in some:
            at, of = (sample, heads), (sample, kv_heads)
            _Heads(q[at], k[of], v[of], out[at], lse[at], grid, scale).run(cut_up)
    return out


def cut(blocks: Bool[Tensor, "rows columns"], grid: Grid) -> Bands:
    """The rows of one head cut into bands and rests."""
    own = grid.past // grid.block + torch.arange(grid.rows)  # the first own block
    before = torch.arange(grid.columns) < own[:, None]
    gap = torch.where(before & ~blocks, torch.arange(grid.columns), -1).amax(1)  # the last block not seen
    run = own - gap  # the band, the own block counted
    whole = (gap < 0).tolist()
    triangle = next((row for row, all_seen in enumerate(whole) if not all_seen), grid.rows) if grid.past == 0 else 0
    counts = torch.bincount(run[triangle:], minlength=2)
    width = int(len(counts) - 1 - counts.flip(0).argmax()) if triangle < grid.rows else 1
    is_wide = run >= width
    rest = blocks & before
    rest &= torch.arange(grid.columns) <= (own - torch.where(is_wide, width, 1))[:, None]
    rest[:triangle] = False
    wide = _ranges(is_wide.tolist(), triangle) if width > 1 else []
    narrow = _ranges((~is_wide).tolist() if width > 1 else [True] * grid.rows, triangle)
    changes = ((rest[1:] != rest[:-1]).any(1).nonzero()[:, 0] + 1).tolist()
    shared, single = [], {}
    lists = [[] for _ in range(grid.rows)]
    for row, column in rest.nonzero().tolist():
        lists[row].append(column)
    for begin, end in zip([0, *changes], [*changes, grid.rows], strict=True):
        columns = lists[begin]
        in_a_run = len(columns) >= _LONG and columns[-1] - columns[0] < len(columns)
        if columns and (end - begin >= _FEW or in_a_run):
            shared.append((range(begin, end), columns))
        elif columns:
            single.setdefault(len(columns), []).extend((row, columns) for row in range(begin, end))
    return Bands(triangle, width, wide, narrow, shared, single)


class _Heads:
    """Heads of one sample that see the same blocks, each with keys of its own: (heads, n, d) over (heads, m, d)."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, grid: Grid, scale: float) -> None:
        self.q, self.k, self.v, self.out, self.lse, self.grid, self.scale = q, k, v, out, lse, grid, scale

    def run(self, bands: Bands) -> None:
        block = self.grid.block
        if bands.triangle:
            queries = slice(0, min(bands.triangle * block, self.grid.n))
            self._put(queries, *self._attend(self.q[:, queries], self.k[:, queries], self.v[:, queries], causal=True))
        for rows in bands.wide:
            self._band(rows, bands.width)
        for rows in bands.narrow:
            self._band(rows, 1)
        for rows, columns in bands.shared:
            keys, values = (self._columns(x, columns) for x in (self.k, self.v))
            for start in range(rows.start * block, min(rows.stop * block, self.grid.n), _JOINED):
                queries = slice(start, min(start + _JOINED, rows.stop * block, self.grid.n))
                self._join(queries, *self._attend(self.q[:, queries], keys, values))
        for count, rows in bands.single.items():
            for some in _batches(rows, max(_GATHERED // count, 1)):
                self._gathered(some, count)

    def _band(self, rows: range, width: int) -> None:
        """Windows of `width` blocks up to the own one; of one more where queries begin within a block."""
        grid, block = self.grid, self.grid.block
        begun = grid.past % block  # tokens of the own block that are before the row's first query
        length = (width + (begun > 0)) * block
        first = (grid.past // block - (width - 1)) * block  # the window of row 0
        hidden = torch.arange(length) > torch.arange(block)[:, None] + ((width - 1) * block + begun)
        mask = self.q.new_zeros(block, length).masked_fill_(hidden, -math.inf)
        whole = [r for r in rows if (r + 1) * block <= grid.n and first + r * block + length <= grid.m]
        if whole:  # the last rows may reach beyond the end
            start, count = whole[0], len(whole)
            (heads, _, d), size = self.q.shape, self.k.stride(0)
            queries = slice(start * block, (start + count) * block)
            windows = [
                x.as_strided(
                    (heads, count, length, d),
                    (size, block * d, d, 1),
                    x.storage_offset() + (first + start * block) * d,
                )
                for x in (self.k, self.v)
            ]
            out, lse = self._flash(self.q[:, queries].unflatten(1, (count, block)), *windows, mask=mask)
            self._put(queries, out.flatten(1, 2), lse.flatten(1, 2))
        for row in rows[len(whole) :]:
            queries = slice(row * block, min((row + 1) * block, grid.n))
            keys = slice(first + row * block, min(first + row * block + length, grid.m))
            some = mask[: queries.stop - queries.start, : keys.stop - keys.start].contiguous()
            self._put(queries, *self._attend(self.q[:, queries], self.k[:, keys], self.v[:, keys], mask=some))

    def _gathered(self, rows: list[tuple[int, list[int]]], count: int) -> None:
        """Rows that each see `count` blocks of their own choice, in one call; only the last row may be ragged."""
        grid, block = self.grid, self.grid.block
        if rows[-1][0] == grid.rows - 1 and grid.n % block:
            row, columns = rows.pop()
            queries = slice(row * block, grid.n)
            keys, values = (self._columns(x, columns) for x in (self.k, self.v))
            self._join(queries, *self._attend(self.q[:, queries], keys, values))
            if not rows:
                return
        index = torch.tensor([columns for _, columns in rows]).flatten()
        row = torch.tensor([row for row, _ in rows])
        full, d = grid.m // block, self.q.shape[-1]
        windows = [
            x[:, : full * block]
            .unflatten(1, (full, block))
            .index_select(1, index)
            .view(len(x), len(rows), count * block, d)
            for x in (self.k, self.v)
        ]
        whole = grid.n // block
        queries = self.q[:, : whole * block].unflatten(1, (whole, block))[:, row]
        out, lse = self._flash(queries, *windows)
        places = (row[:, None] * block + torch.arange(block)).flatten()
        self._join(places, out.flatten(1, 2), lse.flatten(1, 2))

    def _put(self, queries: slice, out: Tensor, lse: Tensor) -> None:
        self.out[:, queries], self.lse[:, queries] = out, lse

    def _join(self, queries: slice | Tensor, out: Tensor, lse: Tensor) -> None:
        """Add the rest to the band: over two sets of keys, attention is the mean of both by the sums of their exponentials."""
        both = self.out[:, queries]
        both.lerp_(out, torch.sigmoid(lse - self.lse[:, queries]).to(out.dtype)[..., None])
        if isinstance(queries, Tensor):  # a copy and no view
            self.out[:, queries] = both

    def _columns(self, x: Tensor, columns: list[int]) -> Tensor:
        """The keys or values of some blocks: a view where the blocks follow one another."""
        block = self.grid.block
        runs = list(_ranges_of(columns))
        parts = [x[:, run.start * block : run.stop * block] for run in runs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> tuple:
        """Queries that all see the same keys, but for the mask."""
        out, lse = self._flash(q[None], k[None], v[None], mask, causal)
        return out[0], lse[0]

    def _flash(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> tuple:
        return _flash(q, k, v, 0.0, causal, attn_mask=mask, scale=self.scale)


def _ranges(flags: list[bool], begin: int) -> list[range]:
    """The runs of True from `begin` on."""
    return list(_ranges_of([i for i in range(begin, len(flags)) if flags[i]]))


def _ranges_of(numbers: list[int]) -> Iterator[range]:
    """The runs of consecutive numbers."""
    breaks = [i for i in range(1, len(numbers)) if numbers[i] != numbers[i - 1] + 1]
    for begin, end in zip([0, *breaks], [*breaks, len(numbers)], strict=True):
        if end > begin:
            yield range(numbers[begin], numbers[end - 1] + 1)


def _batches(rows: list, size: int) -> Iterator[list]:
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]
