"""Sentence boundaries over token ids: a comprehension with a frozenset against a loop that looks through a list.

The claim in its other reading: the naive loop asks a list of the enders, so that a token that ends nothing, as nearly
all do, is compared with every one of them. What is gained hangs on how many enders there are.
"""

from .pair import Floor, Pair
from .sentence_boundaries import CLAIM, SOURCE, comprehension_with_frozenset, inputs


def loop_with_list(ids: list[int], enders: list[int]) -> list[int]:
    """The places of the tokens that are among the enders."""
    places = []
    for place, id in enumerate(ids):
        if id in enders:
            places.append(place)
    return places


def floor(size: int) -> Floor:
    return Floor(size, "operations", "one look into a hash table a token")


PAIR = Pair(
    name="sentence boundaries: comprehension with frozenset, against a list",
    claim=CLAIM,
    source=SOURCE,
    baseline=loop_with_list,
    optimised=comprehension_with_frozenset,
    inputs=inputs,
    sizes=(100, 1_000, 10_000),
    unit="tokens",
    floor=floor,
    used_in=None,
)
