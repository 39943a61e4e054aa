"""What attention really looks at, block by block, and the pattern that knows it: the bound of all others."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .choice import BlockChoice
from .grid import Grid
from .pattern import Pattern, grid_of

Queries = Float[Tensor, "batch heads n d"]
Keys = Float[Tensor, "batch kv_heads m d"]
Mass = Float[Tensor, "batch heads rows columns"]


def block_mass(
    q: Queries, k: Keys, block: int = 64, scale: float | None = None
) -> Float[Tensor, "batch heads rows columns"]:
    """The softmax mass of full causal attention on each block, summed over the queries of a block.

    A row sums to its number of queries. One row of blocks is held at a time: tokens x block, not tokens x tokens.
    """
    grid = grid_of(q, k, block)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    queries = q.unflatten(1, (k.shape[1], q.shape[1] // k.shape[1]))
    mass = q.new_zeros(*q.shape[:2], grid.rows, grid.columns)
    for row in range(grid.rows):
        last = int(grid.last[row]) + 1
        columns = -(-last // block)
        some = queries[..., row * block : (row + 1) * block, :] * scale
        scores = (some @ k[:, :, None, :last].transpose(-1, -2)).flatten(1, 2)
        position = torch.arange(last - scores.shape[2], last, device=q.device)[:, None]
        weights = scores.masked_fill_(torch.arange(last, device=q.device) > position, -torch.inf).softmax(-1).sum(2)
        weights = torch.nn.functional.pad(weights, (0, columns * block - last))
        mass[:, :, row, :columns] = weights.unflatten(-1, (columns, block)).sum(-1)
    return mass


@dataclass(frozen=True)
class Oracle(Pattern):
    """The most attention mass that whole blocks can hold at a density: it sees the full attention, and costs as much.

    The own blocks first, then those of most mass for each causal pair, over all heads and queries of a sample, until
    the next would pass `density` of the causal pairs. That is the greedy solution of a knapsack, whose items are small:
    no choice of the same density holds more than one block's mass more. Where the own blocks alone are denser than
    asked, they are the choice.
    """

    density: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density={self.density}; give a share of the causal pairs, above 0 and at most 1")

    def blocks(self, q: Queries, k: Keys, block: int = 64) -> BlockChoice:
        return self.of(block_mass(q, k, block), grid_of(q, k, block))

    def of(self, mass: Mass, grid: Grid) -> BlockChoice:
        """The choice where the mass of every block is known already."""
        order, pairs, _ = _greedy(mass, grid)
        budget = math.floor(self.density * int(grid.pairs.sum()) * mass.shape[1])  # a float would compare in float32
        chosen = torch.zeros_like(order, dtype=torch.bool).scatter_(-1, order, pairs <= budget)
        return BlockChoice.over(grid, mass, (chosen.unflatten(1, mass.shape[1:]) | grid.own) & grid.visible)


def frontier(mass: Mass, grid: Grid) -> tuple[Float[Tensor, "batch steps"], Float[Tensor, "batch steps"]]:
    """Density and mean mass recall of all heads after every block that the Oracle adds, the own blocks first.

    So the line that no choice of whole blocks passes by more than a block's mass. Raises ValueError for no query.
    """
    if grid.n == 0:
        raise ValueError("there is no query, so no mass to recall; give one or more")
    _, pairs, held = _greedy(mass, grid)
    first, every = int(grid.own.sum()) * mass.shape[1] - 1, int(grid.visible.sum()) * mass.shape[1]
    density = pairs[:, first:every] / (int(grid.pairs.sum()) * mass.shape[1])
    return density, held[:, first:every] / (grid.n * mass.shape[1])


def _greedy(mass: Mass, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """The order in which the Oracle takes the blocks of all heads, (batch, blocks), and the causal pairs and the mass
    that it has after each; blocks of the future come last."""
    pairs = grid.pairs.expand(*mass.shape[:2], -1, -1).flatten(1)
    worth = mass.masked_fill(grid.own, torch.inf).flatten(1) / pairs.clamp(min=1)
    worth = worth.masked_fill(~grid.visible.expand(*mass.shape[:2], -1, -1).flatten(1), -1)
    order = worth.argsort(dim=-1, descending=True, stable=True)
    return order, pairs.gather(-1, order).cumsum(-1), mass.flatten(1).gather(-1, order).cumsum(-1)
