"""Policies that look at the keys and values themselves: norms, directions, leverage, what the next tokens make of them."""

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from ..core import BudgetError, Policy, Stats, View
from .nesting import remembered

TINY = 1e-12  # instead of nothing, where something is divided by it
SOUND = 1e-3  # a smaller ridge leaves float32 too little to tell a leverage by


@dataclass(frozen=True)
class KeyNorm(Policy):
    """Keep the keys of small norm (arXiv:2406.11430): a small L2 norm goes with high attention later on.

    No entry is pinned: a newcomer with a large norm is the first to go. The paper leaves the first two layers alone;
    here every layer is treated alike.
    """

    def observe(self, view: View, stats: Stats) -> Stats:
        return {"norm": _key_norms(view, stats)}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        return -stats["norm"]


@dataclass(frozen=True)
class KeyDiff(Policy):
    """KeyDiff (arXiv:2504.15364): keep the keys that point away from the others, by the cosine with their anchor.

    The anchor is the mean of the keys' directions, or of the keys as they are with `directions=False`. It is that of the
    entries held, computed anew at every eviction, in prefill chunks and at one-token decode alike. Nothing is pinned.
    """

    directions: bool = True

    def observe(self, view: View, stats: Stats) -> Stats:
        return {"norm": _key_norms(view, stats)}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        keys, norm = _wide(view.keys), stats["norm"].clamp(min=TINY)
        weight = 1 / norm if self.directions else torch.ones_like(norm)
        anchor = normalize(weight[:, None] @ keys, dim=-1)  # of the mean only the direction counts
        return -(keys @ anchor.mT)[..., 0] / norm


