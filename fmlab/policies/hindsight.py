"""A policy that knows what is to come: what an online policy is measured against."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from ..core import Policy, Stats, View


@dataclass(frozen=True)
class Clairvoyant(Policy):
    """Greedy with hindsight: drop what the later queries of the full cache will pay least to. For replays only.

    A policy, not the optimum: dropping the least by total is short-sighted where a cheap entry is wanted soon and a dear
    one late, for what is dropped late has been of use until then. `fm.oracle` is exact.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"future"})

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return view.future
