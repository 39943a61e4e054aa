"""Hit ratios over capacities: one pass for all of them where the policy allows it, else a simulation each."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from .eviction import Eviction
from .requests import BLOCK, Accesses, accesses, coarser
from .simulation import accesses_of, check_capacity, check_policy, hits_of, ratios, window_of


@dataclass(frozen=True, eq=False)
class HitCurve:
    """Hit ratios at each capacity (blocks), as `simulate` gives them."""

    capacity: Int[np.ndarray, " capacities"]
    block: Float[np.ndarray, " capacities"]
    token: Float[np.ndarray, " capacities"]
    request: Float[np.ndarray, " capacities"]


def hit_curve(
    requests: Iterable[Mapping[str, Any]] | Accesses,
    policy: Eviction,
    capacities: Sequence[int] | Int[np.ndarray, " capacities"] | None = None,
    *,
    block: int | None = None,
    warm_up: int = 0,
) -> HitCurve:
    """The hit ratios of a trace at every capacity given, equal to those of `simulate`.

    For LRU and Belady one pass yields them all (Mattson et al. 1970), and without `capacities` the curve has every one
    from 1 to that beyond which no more is found. The other policies are simulated at each capacity, so they need a
    list. Raises ValueError for what `simulate` refuses and for capacities that are missing.
    """
    trace = accesses_of(requests, block)
    check_policy(policy)
    distances = policy.distances(trace)
    if capacities is None:
        if distances is None:
            raise ValueError(f"{policy!r} is simulated at each capacity; give them, for instance [1000, 10_000]")
        capacities = range(1, max(int(distances.max()), 1) + 1)
    sizes = np.array([check_capacity(size) for size in capacities], dtype=np.int64)
    if not len(sizes):
        raise ValueError("capacities is empty; give at least one")
    if distances is not None:
        return _at_all(trace, distances, sizes, warm_up)
    points = [ratios(trace, hits_of(trace, policy, int(size)), warm_up) for size in sizes]
    return HitCurve(
        sizes, *(np.array([getattr(point, name) for point in points]) for name in ("block", "token", "request"))
    )


def _at_all(
    trace: Accesses, distances: Int[np.ndarray, " accesses"], sizes: Int[np.ndarray, " capacities"], warm_up: int
) -> HitCurve:
    """A block counts from its own distance on; its tokens from the greatest distance of its request so far."""
    first = window_of(trace, warm_up)
    beyond = len(trace.ids) + 1  # more than any capacity that matters: what misses everywhere
    needed = np.where(distances > 0, distances, beyond)
    starts, tokens = np.asarray(trace.starts), np.asarray(trace.tokens)
    request = np.repeat(np.arange(len(tokens)), np.diff(starts))
    step = request * (beyond + 1)  # so that the greatest so far begins anew with each request
    prefix = np.maximum.accumulate(needed + step) - step
    place = np.arange(len(needed)) - starts[request]
    ends = np.minimum(np.stack([place, place + 1]) * trace.block, tokens[request])
    brings = ends[1] - ends[0]

    def reached(distance: np.ndarray, worth: np.ndarray) -> np.ndarray:
        distance, worth = distance[first:], worth[first:]
        order = np.argsort(distance, kind="stable")
        total = np.concatenate([[0], np.cumsum(worth[order])])
        return total[np.searchsorted(distance[order], np.minimum(sizes, beyond - 1), side="right")]

    return HitCurve(
        sizes,
        reached(needed, np.ones(len(needed))) / (len(needed) - first),
        reached(prefix, brings) / tokens[warm_up:].sum(),
        reached(prefix, brings / tokens[request]) / (len(tokens) - warm_up),
    )


def hit_rows(
    requests: Sequence[Mapping[str, Any]],
    policies: Iterable[Eviction],
    capacity_tokens: Iterable[int],
    *,
    block: int = BLOCK,
    factors: Iterable[int] = (1,),
) -> list[dict[str, Any]]:
    """The curves of several policies at several block sizes, a row a point, for a table that a slider reads from.

    `factors` merge that many blocks into one (`coarser`). A capacity is given in tokens, so that block sizes compare, and
    holds as many whole blocks as fit; one that holds none is left out. Raises ValueError for what `simulate` refuses.
    """
    policies, sizes, rows = list(policies), sorted(set(capacity_tokens)), []
    if sizes and sizes[0] < 1:
        raise ValueError(f"capacity_tokens={sizes[0]}; give 1 token or more")
    for factor in factors:
        trace = accesses(coarser(requests, factor), block * factor)
        held = [size for size in sizes if size >= trace.block]
        for policy in policies if held else []:
            curve = hit_curve(trace, policy, [size // trace.block for size in held])
            points = zip(held, curve.capacity, curve.block, curve.token, curve.request, strict=True)
            rows += [
                {
                    "policy": repr(policy), "block_tokens": trace.block, "capacity_tokens": tokens,
                    "capacity": int(blocks), "block": float(by_block), "token": float(by_token),
                    "request": float(by_request),
                }
                for tokens, blocks, by_block, by_token, by_request in points
            ]  # fmt: skip
    return rows
