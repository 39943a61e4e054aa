"""The exact optimum of a trace: the evict-once run of most attention-mass recall under a budget, with its proof.

Take one head. Query t pays A[t, i] to entry i in the full cache, and an entry evicted before query s loses
`loss_i(s) = sum of A[t, i] over t >= s`. A run under a budget must evict a known number of entries after each call, so
it has eviction slots, each with its s; and evict-once means that each slot takes one entry that has arrived, i < s, and
no entry goes twice. Choosing entries for slots at least total loss is therefore the rectangular assignment problem, and
what it leaves over stays to the end. It has no integrality gap: its constraint matrix is that of a bipartite graph,
totally unimodular, so the best run is also the best of all fractional ones. The proof that a solution is optimal is a
price u for each slot and v <= 0 for each entry with u_s + v_i <= loss_i(s): then no assignment costs less than the sum
of all prices (linear programming duality), and the gap between cost and prices is what `oracle` checks on every head.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from .core import check_budget
from .slots import split
from .trace import Trace

GAP = 1e-6  # what a proof may leave open, in units of the attention of one query, which is 1 in all


def oracle(
    trace: Trace,
    budget: int,
    prefill: int | Sequence[int] = 1,
    progress: Callable[[int], None] | None = None,
) -> Int[Tensor, "layers kv_heads tokens"]:
    """The expiry of the best run in hindsight: no evict-once run exceeds it in `metrics.mass_recall`, on any head.

    Every query sees at most `budget` earlier entries, its own call's free, as in `replay` with the same `prefill`.
    Exact: each head's certificate is checked. `progress` is called with the heads done and may raise to cancel.
    """
    check_budget(budget)
    times = eviction_times(len(trace), budget, prefill)
    expiry = torch.full((len(trace.layers), trace.kv_heads, len(trace)), len(trace) + 1)
    if not len(times):
        return expiry
    done = 0
    with ThreadPoolExecutor(cpu_count()) as pool:  # the solver is C++ that lets other threads run
        for layer in range(len(trace.layers)):
            for head, gone in enumerate(pool.map(lambda paid: _solve(paid, times), attention(trace, layer))):
                expiry[layer, head, torch.from_numpy(gone)] = torch.from_numpy(times)
                done += 1
                if progress is not None:
                    progress(done)
    return expiry


def eviction_times(tokens: int, budget: int, prefill: int | Sequence[int] = 1) -> np.ndarray:
    """When a run must evict: for each eviction the first query that no longer sees its entry, in order of time."""
    times, held, seen = [], 0, 0
    for new in split(tokens, prefill):
        held, seen = held + new, seen + new
        times += [seen] * (held - budget)
        held = min(held, budget)
    return np.array(times, dtype=np.int64)


def attention(trace: Trace, layer: int) -> Float[np.ndarray, "kv_heads tokens tokens"]:
    """What each query pays to each entry in the full cache, mean over the query heads of a KV head; `layer` counts the
    recorded layers."""
    view = trace.layer(layer).view()
    return torch.cat([view.rows(*block).mean(1) for block in view.blocks()], 1).numpy()


def _solve(paid: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The entry that each slot evicts. Raises ArithmeticError where it cannot be proved best."""
    loss = losses(paid, times)
    gone = linear_sum_assignment(loss)[1]
    if (gap := certificate(loss, gone)) > GAP:
        raise ArithmeticError(f"the optimum of a head is proved to {gap:.1e} only; its attention may hold NaN")
    return gone


def losses(paid: np.ndarray, times: np.ndarray) -> np.ndarray:
    """(slots, tokens) float64: what is lost of the attention when a slot evicts an entry; inf before it has arrived."""
    tokens = len(paid)
    later = np.zeros((tokens + 1, tokens))
    later[:tokens] = np.cumsum(paid[::-1].astype(np.float64), axis=0)[::-1]
    return np.where(np.arange(tokens) < times[:, None], later[times], np.inf)


def certificate(loss: np.ndarray, gone: np.ndarray) -> float:
    """By how much the assignment of `gone` to the slots can be from the best: cost minus the sum of feasible prices."""
    slot_price, price = prices(loss, gone)
    return float(loss[np.arange(len(gone)), gone].sum() - slot_price.sum() - price.sum())


def prices(loss: np.ndarray, gone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The proof itself: u (slots,) and v <= 0 (tokens,) with u_s + v_i <= loss_i(s), whatever the assignment `gone`.

    They are shortest paths in the graph of exchanges (what it costs to let another entry go instead), and add up to the
    cost exactly if no exchange lowers it; what is infeasible by rounding is taken off u.
    """
    exchange = loss - loss[np.arange(len(gone)), gone][:, None]
    price = np.zeros(loss.shape[1])
    for _ in range(loss.shape[1]):
        lower = np.minimum(price, (price[gone][:, None] + exchange).min(0))
        if np.array_equal(lower, price):
            break
        price = lower
    return (loss - price).min(1), price  # feasible whatever `price` is, as long as it is not positive
