"""Eviction policies for a KV cache, one module a family; each is a score."""

from .attention import H2O, TOVA, SnapKV
from .geometry import KeyNorm
from .recency import Random, SinkWindow, SlidingWindow

__all__ = ["H2O", "TOVA", "KeyNorm", "Random", "SinkWindow", "SlidingWindow", "SnapKV"]
