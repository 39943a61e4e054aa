"""The token mask of a choice of blocks against the naive way, token by token: the claim's other reading."""

import numpy as np

from ..sparsity import BlockChoice
from . import mask_bool
from .mask_bool import Mask
from .pair import Floor, Pair


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


PAIR = Pair(
    name="token mask from blocks, against a loop over tokens",
    claim=mask_bool.PAIR.claim,
    source=f"{mask_bool.PAIR.source}, against a loop over tokens",
    baseline=token_by_token,
    optimised=mask_bool.optimised,
    inputs=mask_bool.inputs,
    sizes=(64, 256, 1_024),
    unit="tokens",
    floor=lambda size: Floor(float(size**2), "bytes", "one boolean a token pair, written once"),
    used_in=mask_bool.PAIR.used_in,
)
