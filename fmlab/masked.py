"""One forward pass of a model under the mask of an expiry: the truth that every live run is held against."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from .core import mask
from .renumber import check_positions
from .rope import Rope, rope_of

NAME = "fmlab_masked"


@torch.no_grad()
def masked_logits(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch tokens"],
    expiry: Int[Tensor, "*batch layers kv_heads tokens"],
    kernel: str = "sdpa",
    positions: str = "original",
) -> Float[Tensor, "batch tokens vocabulary"]:
    """Logits of one pass over `ids` in which query i sees entry j while j <= i < expiry[layer, head, j].

    It knows nothing of caches, slots or evictions: a live run whose cache told this expiry must give the same logits.
    `kernel` is "sdpa" or "eager" (the softmax written out). With `positions="renumbered"` entry and query stand at their
    rank among what the query sees; every pair is then turned by itself, in float64, so this is for short texts.
    """
    if kernel not in ("sdpa", "eager"):
        raise ValueError(f'kernel={kernel!r}; give "sdpa" or "eager"')
    check_positions(positions)
    if expiry.shape[-1] != ids.shape[1]:
        raise ValueError(
            f"an expiry of {expiry.shape[-1]} tokens for ids of {ids.shape[1]}; run both over the same text"
        )
    visible = mask(expiry if expiry.ndim == 4 else expiry[None])
    rope = rope_of(model) if positions == "renumbered" else None
    with _attention_under(model, visible, kernel, rope):
        return model(input_ids=ids, use_cache=False).logits


@contextmanager
def _attention_under(model: PreTrainedModel, visible: Tensor, kernel: str, rope: Rope | None) -> Iterator[None]:
    def attention(module, query, key, value, attention_mask, scaling=None, softcap=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        seen = visible[:, module.layer_idx].repeat_interleave(groups, 1).to(query.device)
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if rope is not None:
            output = _renumbered(query, key, value, seen, scaling, softcap, rope)
        elif kernel == "sdpa" and softcap is None:
            output = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scaling)
        else:
            logits = (query @ key.transpose(2, 3)) * scaling
            if softcap is not None:  # no kernel of SDPA knows it
                logits = (logits / softcap).tanh() * softcap
            output = logits.masked_fill(~seen, -torch.inf).softmax(-1, dtype=torch.float32).to(value.dtype) @ value
        return output.transpose(1, 2), None

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, lambda *args, **kwargs: None)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(NAME)
        yield
    finally:
        model.set_attn_implementation(before)


def _renumbered(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float, softcap: float | None, rope: Rope
) -> Tensor:
    """Attention in which every query turns the keys it sees to their ranks; q, k, v (batch, query heads, tokens, d)."""
    tokens = query.shape[2]
    at = torch.arange(tokens, device=query.device).expand(query.shape[:-1])
    bare_query, bare_key = (rope.unrotate(x.double(), at) for x in (query, key))
    rank = seen.expand(*query.shape[:2], tokens, tokens).long().cumsum(-1) - 1  # of each entry, for each query
    turned = rope.rotate(bare_key[:, :, None].expand(*rank.shape, -1), rank)
    own = rope.rotate(bare_query, rank[..., -1])  # the newest of what it sees
    logits = (turned @ own[..., None])[..., 0] * scaling
    if softcap is not None:
        logits = (logits / softcap).tanh() * softcap
    return (logits.masked_fill(~seen, -torch.inf).softmax(-1) @ value.double()).to(value.dtype)
