"""Eviction policies of a cache of equal blocks: on which accesses of a trace each of them hits."""

from collections import OrderedDict, deque
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np
from jaxtyping import Int

from .requests import Accesses
from .stack import forward_distances, next_accesses, recency_distances


@dataclass(frozen=True)
class Eviction:
    """What decides which block leaves a full cache.

    Every policy is on demand: an access to a block that is not held is a miss, and the block is then always inserted,
    in the place of one that the policy chooses where the cache is full. So the accesses of a request act one by one,
    and a request longer than the cache may push out its own blocks.
    """

    def hits(self, accesses: Accesses, capacity: int) -> bytearray:
        """1 for each access that finds its block in a cache of `capacity` blocks, empty at first, 0 for the others."""
        raise NotImplementedError(f"{type(self).__name__} has no hits(accesses, capacity)")

    def distances(self, accesses: Accesses) -> Int[np.ndarray, " accesses"] | None:
        """The smallest capacity at which each access hits, 0 where none does, for a policy whose larger cache always
        holds what its smaller one holds (a *stack algorithm*, Mattson et al. 1970); None for the others."""
        return None


@dataclass(frozen=True)
class FIFO(Eviction):
    """Evict the block that was inserted first."""

    def hits(self, accesses: Accesses, capacity: int) -> bytearray:
        # Held are the blocks of the last `capacity` misses: no queue is needed.
        born, misses, hits = [-capacity - 1] * accesses.distinct, 0, bytearray(len(accesses.ids))
        oldest = -capacity
        for now, block in enumerate(accesses.ids):
            if born[block] >= oldest:
                hits[now] = 1
            else:
                born[block] = misses
                misses += 1
                oldest += 1
        return hits


@dataclass(frozen=True)
class LRU(Eviction):
    """Evict the block whose last access is longest ago."""

    def hits(self, accesses: Accesses, capacity: int) -> bytearray:
        # The trace itself is the queue: held are the blocks whose last access stands at `oldest` or after it.
        ids, last, hits = accesses.ids, [-1] * accesses.distinct, bytearray(len(accesses.ids))
        oldest, room = 0, capacity
        for now, block in enumerate(ids):
            if last[block] >= oldest:
                hits[now] = 1
            elif room:
                room -= 1
            else:
                while last[ids[oldest]] != oldest:
                    oldest += 1
                oldest += 1
            last[block] = now
        return hits

    def distances(self, accesses: Accesses) -> Int[np.ndarray, " accesses"]:
        return recency_distances(np.asarray(accesses.ids))


@dataclass(frozen=True)
class LFU(Eviction):
    """Evict the block with the fewest accesses since it was inserted, of several the least recently accessed one."""

    def hits(self, accesses: Accesses, capacity: int) -> bytearray:
        count, hits = [0] * accesses.distinct, bytearray(len(accesses.ids))
        levels: dict[int, OrderedDict[int, None]] = {}  # the blocks of each count, in order of their last access
        fewest, room = 1, capacity
        for now, block in enumerate(accesses.ids):
            if seen := count[block]:
                hits[now] = 1
                level = levels[seen]
                del level[block]
                if not level:
                    del levels[seen]
                    if seen == fewest:
                        fewest += 1  # where the block goes now
            elif room:
                room -= 1
            else:
                level = levels[fewest]
                count[level.popitem(last=False)[0]] = 0
                if not level:
                    del levels[fewest]
            if not seen:
                fewest = 1
            count[block] = seen + 1
            if (level := levels.get(seen + 1)) is None:
                level = levels[seen + 1] = OrderedDict()
            level[block] = None
        return hits


@dataclass(frozen=True)
class SIEVE(Eviction):
    """Evict the first unvisited block that a hand meets on its way from the oldest to the newest (NSDI'24, algorithm 1).

    A hit marks its block as visited; the hand takes the mark away and moves on, and stays where it evicted.
    """

    def hits(self, accesses: Accesses, capacity: int) -> bytearray:
        end = accesses.distinct  # a sentinel: before the oldest, after the newest
        newer, older = [end] * (end + 1), [end] * (end + 1)
        held, visited, hits = bytearray(end), bytearray(end), bytearray(len(accesses.ids))
        hand, room = end, capacity
        for now, block in enumerate(accesses.ids):
            if held[block]:
                hits[now] = visited[block] = 1
                continue
            if room:
                room -= 1
            else:
                if hand == end:
                    hand = newer[end]
                while visited[hand]:
                    visited[hand] = 0
                    hand = newer[hand]
                    if hand == end:
                        hand = newer[end]
                held[hand] = 0
                before, after = older[hand], newer[hand]
                newer[before], older[after] = after, before
                hand = after
            held[block] = 1
            newest = older[end]
            newer[newest], older[block] = block, newest
            newer[block], older[end] = end, block
        return hits


