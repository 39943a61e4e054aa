"""What a run kept: attention-mass recall, retention by third, presence of a fact, footprint, all read off the expiry."""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .oracle import oracle
from .slots import split
from .trace import Trace

CUMULATIVE_NBYTES = 1 << 29  # up to here `Received` keeps the cumulative attention of a trace


def seen_mass(trace: Trace, expiry: Int[Tensor, "layers kv_heads tokens"]) -> Float[Tensor, "layers kv_heads tokens"]:
    """Share of each query's full-cache softmax mass that lies on entries it still sees, mean over the query heads of a
    KV head. Raises ValueError where the expiry does not belong to the trace."""
    check_expiry(trace, expiry)
    view, rows = trace.view(), expiry.flatten(0, 1)
    seen = torch.empty(rows.shape, dtype=torch.float64)
    for start, stop in view.blocks():
        at = torch.arange(start, stop)
        lost = at[None, :, None] >= rows[:, None, :]  # (heads, queries, entries)
        seen[:, start:stop] = view.rows(start, stop).mean(1).masked_fill_(lost, 0).sum(-1)
    return seen.view(expiry.shape)


def mass_recall(trace: Trace, expiry: Int[Tensor, "layers kv_heads tokens"]) -> Float[Tensor, "layers kv_heads"]:
    """Attention-mass recall: the mean over all queries of the share of the full softmax mass on what they still see."""
    return seen_mass(trace, expiry).mean(-1)


def paid_between(
    trace: Trace,
    start: Int[Tensor, "layers kv_heads tokens"],
    stop: Int[Tensor, "layers kv_heads tokens"],
) -> Float[Tensor, "layers kv_heads tokens"]:
    """Full-cache attention that each entry receives from the queries `start` up to, not including, `stop`, over all
    queries: between the expiries of two runs what the later one sees of it and the earlier one has lost.

    Its sum over the entries, minus the same with the two runs exchanged, is the difference in mass recall.
    """
    view, first, last = trace.view(), start.flatten(0, 1), stop.flatten(0, 1)
    paid = torch.zeros(first.shape, dtype=torch.float64)
    for begin, end in view.blocks():
        at = torch.arange(begin, end)[None, :, None]
        missing = (at < first[:, None]) | (at >= last[:, None])  # (heads, queries, entries)
        paid += view.rows(begin, end).mean(1).masked_fill_(missing, 0).sum(1)
    return (paid / len(trace)).view(start.shape)


def regret(
    trace: Trace, expiry: Int[Tensor, "layers kv_heads tokens"], budget: int, prefill: int | Sequence[int] = 1
) -> Float[Tensor, "layers kv_heads"]:
    """Mass recall of the exact optimum under this budget minus that of the run; `prefill` as the run had it.

    Never negative, up to rounding, for a run that keeps the budget. Raises ValueError for one that does not.
    """
    check_expiry(trace, expiry)
    for call in itertools.accumulate(split(len(trace), prefill)):
        held = int((expiry[..., :call] > call).sum(-1).max())
        if held > budget:
            raise ValueError(f"this run holds {held} entries after {call} tokens; give the budget that it was run with")
    return mass_recall(trace, oracle(trace, budget, prefill)) - mass_recall(trace, expiry)


class Received:
    """The attention that each entry of a trace has received up to each query, so that the mass recall of any run is one
    look-up an entry: milliseconds, for a slider.

    Traces whose cumulative attention exceeds `limit_nbytes` are summed anew at every call; `fast` tells which.
    """

    def __init__(self, trace: Trace, limit_nbytes: int = CUMULATIVE_NBYTES):
        self.trace = trace
        heads, tokens = len(trace.bag()), len(trace)
        self.fast = heads * (tokens + 1) * tokens * 4 <= limit_nbytes
        if self.fast:
            view = trace.view()
            upto = torch.zeros(heads, tokens + 1, tokens)  # [h, i, j]: what j received from the queries before i
            for start, stop in view.blocks():
                upto[:, start + 1 : stop + 1] = view.rows(start, stop).mean(1)
            self._upto = upto.cumsum_(1)

    def mass_recall(self, expiry: Int[Tensor, "layers kv_heads tokens"]) -> Float[Tensor, "layers kv_heads"]:
        """As the function of the same name."""
        if not self.fast:
            return mass_recall(self.trace, expiry)
        check_expiry(self.trace, expiry)
        until = expiry.flatten(0, 1).clamp(max=len(self.trace))
        received = self._upto.gather(1, until[:, None]).squeeze(1)
        return (received.double().sum(-1) / len(self.trace)).view(expiry.shape[:2])


def present(
    expiry: Int[Tensor, "*heads tokens"], start: int, stop: int, after: int | None = None
) -> Float[Tensor, "*heads"]:
    """Share of the entries `start` to `stop` that each head still holds after `after` queries (at the end of the run)."""
    tokens = expiry.shape[-1]
    after = tokens if after is None else after
    if not 0 <= start < stop <= tokens:
        raise ValueError(f"entries {start} to {stop} of a run of {tokens} tokens; give 0 <= start < stop <= {tokens}")
    if not stop <= after <= tokens:
        raise ValueError(f"after={after} queries; the entries have come after {stop}, and the run has {tokens}")
    return (expiry[..., start:stop] > after).double().mean(-1)


def thirds(expiry: Int[Tensor, "*heads tokens"]) -> tuple[Tensor, Tensor, Tensor]:
    """Retention by third: share of the early, middle and late third of the tokens that each head holds at the end."""
    tokens = expiry.shape[-1]
    if tokens < 3:
        raise ValueError(f"a run of {tokens} tokens has no thirds; give 3 or more")
    cuts = [0, tokens // 3, 2 * tokens // 3, tokens]
    return tuple(present(expiry, start, stop) for start, stop in itertools.pairwise(cuts))


def footprint(expiry: Int[Tensor, "*heads tokens"]) -> Float[Tensor, "*heads"]:
    """KV footprint (arXiv:2506.17121): entries seen, summed over all queries, over those of the full cache, T(T+1)/2."""
    tokens = expiry.shape[-1]
    born = torch.arange(tokens, device=expiry.device)
    seen = (expiry.clamp(max=tokens) - born).double().sum(-1)
    return seen / (tokens * (tokens + 1) / 2)


def check_expiry(trace: Trace, expiry: Tensor) -> None:
    """Raise ValueError where an expiry cannot be of a run over this trace."""
    shape = (len(trace.layers), trace.kv_heads, len(trace))
    if tuple(expiry.shape) != shape:
        raise ValueError(
            f"an expiry of shape {tuple(expiry.shape)} for a trace of (layers, kv_heads, tokens) = {shape}"
        )
    if bool((expiry <= torch.arange(len(trace))).any()):
        raise ValueError("an entry expires before its own query; every query sees itself")
