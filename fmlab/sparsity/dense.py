"""The reference that every kernel is held against: SDPA over all keys under the choice's mask."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .choice import BlockChoice


def dense(
    q: Float[Tensor, "batch heads n d"],
    k: Float[Tensor, "batch kv_heads m d"],
    v: Float[Tensor, "batch kv_heads m d"],
    choice: BlockChoice,
    scale: float,
) -> Float[Tensor, "batch heads n d"]:
    """Attention as if by all keys, n x m at a time for each distinct head of the mask. It saves nothing."""
    mask = choice.mask()
    if choice.distinct.shape[1] == 1:
        mask = mask[:, :1]
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