@dataclass(frozen=True)
class LagKV(Policy):
    """LagKV (arXiv:2504.04704): keep what differs from the tokens that follow, by its rank within its block.

    Behind the first `sinks` tokens the text falls into blocks of `lag` (128 in the paper). Once the next block is
    complete, each channel of a key is scaled by the least and the greatest of that block; the standard deviation over
    the channels goes through a softmax over the block; the same for values, and the mean of both ranks the entries of the
    block. All blocks lose their last ranks first, so each keeps an equal share, as in the paper. The sinks and all that
    is not ranked yet, fewer than 2 * lag tokens, are pinned; a budget below sinks + 2 * lag raises BudgetError. At
    one-token decode a block is ranked at the step that completes the next one, by what is then held of both.
    """

    sinks: int = 4
    lag: int = 12

    def __post_init__(self):
        _check_sinks(self.sinks)
        if self.lag < 1:
            raise ValueError(f"lag={self.lag}; give 1 or more tokens")

    def observe(self, view: View, stats: Stats) -> Stats:
        rank = stats.get("rank", torch.zeros(view.positions.shape, device=view.positions.device))
        seen = int(view.positions[0].max()) + 1
        before, full = ((end - self.sinks) // self.lag for end in (seen - view.new, seen))
        if full < 2 or full == before:
            return {"rank": rank}
        ranked = max(0, before - 1)  # so many blocks have been: only what stands behind them is looked at
        block = (view.positions - self.sinks).div(self.lag, rounding_mode="floor").clamp(min=ranked - 1) - (ranked - 1)
        behind = block.topk(int((block > 0).sum(-1).max())).indices
        block, blocks = block.gather(-1, behind), full - ranked  # 0: the sinks and what is ranked
        unranked = (x.take_along_dim(behind[..., None], 1) for x in (view.keys, view.values))
        worth = sum(self._distinct(_wide(x), block, blocks + 2) for x in unranked)
        due = (rank.gather(-1, behind) == 0) & (block > 0) & (block < blocks)
        now = torch.where(due, _rank_within(block, worth, blocks + 2), rank.gather(-1, behind))
        return {"rank": rank.scatter(-1, behind, now)}

    def _distinct(self, x: Tensor, block: Tensor, blocks: int) -> Tensor:
        """The softmax over each block of the deviation of its entries, scaled by the block that follows."""
        index = block[..., None].expand_as(x)
        nothing = x.new_zeros(len(x), blocks + 1, x.shape[-1])
        low, high = (nothing.scatter_reduce(1, index, x, way, include_self=False) for way in ("amin", "amax"))
        low, high = (edge.gather(1, index + 1) for edge in (low, high))
        deviation = ((x - low) / (high - low).clamp(min=TINY)).std(-1)
        greatest = deviation.new_zeros(len(x), blocks).scatter_reduce(1, block, deviation, "amax")
        weight = (deviation - greatest.gather(1, block)).exp()
        total = torch.zeros_like(greatest).scatter_add(1, block, weight)
        return weight / total.gather(1, block)

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        least = self.sinks + 2 * self.lag
        if (budget := int(view.budget.min())) < least:
            raise BudgetError(f"budget {budget} < {least} = sinks + 2 * lag of {self!r}; raise the budget or lower lag")
        return torch.where(stats["rank"] == 0, torch.inf, -stats["rank"])


@dataclass(frozen=True)
class LeverageScore(Policy):
    """The leverage of Compactor (arXiv:2507.08143): keep the keys that the others cannot stand for.

    x'(X'X + ridge)^-1 x of the keys before RoPE, less their mean, times a seeded Gaussian matrix of `sketch` columns (the
    same for every head; none where the keys have no more dimensions than that: then the leverage is exact). `ridge` is
    a share of the mean eigenvalue of X'X; without it all leverages are 1 where fewer keys than dimensions are held. It
    is that of the entries held, computed anew at every eviction, in prefill chunks and at one-token decode alike.
    Nothing is pinned. The z-score of the paper changes no order within a head and is left out.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"pre_rope"})

    sketch: int = 48
    ridge: float = 0.01
    seed: int = 0

    def __post_init__(self):
        if self.sketch < 1:
            raise ValueError(f"sketch={self.sketch}; give 1 or more columns")
        if not self.ridge > 0:
            raise ValueError(f"ridge={self.ridge}; give a number above 0")

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        x = view.pre_rope_keys if self.ridge > SOUND else view.pre_rope_keys.double()
        if self.sketch < x.shape[-1]:
            x = x @ _gaussian(x.shape[-1], self.sketch, self.seed).to(x)
        x = x - x.mean(1, keepdim=True)
        fewer = x.shape[1] < x.shape[-1]  # entries than columns: then the smaller Gram matrix says the same
        gram = x @ x.mT if fewer else x.mT @ x
        ridge = (self.ridge * x.square().sum((1, 2)) / x.shape[-1]).clamp(min=TINY)[:, None]
        gram.diagonal(dim1=1, dim2=2).add_(ridge)
        root = torch.linalg.cholesky(gram)
        one = torch.eye(root.shape[-1], dtype=x.dtype, device=x.device)
        inverse = torch.linalg.solve_triangular(root, one.expand_as(root), upper=False)
        if fewer:
            return 1 - ridge * inverse.square().sum(1)
        return torch.linalg.vector_norm(x @ inverse.mT, dim=-1).square()


@dataclass(frozen=True)
class CUR(Policy):
    """CurDKV (arXiv:2509.15038): keep large keys with large values, by their share of the squared norm of their block.

    Blocks are of `block` places in the text; an entry's share is that among the entries held of its block, so a block
    that has lost many is spared, and a newcomer at one-token decode, alone in its block, stays until others join it.
    `leverage` says which shares count: their product, their mean, that of the key or of the value. With `sketch` > 0 the
    norms are those of a seeded Gaussian projection to so many dimensions, as in the paper, else exact. The sinks are
    pinned.
    """

    leverage: Literal["product", "mean", "key", "value"] = "product"
    block: int = 16
    sinks: int = 4
    sketch: int = 0
    seed: int = 0

    def __post_init__(self):
        _check_sinks(self.sinks)
        if self.leverage not in ("product", "mean", "key", "value"):
            raise ValueError(f"leverage={self.leverage!r}; give 'product', 'mean', 'key' or 'value'")
        if self.block < 1:
            raise ValueError(f"block={self.block}; give 1 or more places")
        if self.sketch < 0:
            raise ValueError(f"sketch={self.sketch}; give 0 for exact norms, or a number of dimensions")

    def observe(self, view: View, stats: Stats) -> Stats:
        both = {"key": _wide(view.new_keys), "value": _wide(view.new_values)}
        if self.sketch:
            both = {name: x @ _gaussian(x.shape[-1], self.sketch, self.seed).to(x) for name, x in both.items()}
        return {name: remembered(view, stats.get(name), x.square().sum(-1)) for name, x in both.items()}

    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        key, value = (self._share(view, stats[name]) for name in ("key", "value"))
        score = {"product": key * value, "mean": (key + value) / 2, "key": key, "value": value}[self.leverage]
        return torch.where(view.positions < self.sinks, torch.inf, score)

    def _share(self, view: View, norms: Tensor) -> Tensor:
        block = view.positions // self.block
        total = norms.new_zeros(len(norms), int(block.max()) + 1).scatter_add(1, block, norms)
        return norms / total.gather(1, block).clamp(min=TINY)


def _key_norms(view: View, stats: Stats) -> Float[Tensor, "heads n"]:
    """The L2 norms of the keys, each taken once, as it came."""
    return remembered(view, stats.get("norm"), torch.linalg.vector_norm(_wide(view.new_keys), dim=-1))


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x.float() if x.dtype.itemsize < 4 else x


def _rank_within(block: Tensor, worth: Tensor, blocks: int) -> Tensor:
    """The rank of each entry within its block, 1 for the greatest worth, (heads, n)."""
    best_first = worth.argsort(dim=-1, descending=True)
    order = best_first.gather(-1, block.gather(-1, best_first).argsort(dim=-1, stable=True))  # block by block
    count = block.new_zeros(len(block), blocks).scatter_add(1, block, torch.ones_like(block))
    start = (count.cumsum(-1) - count).gather(-1, block.gather(-1, order))
    rank = torch.arange(block.shape[-1], device=block.device) - start + 1
    return torch.empty_like(worth).scatter_(-1, order, rank.to(worth.dtype))


@lru_cache
def _gaussian(rows: int, columns: int, seed: int) -> Tensor:
    """(rows, columns) of variance 1 / columns, drawn alike on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) / columns**0.5


def _check_sinks(sinks: int) -> None:
    if sinks < 0:
        raise ValueError(f"sinks={sinks}; give 0 or more")
