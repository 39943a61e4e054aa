"""Attention over chosen blocks: SDPA over all keys under the choice's mask, or a kernel that reads the chosen alone."""

from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..record import record
from ..sparsity import BlockChoice, Streaming, attention
from .pair import Floor, Pair
from .real import lm, text_ids

LAYER = 15  # of SmolLM2's 30
PATTERN = Streaming(sinks=64, window=256)


@cache
def _recorded(size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    trace = record(lm(), text_ids(size, seed), layers=[LAYER], dtype=torch.float32)
    return trace.queries, trace.keys, trace.values


def inputs(size: int, seed: int) -> tuple:
    """What layer 15 of the model is given for `size` tokens of prose, the choice of sinks and a window, and its mask."""
    heads = lm().model.config
    d = heads.hidden_size // heads.num_attention_heads
    empty = [torch.zeros(1, h, 0, d) for h in (heads.num_attention_heads, *[heads.num_key_value_heads] * 2)]
    q, k, v = _recorded(size, seed) if size else empty
    choice = PATTERN.blocks(q, k)
    return q, k, v, choice, choice.mask()[:, :1]


def baseline(
    q: Float[Tensor, "1 heads n d"],
    k: Float[Tensor, "1 kv_heads n d"],
    v: Float[Tensor, "1 kv_heads n d"],
    choice: BlockChoice,
    mask: Bool[Tensor, "1 1 n n"],
) -> Float[Tensor, "1 heads n d"]:
    """SDPA with the choice's mask, as a dense implementation calls 'sparse'; the mask is there already.

    SDPA with `is_causal=True` attends to other keys and is the faster dense attention: `benchmarks/sparsity.py` measures
    against that one.
    """
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)


def optimised(
    q: Float[Tensor, "1 heads n d"],
    k: Float[Tensor, "1 kv_heads n d"],
    v: Float[Tensor, "1 kv_heads n d"],
    choice: BlockChoice,
    mask: Bool[Tensor, "1 1 n n"],
) -> Float[Tensor, "1 heads n d"]:
    """The kernel 'gather', which needs no compiler."""
    return attention(q, k, v, choice, "gather")


def floor(size: int) -> Floor:
    """Two products of 64 multiplications and additions for each pair that attends, in nine heads."""
    q = torch.empty(1, 9, size, 1)
    return Floor(4.0 * 64 * PATTERN.blocks(q, q).pairs, "operations", "q·k and the weighted values of the chosen pairs")


PAIR = Pair(
    name="block-sparse attention against a masked dense one",
    claim=None,
    source="this lab's sparse prefill rests on it",
    baseline=baseline,
    optimised=optimised,
    inputs=inputs,
    tolerance=2e-5,
    sizes=(512, 1_024, 2_048, 4_096),
    unit="tokens",
    floor=floor,
    used_in="fmlab.sparsity.attention",
)
