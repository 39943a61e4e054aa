"""The policies once more, straight from their papers: float64, lists of positions, one head and one query at a time.

Nothing here comes from fmlab; it is what fmlab is compared with.
"""

from .attention import (
    HeavyHitter,
    MeanReceived,
    Observation,
    Omission,
    Persistent,
    Question,
    Tiles,
)
from .geometry import Lag, Leverage, Likeness, Norm, Shares
from .layer import Layer, Sliding, Streaming

__all__ = [
    "HeavyHitter",
    "Lag",
    "Layer",
    "Leverage",
    "Likeness",
    "MeanReceived",
    "Norm",
    "Observation",
    "Omission",
    "Persistent",
    "Question",
    "Shares",
    "Sliding",
    "Streaming",
    "Tiles",
]
