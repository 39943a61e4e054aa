"""The token mask of a choice of blocks, tokens by tokens: block by block in Python loops, or repeated all at once."""

import numpy as np
import torch
from jaxtyping import Bool

from ..sparsity import BlockChoice
from . import mask_construction
from .pair import Floor, Pair

Mask = Bool[np.ndarray, "queries keys"]


def inputs(size: int, seed: int) -> tuple[BlockChoice]:
    """The choice of `mask_construction`, with one head."""
    tokens, pattern = mask_construction.inputs(size, seed)
    q = torch.empty(1, 1, tokens, 1)
    return (pattern.blocks(q, q, mask_construction.BLOCK),)


def baseline(choice: BlockChoice) -> Mask:
    """The chosen blocks written one by one, those on the diagonal as triangles."""
    block, blocks = choice.block, choice.blocks[0, 0].numpy()
    mask = np.zeros((choice.n, choice.m), dtype=bool)
    for row in range(len(blocks)):
        for column in range(row + 1):
            if blocks[row, column]:
                part = mask[row * block : (row + 1) * block, column * block : (column + 1) * block]
                part[:] = True if column < row else np.tri(*part.shape, dtype=bool)
    return mask


def optimised(choice: BlockChoice) -> Mask:
    """`BlockChoice.mask`."""
    return choice.mask()[0, 0].numpy()


def entries(size: int) -> int:
    """The pairs of tokens that attend in the choice that seed 0 draws."""
    return inputs(size, 0)[0].pairs


PAIR = Pair(
    name="token mask from blocks",
    claim=(50.0, 100.0),
    source="the progress report that this lab began from, phase 1, read as the mask of tokens x tokens",
    baseline=baseline,
    optimised=optimised,
    inputs=inputs,
    sizes=(256, 1_024, 4_096),
    unit="tokens",
    floor=lambda size: Floor(float(size**2), "bytes", "one boolean a token pair, written once"),
    used_in="fmlab.sparsity.BlockChoice.mask",
)
