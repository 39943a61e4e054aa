"""Eviction policies for a KV cache, one module a family; each is a score."""

from ..core import Policy
from .allocation import Ada as Ada  # not in __all__, which lists the policies
from .allocation import PerLayer as PerLayer
from .allocation import Pyramid as Pyramid
from .allocation import Uniform as Uniform
from .attention import H2O, TOVA, Finch, NonCausalAttention, ObservedAttention, Scissorhands, SnapKV
from .forecast import ExpectedAttention
from .geometry import CUR, KeyDiff, KeyNorm, LagKV, LeverageScore
from .hindsight import Clairvoyant
from .recency import Random, SinkWindow, SlidingWindow
from .reconstruction import KVZip
from .structure import DuoAttention, SimLayerKV
from .wrappers import ChunkKV, CriticalKV, Pinned, ValueWeighted

__all__ = [
    "CUR",
    "H2O",
    "TOVA",
    "ChunkKV",
    "Clairvoyant",
    "CriticalKV",
    "DuoAttention",
    "ExpectedAttention",
    "Finch",
    "KVZip",
    "KeyDiff",
    "KeyNorm",
    "LagKV",
    "LeverageScore",
    "NonCausalAttention",
    "ObservedAttention",
    "Pinned",
    "Random",
    "Scissorhands",
    "SimLayerKV",
    "SinkWindow",
    "SlidingWindow",
    "SnapKV",
    "ValueWeighted",
]


def every(offered: frozenset[str] | None = None) -> list[Policy]:
    """One of each policy here, with its defaults; with `offered` only those that a host with these preparations can serve
    (`fmlab.needs.LIVE` is what a live model offers)."""
    made = [globals()[name]() for name in __all__]
    return [policy for policy in made if offered is None or policy.needs <= offered]
