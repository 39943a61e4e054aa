"""The replay of any policy on a trace without the model, all layers and heads at once."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from .core import Allocation, BudgetError, Policy, Stats, check_allocation, check_needs, held_before_eviction
from .ragged import Ragged, joined
from .slots import Slots, split
from .trace import Trace
from .view import View

Watch = Callable[[View, Stats], None]
REVIEWED = 64  # queries whose attention is computed at a time


@torch.inference_mode(False)
@torch.no_grad()
def replay(
    trace: Trace,
    policy: Policy,
    budget: int | Allocation,
    prefill: int | Sequence[int] = 1,
    progress: Callable[[int], None] | None = None,
    watch: Watch | None = None,
) -> Int[Tensor, "layers kv_heads tokens"]:
    """Run a policy over a trace, every layer and head at once, and return the expiry of each token.

    The first call brings `prefill` tokens (a tuple: the sizes of the first calls), then one by one. Evicted after query
    t: t + 1; still held at the end: T + 1. Attention is computed over the survivors, from the recorded queries and keys:
    exact at layer 0, up to ties and the precision of the trace; above it an approximation, since a live model's own
    queries and keys would change with what it forgot. `progress` is called with the tokens done and may raise to cancel;
    `watch` with what the policy was shown, and its columns, at every call that evicts, before it does.
    """
    layers = _depth(trace, budget)
    check_allocation(budget, layers)
    check_needs(policy, trace.offers, f"a replay of {trace!r}")
    if isinstance(budget, Allocation) and budget.even:
        return _by_layers(trace, policy, budget, layers, prefill, progress, watch)
    calls = split(len(trace), prefill)
    if type(policy).observe is Policy.observe:  # nothing is evicted or remembered before the budget is full
        calls = _join(calls, held_before_eviction(budget, layers))
    if isinstance(budget, Allocation):
        slots = Ragged(trace.bag(), budget, layers, window=trace.window())
    else:
        slots = Slots(trace.bag(), budget, window=trace.window())
    turn = _turn_apart if isinstance(slots, Ragged) else _turn
    recorded = _Recorded(trace, policy)
    done = 0
    for new in calls:
        turn(policy, slots, recorded, slice(done, done + new), watch)
        done += new
        if progress is not None and (done % 64 == 0 or done == len(trace)):
            progress(done)
    return slots.expiry().view(len(trace.layers), trace.kv_heads, len(trace))


def _by_layers(trace: Trace, policy: Policy, budget: Allocation, layers: int, prefill, progress, watch) -> Tensor:
    """A replay in which the heads of a layer have equal shares: the layers of equal shares together, one after another."""
    shares = [budget.at(layer, layers) for layer in trace.layers]
    expiry = torch.empty(len(shares), trace.kv_heads, len(trace), dtype=torch.int64)
    different = list(dict.fromkeys(shares))
    for turn, share in enumerate(different):
        at = [place for place, other in enumerate(shares) if other == share]

        def told(done: int, turn: int = turn) -> None:
            progress((turn * len(trace) + done) // len(different))

        try:
            expiry[at] = replay(trace.only(at), policy, share, prefill, progress and told, watch)
        except BudgetError as error:
            raise BudgetError(f"{error}; it is what {budget!r} gives layer {trace.layers[at[0]]}") from None
    return expiry


class _Recorded:
    """A trace as the turns of a replay read it: one row a KV head, all layers after one another."""

    def __init__(self, trace: Trace, policy: Policy):
        self.trace, self.needs = trace, policy.needs
        self.flat = {name: getattr(trace, name).flatten(0, 1) for name in ("queries", "keys", "values")}
        self.foresight = Foresight(trace) if "future" in policy.needs else None

    def vectors(self, name: str) -> Tensor:
        """(heads, tokens, d) of one name; keys before RoPE are made when first asked for."""
        if name not in self.flat:
            keys = self.flat["keys"].float()
            self.flat[name] = self.trace.rope.unrotate(keys, torch.arange(keys.shape[1]).expand(keys.shape[:2]))
        return self.flat[name]

    def arguments(self, at: slice, rows: slice | list[int], positions: Callable[[], Tensor]) -> dict:
        """What `View` is given of the entries that arrive `at` these tokens, for some of the rows."""
        trace, flat = self.trace, self.flat
        queries = flat["queries"].unflatten(0, (-1, trace.groups))
        prepared = {
            "future": lambda: self.foresight.of(positions(), at.stop, rows),
            "pre_rope": lambda: trace.rope,
            "output_projection": lambda: trace.output_norms.flatten(0, 1)[rows, at].float(),
            "second_pass": lambda: trace.repeated.flatten(0, 1)[rows, at].float(),
        }
        return {
            "scaling": trace.scaling,
            "softcap": trace.softcap,
            "query_aware": trace.query_aware,
            "queries": lambda: queries[rows, :, at].flatten(0, 1).float(),
            "new_keys": lambda: flat["keys"][rows, at].float(),
            "new_values": lambda: flat["values"][rows, at].float(),
            "prepared": {name: prepared[name] for name in self.needs},
        }


def _turn(policy: Policy, slots: Slots, recorded: _Recorded, at: slice, watch: Watch | None) -> None:
    """One call of a replay: all heads hold equally many entries."""
    slots.stage(at.stop - at.start, **{name: recorded.vectors(name)[:, at].float() for name in slots.data})
    view = slots.view(
        keys=lambda: _column(slots, recorded, "keys"),
        values=lambda: _column(slots, recorded, "values"),
        pre_rope_keys=lambda: _column(slots, recorded, "pre_rope_keys"),
        **recorded.arguments(at, slice(None), slots.staged_positions),
    )
    stats, evicted = slots.choose(policy, view)
    if watch is not None and evicted is not None:
        watch(view, stats)
    slots.settle(stats, evicted)


def _turn_apart(policy: Policy, slots: Ragged, recorded: _Recorded, at: slice, watch: Watch | None) -> None:
    """The same where they do not; what they hold is read off the trace."""
    flat = recorded.flat
    slots.stage(at.stop - at.start)

    def show(rows: list[int], positions: Tensor) -> dict:
        row = torch.tensor(rows)[:, None]
        return {
            "keys": lambda: flat["keys"][row, positions].float(),
            "values": lambda: flat["values"][row, positions].float(),
            **recorded.arguments(at, rows, lambda: positions),
        }

    parts = slots.parts(show)
    chosen = slots.choose(policy, parts)
    for part in parts if watch is not None else []:
        if any(chosen[row].evicted is not None for row in part.rows):
            watch(part.view, joined([chosen[row].stats for row in part.rows]))
    slots.settle(chosen)


def _depth(trace: Trace, budget: int | Allocation) -> int:
    """How many layers an allocation shares the budget out over."""
    if trace.depth is None and isinstance(budget, Allocation):
        raise ValueError(
            f"this trace does not say how many layers its model has, which {budget!r} asks; record it again"
        )
    return trace.depth or len(trace.layers)


class Foresight:
    """What entries of a trace will still receive, by taking off the total what has been received."""

    def __init__(self, trace: Trace):
        self._view, self._seen = trace.view(), 0
        self._left = torch.zeros(len(trace.bag()), len(trace), dtype=torch.float64)
        for block in self._view.blocks():
            self._left += self._paid(*block)

    def of(
        self, positions: Int[Tensor, "heads n"], seen: int, rows: slice | list[int] = slice(None)
    ) -> Float[Tensor, "heads n"]:
        """Of the entries at `positions` of these rows, from the queries `seen` and later; `seen` may only grow."""
        for start in range(self._seen, seen, REVIEWED):
            self._left -= self._paid(start, min(start + REVIEWED, seen))
        self._seen = seen
        return self._left[rows].gather(1, positions).clamp(min=0)

    def _paid(self, start: int, stop: int) -> Tensor:
        return self._view.rows(start, stop).mean(1).double().sum(1)


def _column(slots: Slots, recorded: _Recorded, name: str) -> Tensor:
    """The vectors of one name that are held; from the first time a policy asks they are kept up to date by overwriting."""
    if not slots.has(name):
        places, vectors = slots.staged_positions(), recorded.vectors(name)
        index = places[..., None].expand(*places.shape, vectors.shape[-1])
        slots.adopt(name, vectors.gather(1, index).float())
    return slots.staged(name)


def _join(calls: list[int], budget: int) -> list[int]:
    """The same calls with the first of them, as many as fit the budget together, made one."""
    total = count = 0
    while count < len(calls) and total + calls[count] <= budget:
        total += calls[count]
        count += 1
    return [total] * (total > 0) + calls[count:]
