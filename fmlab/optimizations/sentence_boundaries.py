"""Sentence boundaries over token ids: a comprehension with a frozenset against a loop with a set.

The claim does not say against what. Here it is held against the best straightforward loop, which asks a set; and, as
the naive way, against one that asks a list (`sentence_boundaries_list`). Both find the tokens whose own text could end
a sentence; `boundary_table` is how the lab does it.
"""

from ..conversation.sentences import marking_ids
from . import real
from .pair import Floor, Pair

CLAIM = (1.1, 1.3)
SOURCE = (
    "the progress report that this lab began from, phase 1: list comprehensions with a frozenset in sentence-boundary "
    "detection, 10-30% faster"
)


def loop_with_set(ids: list[int], enders: list[int]) -> list[int]:
    """The places of the tokens that are among the enders."""
    known = set(enders)
    places = []
    for place, id in enumerate(ids):
        if id in known:
            places.append(place)
    return places


def comprehension_with_frozenset(ids: list[int], enders: list[int]) -> list[int]:
    """The same."""
    known = frozenset(enders)
    return [place for place, id in enumerate(ids) if id in known]


def inputs(size: int, seed: int) -> tuple[list[int], list[int]]:
    """Ids of a stretch of prose, and the ids of all tokens that could end a sentence: 134 of SmolLM2's 49,152."""
    return real.text_ids(size, seed).tolist(), marking_ids(real.lm().tokenizer)


def floor(size: int) -> Floor:
    return Floor(size, "operations", "one look into a hash table a token")


PAIR = Pair(
    name="sentence boundaries: comprehension with frozenset",
    claim=CLAIM,
    source=SOURCE,
    baseline=loop_with_set,
    optimised=comprehension_with_frozenset,
    inputs=inputs,
    sizes=(100, 1_000, 10_000),
    unit="tokens",
    floor=floor,
    used_in=None,
)
