"""A policy that looks at the last queries only: their weights recomputed beside SDPA, or cut from eager attention's."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from ..attention import attend
from ..trace import Trace
from . import real
from .pair import Floor, Pair
from .recorded import recorded

WINDOW = 32  # queries that SnapKV looks at
LAYER = 10


class Attended(NamedTuple):
    """What a layer passes on, and what its policy is shown."""

    output: Float[Tensor, "1 tokens query_heads d"]
    last: Float[Tensor, "kv_heads window tokens"]


def eager(trace: Trace) -> Attended:
    """All weights, (query heads, tokens, tokens), as an eager model computes them; the policy is shown the last rows."""
    queries, keys, values = (x[0] for x in (trace.queries, trace.keys, trace.values))
    tokens, groups = len(trace), trace.groups
    by_group = queries.unflatten(0, (-1, groups))
    later = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    logits = (by_group @ keys[:, None].mT) * trace.scaling
    weights = logits.masked_fill_(later, -torch.inf).softmax(-1)
    output = (weights @ values[:, None]).flatten(0, 1)
    return Attended(output.transpose(0, 1)[None], weights[:, :, max(0, tokens - WINDOW) :].mean(1))


def windowed(trace: Trace) -> Attended:
    """SDPA, which shows no weights, and the rows of the last queries once more, by the view that a policy gets."""
    if not len(trace):
        return Attended(trace.queries.transpose(1, 2), trace.keys.new_empty(trace.kv_heads, 0, 0))
    view = trace.view()
    last = view.attention(last=min(WINDOW, len(trace)))
    return Attended(attend(view, trace.queries, view.keys, view.values), last)


def inputs(size: int, seed: int) -> tuple[Trace]:
    """What the attention of one layer was given over `size` tokens of prose."""
    return (recorded(size, [LAYER % real.lm().model.config.num_hidden_layers], seed),)


def floor(size: int) -> Floor:
    """The products of causal attention, and those of the window's rows beside them."""
    config = real.lm().model.config
    heads, d = config.num_attention_heads, config.head_dim
    seen, window = size * (size + 1) // 2, min(WINDOW, size)
    shown = window * size - window * (window - 1) // 2
    return Floor(
        2 * heads * d * (2 * seen + shown), "operations", "q.k and weights.v of causal pairs, q.k of the window"
    )


PAIR = Pair(
    name="windowed attention",
    claim=None,
    source="this lab: policies that look at the last queries, such as SnapKV",
    baseline=eager,
    optimised=windowed,
    inputs=inputs,
    tolerance=1e-4,
    sizes=(32, 256, 1_024),
    unit="tokens",
    floor=floor,
    used_in="fmlab.view.View.attention",
)
