"""Why a token was evicted: its score beside the cut, the lowest score that was kept, in every head of a replay."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .core import Policy, Stats, select
from .rerun import replay
from .trace import Trace
from .view import View


@dataclass(frozen=True, eq=False)
class Why:
    """How one token went, head by head; every tensor is (layers, kv_heads).

    `step`: the query after which it was evicted, -1 where it is held to the end. At that step `score` is its own and
    `cut` the lowest that was kept; equal scores go to the larger position. `rank` counts from 1, the best, among the
    `held` entries that competed, of which `kept` stayed, so an evicted token has rank > kept.
    """

    position: int
    token: str
    layers: tuple[int, ...]
    step: Int[Tensor, "layers kv_heads"]
    score: Float[Tensor, "layers kv_heads"]
    cut: Float[Tensor, "layers kv_heads"]
    rank: Int[Tensor, "layers kv_heads"]
    held: Int[Tensor, "layers kv_heads"]
    kept: Int[Tensor, "layers kv_heads"]

    def rows(self) -> list[dict]:
        """One row a head that evicted it: layer, head, step, score, cut, rank, held, kept."""
        names = ("step", "score", "cut", "rank", "held", "kept")
        return [
            {"layer": layer, "head": head} | {name: getattr(self, name)[at, head].item() for name in names}
            for at, layer in enumerate(self.layers)
            for head in range(self.step.shape[1])
            if self.step[at, head] >= 0
        ]

    def __repr__(self) -> str:
        evicted, heads = int((self.step >= 0).sum()), self.step.numel()
        return f"Why(position {self.position} {self.token!r}: evicted in {evicted} of {heads} heads)"


class _Answered(Exception):
    """Every head has evicted the token: the rest of the replay can tell nothing more."""


def why(
    trace: Trace,
    policy: Policy,
    budget: int,
    position: int,
    prefill: int = 1,
    progress: Callable[[int], None] | None = None,
) -> Why:
    """Replay a policy until every head has evicted the token at `position`, and tell by what score each did.

    A policy is pure, so the score that it gives when asked again is the one by which `select` chose. An entry behind the
    model's own sliding window scores -inf whatever the policy says. Raises ValueError for a position outside the trace.
    """
    if not 0 <= position < len(trace):
        raise ValueError(f"position {position} of a trace of {len(trace)} tokens; give 0 to {len(trace) - 1}")
    shape = (len(trace.layers), trace.kv_heads)
    step, rank, held, kept = (torch.full((shape[0] * shape[1],), -1) for _ in range(4))
    score, cut = (torch.full((len(step),), torch.nan, dtype=torch.float64) for _ in range(2))

    def watch(view: View, stats: Stats) -> None:
        here = view.positions == position
        if not here.any():
            return
        scores = scores_of(policy, view, stats)
        keep = select(scores, budget, view.positions)
        lost = (here & ~keep).any(-1)
        if not lost.any():
            return
        mine = scores.masked_fill(~here, -torch.inf).amax(-1, keepdim=True)
        better = (scores > mine) | ((scores == mine) & (view.positions >= position))
        step[lost] = view.positions.amax(-1)[lost]
        score[lost] = mine[lost].squeeze(-1).double()
        cut[lost] = scores.masked_fill(~keep, torch.inf).amin(-1)[lost].double()
        rank[lost] = better.sum(-1)[lost]
        held[lost], kept[lost] = scores.shape[-1], keep.sum(-1)[lost]
        if (step >= 0).all():
            raise _Answered

    try:
        replay(trace, policy, budget, prefill, progress, watch)
    except _Answered:
        pass
    found = (part.view(shape) for part in (step, score, cut, rank, held, kept))
    return Why(position, trace.tokens[position], trace.layers, *found)


def scores_of(policy: Policy, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
    """What a host lets compete: the policy's scores, -inf for what the model's own window hides from later queries."""
    scores = policy.score(view, stats)
    if view.window is not None:
        scores = scores.masked_fill(view.age >= view.window[:, None] - 1, -torch.inf)
    return scores
