"""Keys and values in 8 or 4 bits, each group of dimensions with a scale of its own, under any policy."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

GROUP = 32  # dimensions that share a scale; a head whose dimension is no multiple of it has one scale


@dataclass(frozen=True)
class Quantised:
    """Uniform quantisation of each vector by itself: a group of 32 dimensions is stored as its least value, a step and
    whole numbers of steps, rounded to nearest; the greatest error is half a step.

    As KIVI (arXiv:2402.02750) stores values; its keys, which it groups over tokens, are grouped over dimensions here, so
    that a token can be evicted alone. Least value and step keep the model's precision.
    """

    bits: int = 8

    def __post_init__(self):
        if self.bits not in (8, 4):
            raise ValueError(f"bits={self.bits}; give 8 or 4, or None to store what the model computes")

    def pack(self, vectors: Mapping[str, Float[Tensor, "heads n d"]]) -> dict[str, Tensor]:
        """Columns to store: for each name the codes, uint8, and the scales, (heads, n, 2 x groups)."""
        columns = {}
        for name, x in vectors.items():
            heads, n, d = x.shape
            if self.bits == 4 and d % 2:
                raise ValueError(f"vectors of dimension {d} in 4 bits: two share a byte; give bits=8")
            grouped = x.reshape(heads, n, -1, GROUP if d % GROUP == 0 else d)
            least, most = grouped.aminmax(dim=-1, keepdim=True)
            step = (most.float() - least.float()).div_(2**self.bits - 1).to(x.dtype)
            whole = ((grouped.float() - least) / step.float().clamp(min=1e-30)).round_().clamp_(0, 2**self.bits - 1)
            codes = whole.to(torch.uint8).view(heads, n, d)
            columns[name] = codes if self.bits == 8 else codes[..., ::2] | codes[..., 1::2] << 4
            columns[_scales(name)] = torch.cat([least, step], -1).view(heads, n, -1)
        return columns

    def unpack(self, columns: Mapping[str, Tensor], name: str) -> Float[Tensor, "heads n d"]:
        """The vectors of one name as they are attended to."""
        codes, scales = columns[name], columns[_scales(name)]
        heads, n, _ = codes.shape
        if self.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], -1).view(heads, n, -1)
        least, step = scales.view(heads, n, -1, 2).split(1, -1)
        return (codes.view(heads, n, least.shape[2], -1) * step + least).view(heads, n, -1)

    def through(self, x: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch n d"]:
        """What is left of vectors that were stored."""
        return self.unpack(self.pack({"x": x.flatten(0, -3)}), "x").view(x.shape)


def _scales(name: str) -> str:
    return f"{name} scales"
