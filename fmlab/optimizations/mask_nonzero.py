"""Coordinates and compressed rows of a choice of blocks against the short way: write the token mask and ask NumPy where it holds.

That way writes and reads a byte for every pair of tokens, chosen or not; the lab's goes by the blocks that are chosen.
"""

from dataclasses import replace

import numpy as np

from ..sparsity import BlockChoice
from . import mask_coo, mask_csr
from .mask_coo import Coordinates
from .mask_csr import Rows


def coordinates(choice: BlockChoice) -> Coordinates:
    """Where the mask of tokens x tokens holds."""
    return np.array(np.nonzero(choice.mask()[0, 0].numpy()))


def rows(choice: BlockChoice) -> Rows:
    """The same by rows."""
    mask = choice.mask()[0, 0].numpy()
    return np.append(0, mask.sum(1).cumsum()), np.nonzero(mask)[1]


COO = replace(
    mask_coo.PAIR,
    name="mask as COO, against NumPy's nonzero",
    claim=None,
    source="fmlab.sparsity.coo, which hands the lab's choices to others",
    baseline=coordinates,
)
CSR = replace(
    mask_csr.PAIR,
    name="mask as CSR, against NumPy's nonzero",
    claim=None,
    source="fmlab.sparsity.csr, which hands the lab's choices to others",
    baseline=rows,
)
