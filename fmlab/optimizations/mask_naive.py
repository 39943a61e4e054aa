"""The token mask of a choice of blocks against the naive way, token by token: the claim's other reading."""

from dataclasses import replace

import numpy as np

from ..sparsity import BlockChoice
from . import mask_bool
from .mask_bool import Mask


def token_by_token(choice: BlockChoice) -> Mask:
    """Every query by every key before it, in two loops, each asking for its block."""
    block, blocks = choice.block, choice.blocks[0, 0].tolist()
    past = choice.m - choice.n
    mask = np.zeros((choice.n, choice.m), dtype=bool)
    for query in range(choice.n):
        for key in range(past + query + 1):
            if blocks[query // block][key // block]:
                mask[query, key] = True
    return mask


PAIR = replace(
    mask_bool.PAIR,
    name="token mask from blocks, against a loop over tokens",
    source=f"{mask_bool.PAIR.source}, against a loop over tokens",
    baseline=token_by_token,
    sizes=(64, 256, 1_024),
)
