"""Policies that tell apart heads or layers which look far back from those that need but sinks and the newest."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..core import BudgetError, Policy, Stats, View
from .attention import SnapKV
from .nesting import around, inside
from .recency import SinkWindow

LENGTH = 500  # distances over which the area is taken


@dataclass(frozen=True)
class DuoAttention(Policy):
    """Retrieval and streaming heads (after arXiv:2410.10819), told apart without training by what they look at.

    Of the heads of a layer the `streaming` share that looks least far back, rounded down, keep sinks and the newest;
    the others are left to `policy`. The paper learns by gradients how much a head's output needs the whole cache. Here
    either `by="mass"`: the attention of the last `window` queries that falls on neither the first `sinks` nor the
    `recent` newest entries; or `by="area"`: the area under the cumulated attention of the mean query to the mean key at
    each of the last 500 distances, both before RoPE, which asks how far the head looks by position alone.

    That is measured for as long as nothing has been evicted, calls of m < window queries moving it by m / window, and
    fixed from then on: at one-token decode, and in later prefill chunks, what was evicted can no longer be looked at. The
    paper gives streaming heads less memory; here each head has its budget, and an allocation may make them differ. A budget
    below sinks + recent raises BudgetError: by mass, nothing would ever look farther. A `policy` that averages over the
    heads of a layer, as TOVA does, cannot be split by heads.
    """

    policy: Policy = SnapKV()
    streaming: float = 0.5
    by: Literal["mass", "area"] = "mass"
    sinks: int = 4
    recent: int = 24
    window: int = 32

    def __post_init__(self):
        if not 0 <= self.streaming <= 1:
            raise ValueError(f"streaming={self.streaming}; give a share of the heads from 0 to 1")
        if self.by not in ("mass", "area"):
            raise ValueError(f"by={self.by!r}; give 'mass' or 'area'")
        _check(self)

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs | ({"pre_rope"} if self.by == "area" else frozenset())

    def observe(self, view: View, stats: Stats) -> Stats:
        measure = _area if self.by == "area" else lambda view: _beyond(view, self)
        far = _measured(view, stats, "far", measure, self.window)
        if _everything_is_held(view):  # and so all heads of a layer are in view
            streams = self._least(view, far[:, 0]).to(far)[:, None]
        else:
            streams = stats["streams"].amax(-1, keepdim=True)
        return around(self.policy.observe(view, inside(stats)), far=far, streams=streams.repeat(1, far.shape[1]))

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return _switched(self, view, stats, stats["streams"][:, 0] > 0)

    def _least(self, view: View, far: Float[Tensor, " heads"]) -> Bool[Tensor, " heads"]:
        """Which heads are among those of their layer that look least far back."""
        alike = (view.sequence[:, None] == view.sequence) & (view.layer[:, None] == view.layer)
        nearer = (far < far[:, None]) | ((far == far[:, None]) & (view.head < view.head[:, None]))
        return (alike & nearer).sum(-1) < (alike.sum(-1) * self.streaming + 1e-6).floor()


@dataclass(frozen=True)
class SimLayerKV(Policy):
    """Lazy layers (SimLayerKV, arXiv:2410.13846): layers that look at sinks and the newest alone keep just these.

    A layer is lazy where, meaned over its heads and the last `window` queries, more than `threshold` of the attention
    falls on the first `sinks` and the `recent` newest entries (1,024 in the paper); the others are left to `policy`, in
    the paper to the full cache. The paper asks the last queries of the prompt, or the first that is generated
    (`window=1`). That is measured for as long as nothing has been evicted, calls of m < window queries moving it by
    m / window, and fixed from then on, at one-token decode and in later prefill chunks. A budget below sinks + recent
    raises BudgetError: nothing would ever look farther.
    """

    policy: Policy = SnapKV()
    threshold: float = 0.9
    sinks: int = 4
    recent: int = 24
    window: int = 32

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold={self.threshold}; give a share of the attention from 0 to 1")
        _check(self)

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs

    def observe(self, view: View, stats: Stats) -> Stats:
        def measure(view: View) -> Tensor:
            return view.mean_over_layer(_beyond(view, self)[:, None].repeat(1, view.positions.shape[1]))[:, 0]

        return around(self.policy.observe(view, inside(stats)), far=_measured(view, stats, "far", measure, self.window))

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return _switched(self, view, stats, 1 - stats["far"][:, 0] > self.threshold)


def _everything_is_held(view: View) -> bool:
    return view.positions.shape[1] == int(view.positions[0].max()) + 1


def _measured(
    view: View, stats: Stats, name: str, measure: Callable[[View], Float[Tensor, " heads"]], window: int
) -> Float[Tensor, "heads n"]:
    """A number of each head as a column: measured while everything is held, then as it was."""
    known = stats[name].amax(-1, keepdim=True) if name in stats else None  # new entries bring a zero
    if _everything_is_held(view):
        now = measure(view)[:, None]
        known = now if known is None else known.lerp(now, min(1, view.new / window))
    return known.repeat(1, view.positions.shape[1])


def _beyond(view: View, policy: "DuoAttention | SimLayerKV") -> Float[Tensor, " heads"]:
    """The share of attention that falls on neither sinks nor newest entries, of each query as it saw them."""
    queries = min(policy.window, view.new)
    behind = view.age[:, None] - torch.arange(queries - 1, -1, -1, device=view.age.device)[:, None]
    near = (view.positions < policy.sinks)[:, None] | (behind < policy.recent)
    return view.attention(last=queries).masked_fill(near, 0).sum(-1).mean(-1)


def _area(view: View) -> Float[Tensor, " heads"]:
    """The area under the cumulated attention of the mean query to the mean key, the farthest first: 1 looks farthest."""
    keys, rope = view.pre_rope_keys.mean(1, keepdim=True), view.rope
    heads, _, d = keys.shape
    queries = view.pre_rope_queries.view(heads, -1, view.new, d).mean(2)
    places = torch.arange(LENGTH, device=keys.device).expand(heads, LENGTH)
    queries = rope.rotate(queries, torch.full_like(places[:, : queries.shape[1]], LENGTH - 1))
    logits = queries @ rope.rotate(keys.expand(heads, LENGTH, d), places).mT * view.scaling
    return logits.softmax(-1).cumsum(-1).mean((1, 2))


def _switched(
    policy: "DuoAttention | SimLayerKV", view: View, stats: Stats, streams: Bool[Tensor, " heads"]
) -> Float[Tensor, "heads n"]:
    """Sinks and the newest where a head streams, else what the inner policy says."""
    if (budget := int(view.budget.min())) < (least := policy.sinks + policy.recent):
        raise BudgetError(f"budget {budget} < {least} = sinks + recent of {policy!r}; raise the budget or lower recent")
    scores = policy.policy.score(view, inside(stats))
    return torch.where(streams[:, None], SinkWindow(policy.sinks).score(view, {}).to(scores), scores)


def _check(policy: "DuoAttention | SimLayerKV") -> None:
    for name, least in {"sinks": 0, "recent": 0, "window": 1}.items():
        if getattr(policy, name) < least:
            raise ValueError(f"{name}={getattr(policy, name)}; give {least} or more")
