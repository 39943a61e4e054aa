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

NAME = "fmlab_masked"


@torch.no_grad()
def masked_logits(
    model: PreTrainedModel,
    ids: Int[Tensor, "batch tokens"],
    expiry: Int[Tensor, "*batch layers kv_heads tokens"],
    kernel: str = "sdpa",
) -> Float[Tensor, "batch tokens vocabulary"]:
    """Logits of one pass over `ids` in which query i sees entry j while j <= i < expiry[layer, head, j].

    It knows nothing of caches, slots or evictions: a live run whose cache told this expiry must give the same logits.
    `kernel` is "sdpa" or "eager" (the softmax written out).
    """
    if kernel not in ("sdpa", "eager"):
        raise ValueError(f'kernel={kernel!r}; give "sdpa" or "eager"')
    if expiry.shape[-1] != ids.shape[1]:
        raise ValueError(
            f"an expiry of {expiry.shape[-1]} tokens for ids of {ids.shape[1]}; run both over the same text"
        )
    visible = mask(expiry if expiry.ndim == 4 else expiry[None])
    with _attention_under(model, visible, kernel):
        return model(input_ids=ids, use_cache=False).logits


@contextmanager
def _attention_under(model: PreTrainedModel, visible: Tensor, kernel: str) -> Iterator[None]:
    def attention(module, query, key, value, attention_mask, scaling=None, softcap=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        seen = visible[:, module.layer_idx].repeat_interleave(groups, 1).to(query.device)
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if kernel == "sdpa" and softcap is None:
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
