"""Eviction policies for a KV cache, one module a family; each is a score."""

from .attention import H2O, TOVA, SnapKV
from .geometry import KeyNorm
from .hindsight import Clairvoyant
from .recency import Random, SinkWindow, SlidingWindow

__all__ = ["H2O", "TOVA", "Clairvoyant", "KeyNorm", "Random", "SinkWindow", "SlidingWindow", "SnapKV"]
