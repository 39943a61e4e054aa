"""The formulas of the papers in float64, one call over a whole text: what two implementations are both held against.

Nothing here comes from fmlab or kvpress. Each takes a `Layer` and returns scores (heads, n), higher is kept, inf must stay.
"""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad


@dataclass(frozen=True)
class Layer:
    """Queries (query heads, n, d), keys and values (heads, n, d) of a layer after RoPE, float64; `turns` (places, d / 2)
    are the angles by which RoPE turns each plane, for the places of the text and as many as are wanted behind it."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    scaling: float
    turns: Tensor

    @property
    def attention(self) -> Tensor:
        """Causal softmax, (heads, groups, n, n)."""
        heads, n, d = self.keys.shape
        logits = self.queries.view(heads, -1, n, d) @ self.keys[:, None].mT * self.scaling
        return logits.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -inf).softmax(-1)


def key_norm(layer: Layer) -> Tensor:
    return -layer.keys.square().sum(-1).sqrt()


def key_diff(layer: Layer) -> Tensor:
    directions = normalize(layer.keys, dim=-1)
    return -(directions @ normalize(directions.mean(1), dim=-1)[..., None]).squeeze(-1)


def snapkv(layer: Layer, window: int, kernel: int = 5) -> Tensor:
    votes = layer.attention[:, :, -window:, :-window].mean((1, 2))
    pooled = pad(votes, (kernel // 2, kernel // 2)).unfold(-1, kernel, 1).mean(-1)
    return pad(pooled, (0, window), value=inf)


def tova(layer: Layer) -> Tensor:
    paid = layer.attention[:, :, -1, :-1].mean((0, 1))
    return pad(paid, (0, 1), value=inf).expand(len(layer.keys), -1)


def observed_attention(layer: Layer) -> Tensor:
    n = layer.keys.shape[1]
    return layer.attention.sum(2).mean(1) / torch.arange(n, 0, -1)


def expected_attention(layer: Layer, horizon: int = 512, sinks: int = 4) -> Tensor:
    heads, n, d = layer.keys.shape
    bare = _turned(layer.queries, -layer.turns[:n])[:, sinks:]
    turn = _turned(torch.eye(d).double(), layer.turns[n : n + horizon, None]).mean(0)  # rows: where each axis goes
    mean, apart = bare.mean(1) @ turn, (bare - bare.mean(1, keepdim=True)) @ turn
    keys = layer.keys[:, None, sinks:] * layer.scaling
    covariance = (apart.mT @ apart / apart.shape[1]).view(heads, -1, d, d)
    logits = (keys @ mean.view(heads, -1, d, 1)).squeeze(-1) + (keys @ covariance * keys).sum(-1) / 2
    worth = logits.softmax(-1).mean(1) * layer.values[:, sinks:].norm(dim=-1)
    return pad(worth, (sinks, 0), value=inf)


def lagkv(layer: Layer, lag: int, sinks: int = 4) -> Tensor:
    n = layer.keys.shape[1]
    blocks = (n - sinks) // lag
    score = torch.full(layer.keys.shape[:2], inf, dtype=torch.float64)
    for block in range(blocks - 1):
        start, worth = sinks + block * lag, 0
        for x in (layer.keys, layer.values):
            mine, following = x[:, start : start + lag], x[:, start + lag : start + 2 * lag]
            low, high = (edge[:, None] for edge in following.aminmax(dim=1))
            worth = worth + ((mine - low) / (high - low)).std(-1).softmax(-1) / 2
        score[:, start : start + lag] = worth.argsort(-1).argsort(-1).double()  # 0 goes first
    return score


def cur(layer: Layer, block: int = 16, sinks: int = 4) -> Tensor:
    n = layer.keys.shape[1]
    score = 1
    for x in (layer.keys, layer.values):
        norms = pad(x.square().sum(-1), (0, -n % block)).unflatten(-1, (-1, block))
        score = score * (norms / norms.sum(-1, keepdim=True)).flatten(1)[:, :n]
    score[:, :sinks] = inf
    return score


def streaming(layer: Layer, sinks: int = 4) -> Tensor:
    heads, n, _ = layer.keys.shape
    places = torch.arange(n, dtype=torch.float64)
    return torch.where(places < sinks, inf, places).expand(heads, n)


def wrong(score: Tensor, kept: Tensor, tolerance: float) -> Tensor:
    """In which heads (heads,) these entries are not the best of their number: one that was dropped scores more than one
    that was kept, by more than `tolerance` of the score at the cut."""
    best = score.masked_fill(kept, -inf).amax(-1)
    worst = score.masked_fill(~kept, inf).amin(-1)
    return best > worst + tolerance * worst.abs().clamp(min=1e-300)


def _turned(x: Tensor, angles: Tensor) -> Tensor:
    """Rows (…, n, d) with each plane (i, i + d / 2) turned by its angle (n, d / 2)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)
