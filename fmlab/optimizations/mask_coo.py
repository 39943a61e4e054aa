"""The coordinates (COO) of every pair that a choice of blocks lets attend: appended one by one, or all at once."""

import numpy as np
from jaxtyping import Int

from ..sparsity import BlockChoice, coo
from .mask_bool import entries, inputs
from .pair import Floor, Pair

Coordinates = Int[np.ndarray, "2 pairs"]


def baseline(choice: BlockChoice) -> Coordinates:
    """Rows and columns appended pair by pair, query after query."""
    block, blocks = choice.block, choice.blocks[0, 0].tolist()
    rows, columns = [], []
    for query in range(choice.n):
        for column, chosen in enumerate(blocks[query // block]):
            if chosen:
                for key in range(column * block, min((column + 1) * block, query + 1)):
                    rows.append(query)
                    columns.append(key)
    return np.array([rows, columns], dtype=np.int64)


def optimised(choice: BlockChoice) -> Coordinates:
    """`sparsity.coo`, without the sample and the head, of which there is one."""
    return coo(choice, axes=2).numpy()


PAIR = Pair(
    name="mask as COO",
    claim=(50.0, 100.0),
    source="the progress report that this lab began from, phase 1, read as the mask's coordinates",
    baseline=baseline,
    optimised=optimised,
    inputs=inputs,
    sizes=(256, 1_024, 4_096),
    unit="tokens",
    floor=lambda size: Floor(16.0 * entries(size), "bytes", "two integers a pair of the choice that seed 0 draws"),
    offered_as="fmlab.sparsity.coo",
)
