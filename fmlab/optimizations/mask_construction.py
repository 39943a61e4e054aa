"""The block-sparse mask of sinks and a window, block by block in Python loops or in a few operations on all blocks."""

import numpy as np
import torch
from jaxtyping import Bool

from ..sparsity import Streaming
from .pair import Floor, Pair

Blocks = Bool[np.ndarray, "query_blocks key_blocks"]
BLOCK = 64


def inputs(size: int, seed: int) -> tuple:
    """A number of tokens, and a pattern that the seed draws: positions are all that this mask is made of."""
    draw = np.random.default_rng(seed)
    return size, Streaming(sinks=int(draw.integers(1, 2 * BLOCK)), window=int(draw.integers(1, max(size // 4, 2))))


def baseline(tokens: int, pattern: Streaming) -> Blocks:
    """Every query block by every key block, in two loops."""
    count = -(-tokens // BLOCK)
    blocks = np.zeros((count, count), dtype=bool)
    for row in range(count):
        for column in range(row + 1):
            sink = column * BLOCK < pattern.sinks
            near = row * BLOCK - min((column + 1) * BLOCK, tokens) + 1 < pattern.window
            if sink or near:
                blocks[row, column] = True
    return blocks


def optimised(tokens: int, pattern: Streaming) -> Blocks:
    """The pattern of the sparsity room, for one head."""
    q = torch.empty(1, 1, tokens, 1)
    return pattern.blocks(q, q, BLOCK).blocks[0, 0].numpy()


PAIR = Pair(
    name="NumPy vectorisation of the block-sparse mask",
    claim=(50.0, 100.0),
    source="the progress report that this lab began from, phase 1: '50-100x'",
    baseline=baseline,
    optimised=optimised,
    inputs=inputs,
    sizes=(1_024, 4_096, 16_384),
    unit="tokens",
    floor=lambda size: Floor(float((-(-size // BLOCK)) ** 2), "bytes", "one boolean a block, written once"),
    used_in="fmlab.sparsity.Streaming",
)
