"""Policies that look at attention: accumulated (H2O), of the last query (TOVA), of a window of queries (SnapKV)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool1d

from ..core import Policy, Stats, View


@dataclass(frozen=True)
class H2O(Policy):
    """Heavy-hitter oracle (arXiv:2306.14048, algorithm 1): keep what has received most attention so far, and the newest.

    `recent` is the share of the budget that is pinned to the newest entries, a half in the paper; the rest goes to the
    largest sums of attention over all queries, updated at every decode step. A sum favours old entries: they have been
    looked at more often.
    """

    recent: float = 0.5

    def __post_init__(self):
        if not 0 <= self.recent <= 1:
            raise ValueError(f"recent={self.recent}; give a share of the budget from 0 to 1")

    def observe(self, view: View, stats: Stats) -> Stats:
        received = view.received()
        return {"received": stats["received"] + received if "received" in stats else received}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        newest = (view.budget * self.recent).long()
        return torch.where(view.age < newest[:, None], torch.inf, stats["received"])


@dataclass(frozen=True)
class TOVA(Policy):
    """Token omission via attention (arXiv:2401.06104): drop what the last query looks at least.

    The attention is averaged over the heads of a layer, so they all keep the same tokens. The newest is pinned.
    """

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return torch.where(view.age == 0, torch.inf, view.mean_over_layer(view.attention(last=1)[:, 0]))


@dataclass(frozen=True)
class SnapKV(Policy):
    """SnapKV (arXiv:2404.14469): keep what the last `window` queries look at, smoothed over neighbours, and the window.

    The attention of these queries, causal inside the window, is averaged, average-pooled over `kernel` neighbours among
    the entries held before the window (zeros beyond the edge), and the window itself is pinned. The paper scores the
    prompt once. Here every call counts: one of at least `window` queries sets the average anew, as in the paper; one of
    m < window queries moves it by the share m / window. So a one-token decode step moves it by 1 / window, a running
    mean over about `window` steps.
    """

    window: int = 32
    kernel: int = 5

    def __post_init__(self):
        if self.window < 1:
            raise ValueError(f"window={self.window}; give 1 or more queries")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"kernel={self.kernel}; give an odd number of neighbours, 1 for no pooling")

    def observe(self, view: View, stats: Stats) -> Stats:
        queries = min(self.window, view.new)
        share = queries / self.window
        mean = view.attention(last=queries).mean(1)
        return {"looked_at": stats["looked_at"].lerp(mean, share) if "looked_at" in stats else mean * share}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        in_window = view.age < self.window
        prefix = stats["looked_at"].masked_fill(in_window, 0)  # as zeros beyond the edge
        order = view.positions.argsort(-1)
        pooled = avg_pool1d(prefix.gather(-1, order), self.kernel, stride=1, padding=self.kernel // 2)
        return torch.empty_like(pooled).scatter_(-1, order, pooled).masked_fill(in_window, torch.inf)
