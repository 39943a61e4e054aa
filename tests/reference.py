"""The truth that live runs are held against: one forward pass of the stock model under the mask of an expiry."""

from contextlib import contextmanager

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from fmlab import core


def _eager(query, key, value, mask, scaling):
    logits = (query @ key.transpose(2, 3)) * scaling
    logits = logits.masked_fill(~mask, -torch.inf)
    return (logits.softmax(-1) @ value).transpose(1, 2)


@contextmanager
def _masked_attention(model, visible, kernel):
    """visible (batch, layers, kv_heads, T, T)."""

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        mask = visible[:, module.layer_idx].repeat_interleave(groups, 1)
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        if kernel == "sdpa":
            return sdpa_attention_forward(module, query, key, value, mask, scaling=scaling)
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return _eager(query, key, value, mask, scaling), None

    AttentionInterface.register("masked_reference", attention)
    AttentionMaskInterface.register("masked_reference", lambda *args, **kwargs: None)
    before = model.config._attn_implementation
    model.set_attn_implementation("masked_reference")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def masked_forward(model, ids, expiry, kernel="sdpa"):
    """Logits (batch, T, vocabulary) of one pass over ids (batch, T) where query i sees entry j while j <= i < expiry[j]."""
    if expiry.ndim == 3:
        expiry = expiry[None]
    with _masked_attention(model, core.mask(expiry), kernel):
        return model(input_ids=ids, use_cache=False).logits