@dataclass(frozen=True)
class S3FIFO(Eviction):
    """Three FIFO queues (SOSP'23): a small one for newcomers, a main one, and a ghost that remembers evicted ids.

    The small queue has a tenth of the cache (at least one block). What was hit twice there moves to the main queue when
    it comes to its end, the rest is evicted and remembered by the ghost, of nine tenths of the cache; what returns while
    remembered goes to the main queue, where a block with hits left (at most 3) goes round again for one of them. Until
    the cache is full, newcomers overflow from the small queue into the main one, as in libCacheSim since version 0.3; in
    the paper they lengthen the small queue.
    """

    def hits(self, accesses: Accesses, capacity: int) -> bytearray:
        small_size, ghost_size = max(1, capacity // 10), capacity * 9 // 10
        main_size = capacity - small_size
        small, main, ghost = deque(), deque(), OrderedDict()
        count, hits = [-1] * accesses.distinct, bytearray(len(accesses.ids))  # a count of -1: not held
        room = capacity
        for now, block in enumerate(accesses.ids):
            if count[block] >= 0:
                hits[now] = 1
                count[block] += 1
                continue
            returned = ghost.pop(block, False)
            if room:
                room -= 1
                overflow = len(small) >= small_size
            else:
                overflow, evicted = False, False
                while not evicted:
                    if len(main) > main_size or not small:
                        while count[main[0]]:
                            last = main.popleft()
                            count[last] = min(count[last], 3) - 1
                            main.append(last)
                        count[main.popleft()] = -1
                        evicted = True
                    while small and not evicted:
                        last = small.popleft()
                        if count[last] >= 2:
                            count[last] = 0
                            main.append(last)
                            continue
                        count[last] = -1
                        if ghost_size:
                            if len(ghost) >= ghost_size:
                                ghost.popitem(last=False)
                            ghost[last] = True
                        evicted = True
            (main if returned or overflow else small).append(block)
            count[block] = 0
        return hits


@dataclass(frozen=True)
class ARC(Eviction):
    """Adaptive replacement (FAST'03, figure 4): a list of blocks seen once and one of blocks seen again, each with a ghost
    of what left it, and a target length of the first that moves toward the ghost that is hit."""

    def hits(self, accesses: Accesses, capacity: int) -> bytearray:
        once, again, once_ghost, again_ghost = OrderedDict(), OrderedDict(), OrderedDict(), OrderedDict()
        hits, target = bytearray(len(accesses.ids)), 0.0
        for now, block in enumerate(accesses.ids):
            if block in once:
                hits[now] = 1
                del once[block]
                again[block] = None
                continue
            if block in again:
                hits[now] = 1
                again.move_to_end(block)
                continue
            replace, at_target, home = True, False, again
            if block in once_ghost:
                target = min(capacity, target + max(len(again_ghost) / len(once_ghost), 1))
                del once_ghost[block]
            elif block in again_ghost:
                target = max(0, target - max(len(once_ghost) / len(again_ghost), 1))
                del again_ghost[block]
                at_target = True  # then the first list gives way at its target length too
            else:
                home = once
                if len(once) + len(once_ghost) == capacity:
                    replace = len(once) < capacity
                    (once_ghost if replace else once).popitem(last=False)
                elif (total := len(once) + len(again) + len(once_ghost) + len(again_ghost)) < capacity:
                    replace = False
                elif total == 2 * capacity:
                    again_ghost.popitem(last=False)
            if replace:
                if once and (len(once) > target or (at_target and len(once) == target)):
                    once_ghost[once.popitem(last=False)[0]] = None
                else:
                    again_ghost[again.popitem(last=False)[0]] = None
            home[block] = None
        return hits


@dataclass(frozen=True)
class LengthAware(Eviction):
    """Evict from the request that is longest ago, the end of its prompt first: LRU for prefixes.

    A block without those before it is worth nothing to a prefix cache, and the blocks of a request are as recent as each
    other; so a block leaves before its own prefix does, as vLLM's prefix cache frees them. Where a request is longer
    than the cache, its own beginning stays. Mooncake's LengthAwareCache (arXiv:2407.00079, table 1) is another policy,
    "similar to LFU", which the paper does not define.
    """

    def hits(self, accesses: Accesses, capacity: int) -> bytearray:
        ids, starts = accesses.ids, accesses.starts
        owner, hits = [-1] * accesses.distinct, bytearray(len(ids))  # the last request that accessed a held block
        prompts: list[list[int]] = []  # the blocks of every request so far, from which its owned ones are taken
        oldest, room = 0, capacity
        for request in range(len(starts) - 1):
            prompts.append(mine := [])
            for now in range(starts[request], starts[request + 1]):
                block = ids[now]
                if owner[block] >= 0:
                    hits[now] = 1
                elif room:
                    room -= 1
                else:
                    while True:
                        while not prompts[oldest]:
                            oldest += 1
                        if owner[last := prompts[oldest].pop()] == oldest:
                            break
                    owner[last] = -1
                owner[block] = request
                mine.append(block)
        return hits


@dataclass(frozen=True)
class Belady(Eviction):
    """Evict the block whose next access is farthest away (Belady 1966): no policy has more block hits.

    It reads the future, so it is the ceiling, not a candidate. It is the optimum of block hits on demand; token hits of
    prefixes may in principle be more under another choice.
    """

    def hits(self, accesses: Accesses, capacity: int) -> bytearray:
        ids, held, hits = accesses.ids, bytearray(accesses.distinct), bytearray(len(accesses.ids))
        following, never = next_accesses(accesses), len(accesses.ids)
        heap: list[int] = []  # minus the next access of every held block that has one; those past are never the least
        useless, room = 0, capacity  # how many held blocks are never accessed again
        for now, block in enumerate(ids):
            if held[block]:
                hits[now] = 1
            else:
                if room:
                    room -= 1
                elif useless:
                    useless -= 1
                else:
                    held[ids[-heappop(heap)]] = 0
                held[block] = 1
            if (then := following[now]) < never:
                heappush(heap, -then)
            else:
                useless += 1
        return hits

    def distances(self, accesses: Accesses) -> Int[np.ndarray, " accesses"]:
        return forward_distances(next_accesses(accesses))
