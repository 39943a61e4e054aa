"""Hit ratios of a block cache on a request trace: by block, by token and by request, with the window they hold for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from .eviction import Eviction
from .requests import BLOCK, Accesses
from .requests import accesses as laid_out


@dataclass(frozen=True)
class HitRatios:
    """What a cache found of what was asked of it, and of how much.

    `block`: accesses that hit, over all accesses. `token`: tokens of the contiguous prefixes found, over all prompt
    tokens. `request`: the mean over requests of the part of its tokens found. The other fields are the window: how many
    `requests`, `accesses` and `tokens` were counted, how many of the accesses were `cold` (the first of their block in
    the whole trace, a miss in every cache), and how many requests came before the window to warm the cache (`warm_up`).
    """

    block: float
    token: float
    request: float
    requests: int
    accesses: int
    tokens: int
    cold: int
    warm_up: int


def simulate(
    requests: Iterable[Mapping[str, Any]] | Accesses,
    policy: Eviction,
    capacity: int | None,
    *,
    block: int | None = None,
    warm_up: int = 0,
) -> HitRatios:
    """The hit ratios of one shared cache of `capacity` blocks (None: without bound), empty at first, on a trace.

    Requests are mappings with `hash_ids` and `input_length`, served one after the other in the order given; `block` is
    how many tokens a block holds (512 where not given; Accesses bring their own). Each block of a request is accessed in
    turn, and a missing one inserted at once, so within a request a block may push out a later one, which then misses too.
    A request is credited with its leading blocks that hit, min(blocks * block, input_length) tokens: up to the first
    miss it has inserted nothing, so that is what the cache held when it arrived. Generated tokens are not cached. The
    first `warm_up` requests fill the cache and are not counted; by default the window is the whole trace, from cold.

    Raises ValueError for a malformed request (its place and field), a capacity below 1, and an empty window.
    """
    trace = accesses_of(requests, block)
    return ratios(trace, hits_of(trace, policy, capacity), warm_up)


def accesses_of(requests: Iterable[Mapping[str, Any]] | Accesses, block: int | None) -> Accesses:
    """A trace laid out, if it is not yet."""
    if not isinstance(requests, Accesses):
        return laid_out(requests, BLOCK if block is None else block)
    if block not in (None, requests.block):
        raise ValueError(f"block={block}, but the accesses are of blocks of {requests.block} tokens; leave it out")
    return requests


def check_policy(policy: Any) -> None:
    """Raises TypeError for what is no policy of eviction, such as its class."""
    if not isinstance(policy, Eviction):
        raise TypeError(f"policy={policy!r:.40}; give a policy of eviction such as fm.caches.LRU()")


def hits_of(trace: Accesses, policy: Eviction, capacity: int | None) -> Bool[np.ndarray, " accesses"]:
    """Whether each access hits."""
    check_policy(policy)
    if capacity is not None and check_capacity(capacity) < trace.distinct:
        return _checked(policy, policy.hits(trace, index(capacity)), len(trace.ids))
    return ~cold(trace)  # nothing is ever evicted


def _checked(policy: Eviction, found: Any, accesses: int) -> Bool[np.ndarray, " accesses"]:
    """What a policy says of each access, where it says it as it should."""
    hits = np.frombuffer(found, dtype=np.uint8) if isinstance(found, bytes | bytearray) else np.asarray(found)
    if hits.shape != (accesses,) or not np.isin(hits, (0, 1)).all():
        raise ValueError(
            f"{policy!r}: hits() gave {type(found).__name__} of shape {hits.shape} and {hits.dtype}; give a bytearray or "
            f"booleans, one for each of the {accesses} accesses"
        )
    return hits.astype(bool)


def check_capacity(capacity: Any) -> int:
    """A capacity that a cache can have. Raises ValueError for others."""
    if isinstance(capacity, bool) or not hasattr(capacity, "__index__") or index(capacity) < 1:
        raise ValueError(f"capacity={capacity!r} blocks; give a whole number from 1, or None for a cache without bound")
    return index(capacity)


def cold(trace: Accesses) -> Bool[np.ndarray, " accesses"]:
    """Whether each access is the first of its block, which have their numbers by first appearance."""
    ids = np.asarray(trace.ids)
    return ids > np.concatenate([[-1], np.maximum.accumulate(ids)[:-1]])


def window_of(trace: Accesses, warm_up: int) -> int:
    """The first access that is counted. Raises ValueError where none is."""
    if not 0 <= warm_up < len(trace.tokens):
        raise ValueError(f"warm_up={warm_up} of {len(trace.tokens)} requests; leave at least one to count")
    start = trace.starts[warm_up]
    if start == len(trace.ids):
        raise ValueError(f"warm_up={warm_up} leaves requests without blocks only; lower it")
    return start


def ratios(trace: Accesses, hits: Bool[np.ndarray, " accesses"], warm_up: int = 0) -> HitRatios:
    """The ratios of an outcome of every access."""
    first = window_of(trace, warm_up)
    starts, tokens = np.asarray(trace.starts), np.asarray(trace.tokens)[warm_up:]
    found = np.minimum(leading(hits, starts)[warm_up:] * trace.block, tokens)
    return HitRatios(
        block=float(hits[first:].mean()),
        token=float(found.sum() / tokens.sum()),
        request=float((found / tokens).mean()),
        requests=len(tokens),
        accesses=len(hits) - first,
        tokens=int(tokens.sum()),
        cold=int(cold(trace)[first:].sum()),
        warm_up=warm_up,
    )


def leading(hits: Bool[np.ndarray, " accesses"], starts: Int[np.ndarray, " ends"]) -> Int[np.ndarray, " requests"]:
    """How many blocks each request finds before the first that it misses."""
    misses = np.append(np.flatnonzero(~hits), len(hits))
    first = misses[np.searchsorted(misses, starts[:-1])]
    return np.minimum(first, starts[1:]) - starts[:-1]
