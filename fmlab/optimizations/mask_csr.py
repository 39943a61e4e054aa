"""The compressed rows (CSR) of a choice of blocks: a query after the other in Python, or all at once."""

import numpy as np
from jaxtyping import Int

from ..sparsity import BlockChoice, csr
from .mask_bool import entries, inputs
from .pair import Floor, Pair

Rows = tuple[Int[np.ndarray, " starts"], Int[np.ndarray, " entries"]]


def baseline(choice: BlockChoice) -> Rows:
    """Each query's keys joined from the ranges of its blocks."""
    block, blocks = choice.block, choice.blocks[0, 0].numpy()
    starts, columns = [0], [np.empty(0, dtype=np.int64)]
    for query in range(choice.n):
        starts.append(starts[-1])
        for column in np.flatnonzero(blocks[query // block]):
            columns.append(np.arange(column * block, min((column + 1) * block, query + 1)))
            starts[-1] += len(columns[-1])
    return np.array(starts), np.concatenate(columns)


def optimised(choice: BlockChoice) -> Rows:
    """`sparsity.csr`."""
    starts, columns = csr(choice)
    return starts.numpy(), columns.numpy()


PAIR = Pair(
    name="mask as CSR",
    claim=(50.0, 100.0),
    source="the progress report that this lab began from, phase 1, read as the mask's compressed rows",
    baseline=baseline,
    optimised=optimised,
    inputs=inputs,
    sizes=(256, 1_024, 4_096),
    unit="tokens",
    floor=lambda size: Floor(
        8.0 * (size + entries(size)), "bytes", "a start a query, a column a pair of seed 0's choice"
    ),
    offered_as="fmlab.sparsity.csr",
)
