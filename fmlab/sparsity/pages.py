"""One query over chosen pages of keys and values, read where they lie: decode without a copy and without a mask."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

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
    token = (pages * block)[..., None] + torch.arange(block, device=q.device)
    hidden = None if m % block == 0 else token >= m
    if hidden is not None:
        token = token.clamp_(max=m - 1)
    if shown is not None:
        hidden = ~shown[..., None] if hidden is None else hidden | ~shown[..., None]
    sample, of = k.stride(0) // d, k.stride(1) // d  # rows of the table
    head = torch.arange(0, heads, device=q.device).div_(heads // kv_heads, rounding_mode="floor").mul_(of)
    start = head if batch == 1 else torch.arange(batch, device=q.device)[:, None] * sample + head
    row = token.add_(start[..., None, None])
    rows = (batch - 1) * sample + (kv_heads - 1) * of + m
    keys, values = (x.as_strided((rows, d), (d, 1), x.storage_offset()) for x in (k, v))
    bags = torch.arange(0, row.numel(), row.shape[2] * block, device=q.device)
    scores = _dots(q.reshape(-1, d) * scale, keys, row.view(-1), bags, row.new_empty(0), 0).view(row.shape)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    weights = scores.flatten(2).softmax(-1).to(v.dtype)
    parts = embedding_bag(row.view(-1, block), values, mode="sum", per_sample_weights=weights.view(-1, block))
    return parts.view(batch, heads, -1, d).sum(2, keepdim=True)


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
