"""A whole grid as a workload: policies and budgets over one text after another, how well each goes on, and its replay."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle

import torch
from torch import Tensor

from ..core import Policy, Stats
from ..forks import Cell, Prefill, prefill
from ..policies import H2O, KeyNorm, SinkWindow, SnapKV
from ..view import View
from . import batched_forks, lazy_evaluation, real, shared_prefill, vectorised_replay, windowed_attention
from .portions import piece
from .whole import Setting, Workload

CONTEXT = 256  # tokens
FURTHER = 8  # tokens that are scored behind it, one a call
REPLAYED = 128  # tokens of the replay
CELLS: tuple[Cell, ...] = tuple(
    (policy, budget) for policy in (SinkWindow(), KeyNorm(), H2O(), SnapKV()) for budget in (64, 128)
)
SWITCHES = (
    shared_prefill.PAIR,
    batched_forks.PAIR,
    windowed_attention.PAIR,
    lazy_evaluation.PAIR,
    vectorised_replay.PAIR,
)


@dataclass(frozen=True)
class AllWeights(Policy):
    """A policy of the last queries beside which the attention weights of every query are computed."""

    listed = False

    policy: Policy

    @property
    def needs(self) -> frozenset[str]:
        return self.policy.needs

    def observe(self, view: View, stats: Stats) -> Stats:
        piece(windowed_attention.PAIR.name, view.attention)(last=view.new)
        return self.policy.observe(view, stats)

    def score(self, view: View, stats: Stats) -> Tensor:
        return self.policy.score(view, stats)


def grid(texts: int = 6, tokens: int = CONTEXT) -> Workload:
    """Eight cells over so many texts, one step a text: the log-probability that each cell gives to what follows, and the
    replay of H2O over four recorded layers.

    A batch rounds otherwise than a single sequence, and where two entries score alike to the last bits that decides which
    one goes: of six texts one cell's log-probability moved by 0.016 of 4.96. Hence the tolerance.
    """
    return Workload("grid", tuple(pair.name for pair in SWITCHES), partial(_texts, texts, tokens), tolerance=5e-2)


def _texts(texts: int, tokens: int, on: Setting) -> Iterator[object]:
    replay = vectorised_replay.PAIR.optimised if vectorised_replay.PAIR.name in on else vectorised_replay.PAIR.baseline
    replay = piece(vectorised_replay.PAIR.name, replay)
    for seed in range(texts):
        ids = real.text_ids(tokens + FURTHER, seed)
        context, further = ids[:tokens], ids[tokens:]
        trace, budget = vectorised_replay.inputs(min(REPLAYED, tokens), seed)
        logits = _logits(context, further, [(_shown(policy, on), budget) for policy, budget in CELLS], on)
        scored = logits[:, :-1].log_softmax(-1).gather(-1, further[1:].expand(len(CELLS), -1)[..., None])
        yield {"log_probability": scored.mean((1, 2)), "expiry": replay(trace, budget)}


def _shown(policy: Policy, on: Setting) -> Policy:
    """The policy, made to compute what it would not ask for where the switches are off: weights by one, all else by the other."""
    if windowed_attention.PAIR.name not in on and isinstance(policy, SnapKV):  # H2O looks at every query anyway
        policy = AllWeights(policy)
    return policy if lazy_evaluation.PAIR.name in on else lazy_evaluation.Everything(policy, attention=False)


def _logits(context: Tensor, further: Tensor, cells: Sequence[Cell], on: Setting) -> Tensor:
    read = piece(shared_prefill.PAIR.name, prefill)
    reads = [read(real.lm(), context) for _ in (cells[:1] if shared_prefill.PAIR.name in on else cells)]
    return piece(batched_forks.PAIR.name, _decoded)(reads, further, cells, batched_forks.PAIR.name in on)


def _decoded(reads: Sequence[Prefill], further: Tensor, cells: Sequence[Cell], batched: bool) -> Tensor:
    if batched:
        return reads[-1].fork(cells).logits(further, chunk=1)
    alone = [read.fork([cell]).logits(further, chunk=1) for cell, read in zip(cells, cycle(reads), strict=False)]
    return torch.cat(alone)
