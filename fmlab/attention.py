"""The attention output of a view's queries: SDPA wherever it can, the policy's own weights where it asked for them."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .view import View


def attend(
    view: View, query: Float[Tensor, "batch query_heads new d"], keys: Tensor, values: Tensor
) -> Float[Tensor, "batch new query_heads d_value"]:
    """The attention output of the view's queries. Weights that the policy asked for are used again."""
    batch, query_heads, new, _ = query.shape
    heads, n, _ = keys.shape
    if new == 1 and view.asked_for_weights(1):
        output = view.weights(1).squeeze(2).to(values.dtype) @ values
        return output.view(batch, 1, query_heads, -1)
    if view.softcap is not None:  # no kernel of SDPA knows it
        blocks = [view.rows(*block).to(values.dtype) @ values[:, None] for block in view.blocks()]
        return torch.cat(blocks, 2).view(batch, query_heads, new, -1).transpose(1, 2)
    kv_heads = heads // batch
    keys, values = keys.view(batch, kv_heads, n, -1), values.view(batch, kv_heads, n, -1)
    if new == 1 and view.window is None:  # the query heads of a KV head side by side: its keys are read once
        packed = query.reshape(batch, kv_heads, -1, query.shape[-1])
        output = scaled_dot_product_attention(packed, keys, values, scale=view.scaling)
        return output.view(batch, 1, query_heads, -1)
    causal = new == n > 1 and (view.window is None or n <= int(view.window[0]))
    output = scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=None if causal else _visible(view, batch, query_heads),
        is_causal=causal,
        scale=view.scaling,
        enable_gqa=query_heads != kv_heads,
    )
    return output.transpose(1, 2)


def attend_apart(
    parts: list[tuple[list[int], View, Float[Tensor, "_ groups new d"]]], batch: int
) -> Float[Tensor, "batch new query_heads d_value"]:
    """The same where each view has only some rows of the heads axis, batch x KV heads, with the queries of these rows:
    one call for each."""
    outputs = []  # each (new, rows, groups, d_value)
    for rows, view, query in parts:
        output = attend(view, query.flatten(0, 1)[None], view.keys, view.values)[0]
        outputs.append(output.unflatten(1, (len(rows), -1)))
    order = torch.tensor([row for rows, _, _ in parts for row in rows], device=outputs[0].device).argsort()
    output = torch.cat(outputs, 1)[:, order]
    return output.unflatten(1, (batch, -1)).flatten(2, 3).transpose(0, 1)


def _visible(view: View, batch: int, query_heads: int) -> Tensor:
    """What each query sees, as SDPA takes it."""
    new, (heads, n) = view.new, view.positions.shape
    if view.window is None:
        return torch.ones(new, n, dtype=torch.bool, device=view.positions.device).tril(n - new)  # the new stand last
    visible = ~view.hidden(0, new)
    return visible.view(batch, -1, new, n).repeat_interleave(batch * query_heads // heads, 1)
