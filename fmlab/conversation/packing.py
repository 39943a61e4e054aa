"""Which spans fit a budget of tokens: a knapsack, greedily by score and exactly."""

import numpy as np
from jaxtyping import Float, Int


def greedy(scores: Float[np.ndarray, " n"], tokens: Int[np.ndarray, " n"], room: int) -> Int[np.ndarray, " kept"]:
    """The places of what is taken by score, best first, whatever fits of what is left; of equal scores the later first.

    As the value of a span is its score times its tokens, this is the greedy rule by value per weight: what it keeps and
    the first span that it passed over are together worth no less than the optimum (Dantzig 1957).
    """
    kept = []
    for place in sorted(range(len(scores)), key=lambda place: (-scores[place], -place)):
        if tokens[place] <= room:
            kept.append(place)
            room -= int(tokens[place])
    return np.array(sorted(kept), dtype=np.int64)


def optimal(scores: Float[np.ndarray, " n"], tokens: Int[np.ndarray, " n"], room: int) -> Int[np.ndarray, " kept"]:
    """The places of the set with the greatest sum of score times tokens, by dynamic programming in O(n room) steps.

    Of sets of equal value the one with the later spans. A span without tokens is always in it.
    """
    value, room = scores * tokens, min(room, int(tokens.sum()))  # a budget may be far above what there is
    best = np.zeros(room + 1)
    taken = np.zeros((len(scores), room + 1), dtype=bool)
    for place in range(len(scores)):
        weight = int(tokens[place])
        if weight > room:
            continue
        with_it = np.concatenate([np.full(weight, -np.inf), best[: room + 1 - weight] + value[place]])
        taken[place] = with_it >= best
        best = np.maximum(best, with_it)
    kept = []
    for place in reversed(range(len(scores))):
        if taken[place, room]:
            kept.append(place)
            room -= int(tokens[place])
    return np.array(kept[::-1], dtype=np.int64)
