"""Policies that look at positions alone: sliding window, sinks and window, and the random floor."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Policy, Stats, View


@dataclass(frozen=True)
class SlidingWindow(Policy):
    """Keep the newest entries. What a language model loses without its first tokens is the sink effect."""

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return -view.age.float()


@dataclass(frozen=True)
class SinkWindow(Policy):
    """StreamingLLM (arXiv:2309.17453): keep the first `sinks` tokens, on which attention rests, and the newest.

    Original positions are kept (the paper re-numbers them within the cache). The sinks and the newest entry are pinned.
    """

    sinks: int = 4

    def __post_init__(self):
        if self.sinks < 0:
            raise ValueError(f"sinks={self.sinks}; give 0 or more")

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return (
            view.age.double().reciprocal().masked_fill_(view.positions < self.sinks, torch.inf)
        )  # 1 / 0 pins the newest


@dataclass(frozen=True)
class Random(Policy):
    """The floor: every token draws a number at birth, other in each layer and head, and keeps it.

    So the tokens held are a uniform sample of all that were seen, at every step. The draw does not depend on the
    place in the batch: a sequence is treated as it would be alone.
    """

    seed: int = 0

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        row = _mix(_mix(torch.full_like(view.layer, self.seed), view.layer), view.head)
        return (_mix(row[:, None], view.positions) & 0xFFFFFF).float() / (1 << 24)


def _mix(state: Tensor, value: Tensor) -> Tensor:
    """Stir `value` into a 32-bit `state`: multiply, xor and shift, as integer hashes do, within int64."""
    x = (state * 0x9E3779B1 + value + 0x85EBCA6B) & 0xFFFFFFFF
    for factor, shift in ((0x45D9F3B, 16), (0x119DE1F3, 15)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
