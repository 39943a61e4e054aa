"""Policies that look at the keys themselves."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..core import Policy, Stats, View


@dataclass(frozen=True)
class KeyNorm(Policy):
    """Keep the keys of small norm (arXiv:2406.11430): a small L2 norm goes with high attention later on.

    No entry is pinned: a newcomer with a large norm is the first to go. The paper leaves the first two layers alone;
    here every layer is treated alike.
    """

    def observe(self, view: View, stats: Stats) -> Stats:
        if "norm" not in stats:
            return {"norm": torch.linalg.vector_norm(view.keys, dim=-1, dtype=torch.float32)}
        arrived = torch.linalg.vector_norm(view.new_keys, dim=-1, dtype=torch.float32)
        return {"norm": view.fill_new(stats["norm"], arrived)}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return -stats["norm"]
