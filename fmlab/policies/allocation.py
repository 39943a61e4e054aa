"""How a budget is shared out: alike, in a pyramid over the layers, by a table of layers, or by need among the heads."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..core import Allocation, check_budget


@dataclass(frozen=True)
class Uniform(Allocation):
    """Every head of every layer may hold `budget` entries: what a plain int says."""

    budget: int

    def __post_init__(self):
        check_budget(self.budget)


@dataclass(frozen=True)
class Pyramid(Allocation):
    """PyramidKV (arXiv:2406.02069): much for the first layers, little for the last, linear in between.

    The last layer holds budget / beta entries a head (at least 1), the first 2 * budget less that, so that the average is
    `budget`. Whole numbers: each layer's share is rounded down and what is left over goes to the first layers, one each,
    so the layers together hold exactly their number times `budget`, and no layer holds more than the one before it. A
    layer whose share exceeds the text keeps all of it; the others do not get the rest. The last layers are small: a
    policy that pins more than they hold (SnapKV its window) raises BudgetError.
    """

    budget: int
    beta: int = 20

    def __post_init__(self):
        check_budget(self.budget)
        if not self.beta >= 1:
            raise ValueError(f"beta={self.beta}; give 1 (every layer alike) or more (steeper)")

    def at(self, layer: int, total: int) -> int:
        if total == 1:
            return self.budget
        last = max(1, self.budget // self.beta)
        first, steps = 2 * self.budget - last, total - 1
        shares = [(first * (steps - n) + last * n) // steps for n in range(total)]
        return shares[layer] + (layer < total * self.budget - sum(shares))


@dataclass(frozen=True)
class PerLayer(Allocation):
    """A table: the heads of layer n may hold `budgets[n]` entries each."""

    budgets: tuple[int, ...]

    def __post_init__(self):
        if not isinstance(self.budgets, tuple) or not self.budgets:
            raise TypeError(f"budgets={self.budgets!r}; give a tuple of one int a layer")
        for budget in self.budgets:
            check_budget(budget)

    @property
    def budget(self) -> int:
        """The average over the layers, rounded down."""
        return sum(self.budgets) // len(self.budgets)

    def at(self, layer: int, total: int) -> int:
        if len(self.budgets) != total:
            raise ValueError(f"a table of {len(self.budgets)} budgets for a model of {total} layers; give one a layer")
        return self.budgets[layer]


@dataclass(frozen=True)
class Ada(Allocation):
    """AdaKV (arXiv:2407.11550): the heads of a layer compete for its budget with their scores.

    The `floor` share of the budget is safe for each head; the rest goes to the best scores of the whole layer, ties to
    the head that has fewer so far. So it is only as good as the scores compare from head to head: attention does, and a
    policy that gives every head of a layer the same scores (TOVA, SinkWindow) gets equal shares. The paper shares out
    once, after the prompt; here it is done at every eviction, among what is still held.
    """

    budget: int
    floor: float = 0.2

    def __post_init__(self):
        check_budget(self.budget)
        if not 0 <= self.floor <= 1:
            raise ValueError(f"floor={self.floor}; give a share of the budget from 0 to 1")

    def split(self, scores: Float[Tensor, "heads n"], layer: int, total: int) -> Int[Tensor, " heads"]:
        heads = len(scores)
        ranked = scores.sort(-1, descending=True).values
        safe = ranked[:, : max(1, int(self.floor * self.budget))]
        safe.masked_fill_(safe > -torch.inf, torch.inf)
        best = ranked.T.flatten().argsort(descending=True, stable=True)  # rank by rank, so ties are shared evenly
        return (best[: heads * self.budget] % heads).bincount(minlength=heads)
