"""Stack distances: the smallest cache in which each access hits, for all capacities in one pass (Mattson et al. 1970)."""

import numpy as np
from jaxtyping import Int

from .requests import Accesses


def recency_distances(ids: Int[np.ndarray, " accesses"]) -> Int[np.ndarray, " accesses"]:
    """For LRU: how many blocks were accessed since the last access to the same one, itself among them; 0 for the first.

    With p(i) the previous access to the block of i, every block accessed between them counts once, by its first access
    j there, which is the one with p(j) < p(i). All j up to p(i) have p(j) < p(i) too, so the distance is the number of
    j < i with p(j) < p(i), first accesses among them, less p(i).
    """
    order = np.argsort(ids, kind="stable")
    previous = np.full(len(ids), -1)
    same = ids[order[1:]] == ids[order[:-1]]
    previous[order[1:][same]] = order[:-1][same]
    again = previous >= 0
    first = np.cumsum(~again)
    distances = np.zeros(len(ids), np.int64)
    distances[again] = first[again] + smaller_before(previous[again]) - previous[again]
    return distances


def smaller_before(values: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """How many earlier entries are smaller, for each of distinct entries: their places, in order of value, are split
    stably by one bit after the other, the highest first.

    Of two places that agree in all higher bits the one with the bit set is the later: it counts those without it that
    stand before it in its group. Every pair is compared once, at its first bit that differs.
    """
    n = len(values)
    places, counts = np.argsort(values), np.zeros(n, np.int64)
    for bit in reversed(range(n.bit_length())):
        group, later = places >> (bit + 1), (places >> bit & 1).astype(bool)
        earlier = np.cumsum(~later) - ~later
        begins = np.append(True, group[1:] != group[:-1])
        first = np.maximum.accumulate(np.where(begins, np.arange(n), 0))
        counts[places[later]] += (earlier - earlier[first])[later]
        places = places[np.argsort(places >> bit, kind="stable")]
    return counts


def forward_distances(following: list[int]) -> Int[np.ndarray, " accesses"]:
    """For Belady, from the next access of each access (their number where there is none); 0 for the first of a block.

    The stack of all capacities at once: the first c entries are what a cache of c blocks holds. An accessed block goes
    to the top, and from the top down to where it stood the block that is needed later is pushed on at every capacity, so
    those move that are needed later than all above them. A block never needed again is a gap, which ends all pushing.
    """
    never = len(following)
    stack = np.full(64, never, np.int32)  # the next access of the block at each place
    height = 0  # below are only gaps
    distances = np.zeros(never, np.int64)
    accessed = bytearray(never + 1)  # whether an access was foretold, so that its block is on the stack
    for now, then in enumerate(following):
        place = height
        if accessed[now]:
            place = int((stack[:height] == now).argmax())
            distances[now] = place + 1
        if place == len(stack):
            stack = np.concatenate([stack, np.full_like(stack, never)])
        if place:
            above = stack[:place]
            if above[0] == never:
                stack[place] = never
            else:
                latest = np.maximum.accumulate(above)
                moved = np.concatenate([[0], np.flatnonzero(above[1:] > latest[:-1]) + 1])
                stack[np.append(moved[1:], place)] = above[moved]
        stack[0] = then
        accessed[then] = 1
        height = max(height, place + 1)
        while height and stack[height - 1] == never:
            height -= 1
    return distances


def next_accesses(accesses: Accesses) -> list[int]:
    """Where each access's block is accessed next; the number of accesses where never."""
    never = len(accesses.ids)
    then, following = [never] * accesses.distinct, [never] * never
    for now in range(never - 1, -1, -1):
        block = accesses.ids[now]
        following[now] = then[block]
        then[block] = now
    return following
