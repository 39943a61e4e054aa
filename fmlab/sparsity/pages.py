"""One query over chosen pages of keys and values, read where they lie: decode without a copy and without a mask."""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag, scaled_dot_product_attention

from .choice import BlockChoice

_dots = torch.ops.aten._embedding_bag_per_sample_weights_backward  # the product of a vector with rows of a table
Pages = Int[Tensor, "batch heads top"]


def over_pages(
    q: Float[Tensor, "batch heads 1 d"],
    k: Float[Tensor, "batch kv_heads m d"],
    v: Float[Tensor, "batch kv_heads m d"],
    pages: Pages,
    block: int,
    scale: float,
    shown: Bool[Tensor, "batch heads top"] | None = None,
) -> Float[Tensor, "batch heads 1 d"]:
    """Attention of one query over the tokens of its pages; of any other token nothing is read.

    Keys and values are tables, and a page is the numbers of its rows: the two products are those of an embedding bag,
    which gathers and sums in one go. `k` and `v` may be the beginning of a longer storage. `shown` says which of the
    `pages` count, where heads have fewer than `top`; the others must repeat one that does. There is no gradient: asking
    for one is an error of torch's.
    """
    (batch, heads, _, d), (_, kv_heads, m, _) = q.shape, k.shape
    if k.stride() != v.stride() or k.stride(3) != 1 or k.stride(2) != d or k.stride(1) % d or k.stride(0) % d:
        k, v = k.contiguous(), v.contiguous()
    sample, of = k.stride(0) // d, k.stride(1) // d  # rows of the table
    begin = _begin(batch, heads, heads // kv_heads, sample, of, block, q.device)
    row = torch.add(begin, pages[..., None], alpha=block)
    hidden = None if shown is None else ~shown[..., None]
    if m % block:
        end = begin[..., :1] + m
        beyond = row >= end
        row = torch.minimum(row, end - 1)
        hidden = beyond if hidden is None else hidden | beyond
    rows = (batch - 1) * sample + (kv_heads - 1) * of + m
    keys, values = (x.as_strided((rows, d), (d, 1), x.storage_offset()) for x in (k, v))
    scores = _dots(q.reshape(-1, d) * scale, keys, row.view(-1), *_bags(*row.shape, q.device), 0).view(row.shape)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = scores.flatten(2).softmax(-1).to(v.dtype)
    parts = embedding_bag(row.view(-1, block), values, mode="sum", per_sample_weights=weights.view(-1, block))
    return parts.view(batch, heads, -1, d).sum(2, keepdim=True)


def over_common_pages(
    q: Float[Tensor, "batch heads 1 d"],
    k: Float[Tensor, "batch kv_heads room d"],
    v: Float[Tensor, "batch kv_heads room d"],
    pages: Int[Tensor, "batch kv_heads top"],
    block: int,
    seen: int,
    scale: float,
) -> Float[Tensor, "batch heads 1 d"]:
    """Attention of one query, the query heads of a KV head over the same pages, which are copied once for all of them.

    `k` and `v` are a storage in one piece with room for whole pages, of which `seen` tokens are in use; the last page in
    use must be the last of `pages`, so that what lies behind it is cut off.
    """
    (batch, kv_heads, room, d), top = k.shape, pages.shape[2]
    head = torch.arange(batch * kv_heads, device=q.device).view(batch, kv_heads, 1) * (room // block)
    row, length = (head + pages).flatten(), (top - 1) * block + (seen - 1) % block + 1
    keys, values = (
        x.view(-1, block * d).index_select(0, row).view(batch, kv_heads, top * block, d)[:, :, :length] for x in (k, v)
    )
    output = scaled_dot_product_attention(q.reshape(batch, kv_heads, -1, d), keys, values, scale=scale)
    return output.reshape(q.shape)


@lru_cache(maxsize=32)
def _begin(
    batch: int, heads: int, group: int, sample: int, of: int, block: int, device: torch.device
) -> Int[Tensor, "batch heads 1 block"]:
    """Where the first page of every head begins in a table: the rows of its tokens."""
    head = torch.arange(heads, device=device)[:, None].div(group, rounding_mode="floor") * of
    start = torch.arange(batch, device=device)[:, None, None] * sample + head
    return (start + torch.arange(block, device=device))[:, :, None]


@lru_cache(maxsize=32)
def _bags(
    batch: int, heads: int, top: int, block: int, device: torch.device
) -> tuple[Int[Tensor, " bags"], Int[Tensor, " rows"]]:
    """A bag for every head: where it begins among the rows, and the bag of every row."""
    bags = torch.arange(batch * heads, device=device)
    return bags * (top * block), bags.repeat_interleave(top * block)


def pages_of(choice: BlockChoice) -> tuple[Pages, Bool[Tensor, "batch heads top"] | None]:
    """The blocks that a single query sees, as numbers, and which of them count where heads see unequally many."""
    blocks = choice.blocks[:, :, 0]
    counts = blocks.sum(-1)
    top = int(counts.amax())
    pages = blocks.byte().topk(top, -1).indices
    if bool((counts == top).all()):
        return pages, None
    shown = blocks.gather(-1, pages)
    return pages.where(shown, choice.grid.columns - 1), shown
