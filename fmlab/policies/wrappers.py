"""Policies over policies: whole chunks, what a value adds, pinned sinks and newest."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..core import Policy, Stats, View
from .attention import H2O, SnapKV
from .geometry import KeyNorm
from .nesting import around, inside, remembered


@dataclass(frozen=True)
class ChunkKV(Policy):
    """ChunkKV (arXiv:2502.00299): keep or lose whole chunks of `chunk` neighbours, by the mean of another policy's scores.

    A chunk that has lost an entry goes on losing, oldest first, until nothing of it is left: so eviction entry by
    entry, as in one-token decode, still ends in whole chunks but for one. What the inner policy pins stays and counts for
    nothing in its chunk. The newest chunk is judged by what there is of it. With `shared` the scores are meaned over the
    heads of a layer first, so all keep the same chunks; else each head keeps its own. The paper also lets neighbouring
    layers share their chunks; here they do not.
    """

    policy: Policy = SnapKV()
    chunk: int = 10
    shared: bool = False

    def __post_init__(self):
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk}; give 1 or more tokens")

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs

    def observe(self, view: View, stats: Stats) -> Stats:
        return self.policy.observe(view, stats)

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        scores = self.policy.score(view, stats)
        pinned = scores == torch.inf
        if self.shared:
            pinned = view.mean_over_layer(pinned.float()) > 0
            scores = view.mean_over_layer(scores.masked_fill(pinned, 0))
        chunk = view.positions // self.chunk
        chunks = int(chunk.max()) + 1
        count = lambda x: x.new_zeros(len(x), chunks).scatter_add(1, chunk, x)  # noqa: E731
        free = (~pinned).to(scores)
        mean = count(scores.masked_fill(pinned, 0)) / count(free).clamp(min=1)
        first = torch.arange(chunks, device=chunk.device) * self.chunk
        arrived = (view.positions.amax(-1, keepdim=True) + 1 - first).clamp(max=self.chunk)
        mean = mean.masked_fill(count(torch.ones_like(chunk)) < arrived, -torch.inf)
        return mean.gather(1, chunk).masked_fill(pinned, torch.inf)


@dataclass(frozen=True)
class CriticalKV(Policy):
    """CriticalKV (arXiv:2502.03805): half the budget by another policy's scores, the rest by scores times |W_O v|.

    The best `share` of the budget by the inner scores are pinned. The rest goes by (score + `epsilon`) times the L1 norm
    of what the value adds to the layer's output, meaned over the query heads. Both stages are decided anew at every
    eviction, in prefill chunks and at one-token decode alike. The scores must be weights, not negative; it raises
    ValueError otherwise.
    """

    policy: Policy = SnapKV()
    share: float = 0.5
    epsilon: float = 1e-4

    def __post_init__(self):
        if not 0 <= self.share <= 1:
            raise ValueError(f"share={self.share}; give a share of the budget from 0 to 1")
        if not self.epsilon >= 0:
            raise ValueError(f"epsilon={self.epsilon}; give 0 or more")

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs | {"output_projection"}

    def observe(self, view: View, stats: Stats) -> Stats:
        norms = remembered(view, stats.get("norm"), view.new_output_norms)
        return around(self.policy.observe(view, inside(stats)), norm=norms)

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        scores = self.policy.score(view, inside(stats))
        weighted = _weighted(self, scores, stats["norm"], self.epsilon)
        return weighted.masked_fill(_best(scores, view.positions, (view.budget * self.share).long()), torch.inf)


@dataclass(frozen=True)
class ValueWeighted(Policy):
    """Value-aware pruning (arXiv:2406.12335): another policy's scores times the norm of the value, L1 in the paper.

    `order` chooses the L1 or the L2 norm, remembered as each entry arrives. The values of the first tokens are small
    though they are much attended to, so the paper keeps these apart: `Pinned(ValueWeighted(), sinks=...)` does. The same
    in prefill chunks and at one-token decode. The scores must be weights, not negative; it raises ValueError otherwise.
    """

    policy: Policy = H2O()
    order: Literal[1, 2] = 1

    def __post_init__(self):
        if self.order not in (1, 2):
            raise ValueError(f"order={self.order!r}; give 1 or 2")

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs

    def observe(self, view: View, stats: Stats) -> Stats:
        arrived = torch.linalg.vector_norm(view.new_values, self.order, dim=-1, dtype=torch.float32)
        norms = remembered(view, stats.get("norm"), arrived)
        return around(self.policy.observe(view, inside(stats)), norm=norms)

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return _weighted(self, self.policy.score(view, inside(stats)), stats["norm"])


@dataclass(frozen=True)
class Pinned(Policy):
    """Another policy's scores, with the first `sinks` tokens and the `recent` newest ones pinned, at every call alike."""

    policy: Policy = KeyNorm()
    sinks: int = 4
    recent: int = 8

    def __post_init__(self):
        for name in ("sinks", "recent"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}; give 0 or more")

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs

    def observe(self, view: View, stats: Stats) -> Stats:
        return self.policy.observe(view, stats)

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        held = (view.positions < self.sinks) | (view.age < self.recent)
        return self.policy.score(view, stats).masked_fill(held, torch.inf)


def _weighted(wrapper: Policy, scores: Tensor, weight: Tensor, epsilon: float = 0.0) -> Float[Tensor, "heads n"]:
    """(scores + epsilon) times the weight; what is infinite stays. Raises ValueError for a negative score."""
    finite = scores.isfinite()
    if scores.amin() < 0 and ((scores < 0) & finite).any():
        raise ValueError(
            f"{wrapper!r} multiplies scores, and some are negative; wrap a policy that scores by attention"
        )
    return torch.where(finite, (scores + epsilon) * weight, scores)


def _best(
    scores: Float[Tensor, "heads n"], positions: Int[Tensor, "heads n"], count: Int[Tensor, " heads"]
) -> Bool[Tensor, "heads n"]:
    """The `count` best of each head; of equals those of larger position."""
    n, (fewest, most) = scores.shape[-1], count.aminmax()
    if 0 < fewest == most <= n:  # no ranking, if all heads have as many and nobody shares the last place
        best = scores >= scores.kthvalue(n - int(most) + 1, dim=-1, keepdim=True).values
        if (best.sum(-1) == count).all():
            return best
    newest_first = positions.argsort(dim=-1, descending=True)
    best_first = newest_first.gather(-1, scores.gather(-1, newest_first).argsort(dim=-1, descending=True, stable=True))
    return best_first.argsort(dim=-1) < count[:, None]
