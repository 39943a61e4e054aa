"""Embeddings of many texts: batches of texts of like length against batches in the order given.

A batch is padded to its longest text, so texts of like length pad little. A single batch gains nothing.
"""

import numpy as np
from jaxtyping import Float

from ..conversation import MiniLM
from . import real
from .embedding_misses import TOLERANCE, operations, turns
from .pair import Floor, Pair


def in_given_order(texts: list[str], encoder: MiniLM) -> Float[np.ndarray, "texts d"]:
    """The texts' vectors, a batch of neighbours at a time."""
    if not texts:
        return encoder.encode([])
    batches = (texts[start : start + encoder.batch] for start in range(0, len(texts), encoder.batch))
    return np.concatenate([encoder.encode(batch) for batch in batches])


def shortest_first(texts: list[str], encoder: MiniLM) -> Float[np.ndarray, "texts d"]:
    """The same, in the order given; the encoder itself puts texts of like length into a batch."""
    return encoder.encode(texts)


def inputs(size: int, seed: int) -> tuple[list[str], MiniLM]:
    """Turns of the dialogues, and all-MiniLM-L6-v2, which reads 32 at a time."""
    return turns(size, seed), real.encoder()


def floor(size: int) -> Floor:
    return Floor(operations(turns(size, seed=0)), "operations", "the turns of seed 0, nothing padded")


PAIR = Pair(
    name="embedding: batches sorted by length",
    claim=None,
    source="fmlab.conversation.MiniLM: the memories embed all turns of a conversation at once",
    baseline=in_given_order,
    optimised=shortest_first,
    inputs=inputs,
    tolerance=TOLERANCE,
    sizes=(16, 48, 96),
    unit="texts",
    floor=floor,
    offered_as="fmlab.conversation.MiniLM",
)
