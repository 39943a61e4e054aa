"""Policies that estimate what queries to come will look at."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Policy, Stats, View
from .nesting import remembered


@dataclass(frozen=True)
class ExpectedAttention(Policy):
    """Expected attention (arXiv:2510.00636): what queries drawn like those of the text would pay, times the value's norm.

    Queries before RoPE are taken for a Gaussian, of mean m and covariance S; with R the mean rotation of the next
    `horizon` places, the logit of a key k is (Rm).k s + k'RSR'k s^2 / 2, s the model's scaling. Its softmax over the
    entries, meaned over the query heads, plus `epsilon`, is multiplied by the L2 norm of the value. `covariance` and
    `value_norms` switch these parts off, as the paper's ablations do. The first `sinks` tokens are pinned and left out
    of the statistics and of the softmax.

    Columns belong to entries, so no statistics of queries outlive their call; what they foretold does. A call of at least
    `window` queries scores every entry anew; one of m < window moves what was foretold by m / window and gives its own
    entries what it foretells. So at one-token decode each query, with no covariance, moves it by 1 / window.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"pre_rope"})

    horizon: int = 512
    sinks: int = 4
    covariance: bool = True
    value_norms: bool = True
    epsilon: float = 0.0
    window: int = 32

    def __post_init__(self):
        for name, least in {"horizon": 1, "sinks": 0, "epsilon": 0, "window": 1}.items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name}={getattr(self, name)}; give {least} or more")

    def observe(self, view: View, stats: Stats) -> Stats:
        expected = self._expected(view)
        if "expected" in stats:
            moved = stats["expected"].lerp(expected, min(1, view.new / self.window))
            expected = torch.where(view.age < view.new, expected, moved)
        if not self.value_norms:
            return {"expected": expected}
        norms = torch.linalg.vector_norm(view.new_values, dim=-1, dtype=torch.float32)
        return {"expected": expected, "norm": remembered(view, stats.get("norm"), norms)}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        score = (stats["expected"] + self.epsilon) * stats["norm"] if self.value_norms else stats["expected"]
        return torch.where(view.positions < self.sinks, torch.inf, score)

    def _expected(self, view: View) -> Float[Tensor, "heads n"]:
        keys = view.keys.float()
        heads, _, d = keys.shape
        following = view.positions[:1].amax(-1) + 1  # the place of the next token, the same for all heads
        sinks = max(0, min(self.sinks - int(following) + view.new, view.new - 1))
        queries = view.pre_rope_queries.view(heads, -1, view.new, d)[:, :, sinks:]
        turn = view.rope.mean(following, self.horizon, d)[0].to(keys)
        mean = queries.mean(2)
        logits = (mean @ turn.T * view.scaling) @ keys.mT
        if self.covariance and queries.shape[2] > 1:
            for group in range(queries.shape[1]):  # one at a time: each is as large as the keys
                apart = (queries[:, group] - mean[:, group, None]) @ turn.T * view.scaling
                logits[:, group] += (keys @ (apart.mT @ apart) * keys).sum(-1) / (2 * apart.shape[1])
        logits = logits.masked_fill((view.positions < self.sinks)[:, None], torch.finfo(logits.dtype).min)
        return logits.softmax(-1).mean(1)
