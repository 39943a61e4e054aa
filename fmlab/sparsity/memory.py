"""From memory to mask: the expiry of an evict-once run as a choice of blocks, and as a FlexAttention `mask_mod`."""

import torch
from jaxtyping import Int
from torch import Tensor

from .choice import BlockChoice
from .forms import MaskMod
from .grid import Grid

Expiry = Int[Tensor, "layers kv_heads tokens"]


def choice_of(expiry: Expiry, group: int = 1, block: int = 64) -> BlockChoice:
    """The blocks in which some query still sees some key; the layers are the choice's batch.

    `group` is the number of query heads for each KV head. Rounded outwards: a kernel that goes by blocks sees more than
    the run did. `mask_mod_of` is exact.

    Raises ValueError for an expiry of several samples, and an entry that is evicted before its own query has seen it.
    """
    _checked(expiry, group)
    tokens = expiry.shape[-1]
    grid = Grid(tokens, tokens, block, expiry.device)
    longest = torch.nn.functional.pad(expiry, (0, grid.columns * block - tokens))
    longest = longest.unflatten(-1, (grid.columns, block)).amax(-1).repeat_interleave(group, 1)
    return BlockChoice(grid.visible & (grid.first[:, None] < longest[:, :, None]), tokens, tokens, block)


def mask_mod_of(expiry: Expiry, group: int = 1) -> MaskMod:
    """`(j <= i) & (i < expiry[h, j])` as FlexAttention's `mask_mod(b, h, q_idx, kv_idx)`; b counts the layers.

    For one layer with any batch give `expiry[layer : layer + 1]`: one layer is taken for every b. Raises as `choice_of`.
    """
    _checked(expiry, group)
    one = expiry.shape[0] == 1
    return lambda b, h, i, j: (j <= i) & (i < expiry[0 if one else b, h // group, j])


def _checked(expiry: Tensor, group: int) -> None:
    if expiry.ndim != 3:
        raise ValueError(
            f"an expiry of shape {tuple(expiry.shape)}; give (layers, KV heads, tokens): of a batch one sample, "
            "expiry[sample], and of one layer expiry[layer][None]"
        )
    if group < 1:
        raise ValueError(f"group={group}; give the number of query heads for each KV head, 1 or more")
    early = expiry <= torch.arange(expiry.shape[-1], device=expiry.device)
    if early.any():
        layer, head, token = early.nonzero()[0].tolist()
        raise ValueError(
            f"layer {layer}, KV head {head}: token {token} expires at {int(expiry[layer, head, token])}, before its "
            f"own query has seen it; an expiry is {token + 1} or more there"
        )
