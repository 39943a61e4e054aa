"""The block mask of sinks and a window against the best way of one's own: a comparison of two ranges, broadcast by NumPy.

What the pattern of the sparsity room does besides is its price: it takes queries and keys of any shape on any device,
checks them, and hands out a choice that kernels rely on.
"""

from dataclasses import replace

import numpy as np

from ..sparsity import Streaming
from . import mask_construction
from .mask_construction import BLOCK, Blocks


def broadcast(tokens: int, pattern: Streaming) -> Blocks:
    """Every query block by every key block, at once."""
    first = np.arange(0, tokens, BLOCK)
    last = np.minimum(first + BLOCK, tokens) - 1
    return (first <= last[:, None]) & ((last > (first - pattern.window)[:, None]) | (first < pattern.sinks))


PAIR = replace(
    mask_construction.PAIR,
    name="block-sparse mask, against one NumPy broadcast",
    claim=None,
    source="fmlab.sparsity: every static pattern chooses blocks so",
    baseline=broadcast,
)
