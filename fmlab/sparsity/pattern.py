"""The base of every pattern: queries and keys in, a choice of blocks out; and patterns joined by | and &."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from numbers import Integral

from jaxtyping import Float
from torch import Tensor

from .choice import BlockChoice
from .grid import Grid


class Pattern(ABC):
    """A frozen dataclass with one method, `blocks`. `a | b` and `a & b` are patterns too.

    What a pattern lets a query see is rounded outwards to whole blocks. One that looks at queries and keys takes attention
    to be the softmax of q·k / sqrt(d); for a model that scales otherwise give it `rescaled` queries.
    """

    @abstractmethod
    def blocks(
        self, q: Float[Tensor, "batch heads n d"], k: Float[Tensor, "batch kv_heads m d"], block: int = 64
    ) -> BlockChoice:
        """The choice for these queries over these keys, the last query at the last key."""

    def __or__(self, other: "Pattern") -> "Union":
        return Union(self, other) if isinstance(other, Pattern) else NotImplemented

    def __and__(self, other: "Pattern") -> "Intersection":
        return Intersection(self, other) if isinstance(other, Pattern) else NotImplemented


@dataclass(frozen=True)
class Union(Pattern):
    """What either pattern chooses."""

    one: Pattern
    other: Pattern

    def blocks(
        self, q: Float[Tensor, "batch heads n d"], k: Float[Tensor, "batch kv_heads m d"], block: int = 64
    ) -> BlockChoice:
        return self.one.blocks(q, k, block) | self.other.blocks(q, k, block)


@dataclass(frozen=True)
class Intersection(Pattern):
    """What both patterns choose."""

    one: Pattern
    other: Pattern

    def blocks(
        self, q: Float[Tensor, "batch heads n d"], k: Float[Tensor, "batch kv_heads m d"], block: int = 64
    ) -> BlockChoice:
        return self.one.blocks(q, k, block) & self.other.blocks(q, k, block)


def grid_of(q: Float[Tensor, "_ _ _ _"], k: Float[Tensor, "_ _ _ _"], block: int) -> Grid:
    """The grid of these queries and keys.

    Raises ValueError for tensors that are not 4-D, where batch, head dimension or data type differ, and where query heads
    are no multiple of the KV heads.
    """
    for name, x in (("queries", q), ("keys", k)):
        if x.ndim != 4:
            raise ValueError(
                f"{name} of shape {tuple(x.shape)}; give (batch, heads, tokens, d), for one sample {name}[None]"
            )
    if q.dtype != k.dtype:
        raise ValueError(f"queries are {q.dtype} and keys {k.dtype}; give both in one data type")
    (batch, heads, n, d), (others, kv_heads, m, width) = q.shape, k.shape
    if batch != others or d != width:
        raise ValueError(f"queries {tuple(q.shape)} and keys {tuple(k.shape)} differ in batch or in head dimension")
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(f"{heads} query heads over {kv_heads} KV heads; give a multiple of the KV heads")
    return Grid(n, m, block, q.device)


def rescaled(q: Float[Tensor, "batch heads n d"], scale: float) -> Float[Tensor, "batch heads n d"]:
    """The queries whose q·k / sqrt(d) is `scale` times q·k: what a pattern is given for attention of that scale."""
    factor = scale * math.sqrt(q.shape[-1])
    return q if math.isclose(factor, 1) else q * factor


def at_least(name: str, value: object, least: int) -> None:
    """Raises ValueError for what is no whole number, and a count below `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name}={value!r} is no whole number; give {least} or more")
    if value < least:
        raise ValueError(f"{name}={value}; give {least} or more")
