"""The replay of a policy over a trace: all layers and heads at once, or head by head."""

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from ..policies import H2O
from ..rerun import replay
from ..trace import Trace
from . import real
from .pair import Floor, Pair
from .recorded import recorded

LAYERS = 4  # of the model, from its first
SHARE = 4  # the budget is one in so many tokens


def head_by_head(trace: Trace, budget: int) -> Int[Tensor, "layers kv_heads tokens"]:
    """The same replay of a trace of one KV head and its query heads, once for each head of each layer."""
    heads = [
        [replay(_head(trace.layer(layer), head), H2O(), budget) for head in range(trace.kv_heads)]
        for layer in range(len(trace.layers))
    ]
    return torch.stack([torch.cat(row, 1)[0] for row in heads])


def all_at_once(trace: Trace, budget: int) -> Int[Tensor, "layers kv_heads tokens"]:
    """The replay of the library: layers and heads are one axis of every tensor."""
    return replay(trace, H2O(), budget)


def inputs(size: int, seed: int) -> tuple[Trace, int]:
    """A record of `size` tokens and the budget."""
    layers = min(LAYERS, real.lm().model.config.num_hidden_layers)
    return recorded(size, list(range(layers)), seed), max(1, size // SHARE)


def floor(size: int) -> Floor:
    """The products of every query with the keys that its head holds, and the softmax's sums: what H2O looks at."""
    config = real.lm().model.config
    layers, budget = min(LAYERS, config.num_hidden_layers), max(1, size // SHARE)
    held = sum(min(step, budget + 1) for step in range(1, size + 1))
    heads = layers * config.num_attention_heads
    return Floor(2 * heads * config.head_dim * held, "operations", "q.k of every query and the entries held")


def _head(layer: Trace, head: int) -> Trace:
    """One KV head of a trace of one layer, with its query heads."""
    queries = layer.queries[:, head * layer.groups : (head + 1) * layer.groups]
    columns = {name: column for name, column in layer.columns.items() if column is not None}
    one = {name: x[:, head : head + 1] for name, x in {"keys": layer.keys, "values": layer.values, **columns}.items()}
    return replace(layer, queries=queries, **one)


PAIR = Pair(
    name="vectorised replay",
    claim=None,
    source="this lab: a replay is fast enough to sit behind a slider",
    baseline=head_by_head,
    optimised=all_at_once,
    inputs=inputs,
    sizes=(16, 64, 256),
    unit="tokens",
    floor=floor,
    used_in="fmlab.rerun.replay",
)
