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
from .forecast import Foretold, Repeated
from .geometry import Lag, Leverage, Likeness, Norm, Shares
from .layer import Layer, Sliding, Streaming
from .wrapped import Area, Chunked, Critical, Duo, Lazy, Pinning, Valued

__all__ = [
    "Area",
    "Chunked",
    "Critical",
    "Duo",
    "Foretold",
    "HeavyHitter",
    "Lag",
    "Layer",
    "Lazy",
    "Leverage",
    "Likeness",
    "MeanReceived",
    "Norm",
    "Observation",
    "Omission",
    "Persistent",
    "Pinning",
    "Question",
    "Repeated",
    "Shares",
    "Sliding",
    "Streaming",
    "Tiles",
    "Valued",
]
