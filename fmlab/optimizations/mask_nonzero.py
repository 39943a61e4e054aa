"""Coordinates and compressed rows of a choice of blocks against the short way: write the token mask and ask NumPy where it holds.

That way writes and reads a byte for every pair of tokens, chosen or not; the lab's goes by the blocks that are chosen.
"""

import numpy as np

from ..sparsity import BlockChoice
from . import mask_coo, mask_csr
from .mask_coo import Coordinates
from .mask_csr import Rows
from .pair import Pair


def coordinates(choice: BlockChoice) -> Coordinates:
    """Where the mask of tokens x tokens holds."""
    return np.array(np.nonzero(choice.mask()[0, 0].numpy()))


def rows(choice: BlockChoice) -> Rows:
    """The same by rows."""
    mask = choice.mask()[0, 0].numpy()
    return np.append(0, mask.sum(1).cumsum()), np.nonzero(mask)[1]


COO = Pair(
    name="mask as COO, against NumPy's nonzero",
    claim=None,
    source="fmlab.sparsity.coo, which hands the lab's choices to others",
    baseline=coordinates,
    optimised=mask_coo.optimised,
    inputs=mask_coo.PAIR.inputs,
    sizes=mask_coo.PAIR.sizes,
    unit="tokens",
    floor=mask_coo.PAIR.floor,
    offered_as=mask_coo.PAIR.offered_as,
)
CSR = Pair(
    name="mask as CSR, against NumPy's nonzero",
    claim=None,
    source="fmlab.sparsity.csr, which hands the lab's choices to others",
    baseline=rows,
    optimised=mask_csr.optimised,
    inputs=mask_csr.PAIR.inputs,
    sizes=mask_csr.PAIR.sizes,
    unit="tokens",
    floor=mask_csr.PAIR.floor,
    offered_as=mask_csr.PAIR.offered_as,
)
