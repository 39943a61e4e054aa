"""Embeddings that a cache does not hold yet: all that a call misses as one batch against one by one.

The cache is made anew in each call. The turns of a conversation are asked for and then asked for again, as by a memory
that is asked twice; what is repeated is a hit either way. A batch is padded, which is work, and spares calls: with one
thread of PyTorch it was the slower way, with two on a busy machine much the faster one.
"""

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Float

from ..caches import EmbeddingCache
from ..conversation import dialogues
from ..conversation.encoders import LONGEST, Encoder
from . import real
from .pair import Floor, Pair

TOLERANCE = 1e-5  # a batch is padded, which rounds otherwise: 2e-7 was seen, of vectors of length 1
OPERATIONS = 2 * 6 * (4 * 384**2 + 2 * 384 * 1_536)  # a word piece: multiply and add with the weights of six layers


@dataclass(frozen=True)
class OneByOne:
    """An encoder that reads every text by itself."""

    encoder: Encoder

    def encode(self, texts: list[str]) -> Float[np.ndarray, "texts d"]:
        return np.concatenate([self.encoder.encode([text]) for text in texts])


def one_by_one(texts: list[str], encoder: Encoder) -> Float[np.ndarray, "texts d"]:
    """The texts' vectors through an empty cache, whose misses are encoded one by one."""
    return EmbeddingCache(OneByOne(encoder)).encode(texts)


def as_a_batch(texts: list[str], encoder: Encoder) -> Float[np.ndarray, "texts d"]:
    """The same, the misses handed to the encoder together."""
    return EmbeddingCache(encoder).encode(texts)


@cache
def _turns() -> tuple[str, ...]:
    return tuple(message["content"] for dialogue in dialogues() for message in dialogue.messages)


def turns(count: int, seed: int) -> list[str]:
    """So many turns of the lab's own dialogues, one after another, from a place that the seed draws; a ring."""
    said = _turns()
    start = random.Random(seed).randrange(len(said))
    return [said[(start + place) % len(said)] for place in range(count)]


def inputs(size: int, seed: int) -> tuple[list[str], Encoder]:
    """Turns of the dialogues, of which the second half repeats the first, and all-MiniLM-L6-v2."""
    new = turns(size - size // 2, seed)
    return [*new, *new[: size // 2]], real.encoder()


def operations(texts: list[str]) -> float:
    """The least that MiniLM computes of these texts, were nothing padded: it reads a word in one piece or more."""
    pieces = sum(min(len(text.split()) + 2, LONGEST) for text in texts)
    return float(OPERATIONS * pieces)


def floor(size: int) -> Floor:
    distinct = list(dict.fromkeys(inputs(size, seed=0)[0]))
    return Floor(operations(distinct), "operations", "each distinct turn of seed 0 read once, nothing padded")


PAIR = Pair(
    name="embedding of cache misses: one batch",
    claim=(1.3, 1.5),
    source="the progress report that this lab began from, phase 2: batched embedding of cache misses, 30-50%",
    baseline=one_by_one,
    optimised=as_a_batch,
    inputs=inputs,
    tolerance=TOLERANCE,
    sizes=(2, 8, 32),
    unit="texts",
    floor=floor,
    offered_as="fmlab.caches.EmbeddingCache",
)
