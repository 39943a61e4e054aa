"""The one idea: a policy scores what is in memory, `select` keeps what fits the budget, and a run is its expiry.

An evicted entry never returns, so a whole run is one integer per entry, its expiry: the first query that no longer
sees it. `mask(expiry)` is at once the truth about the run, an attention mask and the picture on the screen.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from html import escape
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .view import View

Stats = Mapping[str, Tensor]  # a policy's own columns, each (heads, n), kept aligned with the entries by the host

PREPARED_BY = {
    "future": "a replay of a record",
    "pre_rope": "a model whose rotary embedding can be taken off, or its record, and original positions",
    "output_projection": "a model whose output projections are found, or its record",
    "second_pass": "fm.prefill, or a record made with second_pass=True",
}
_LATER = torch.tensor(torch.iinfo(torch.int64).max)  # behind every position


class BudgetError(ValueError):
    """The budget cannot hold what must be held."""


class Policy(ABC):
    """Scores the entries of a memory. Subclass it as a frozen dataclass with one method, `score`.

    A policy is pure: it may change neither itself, nor the view, nor the columns it is given. What it wants to remember
    about an entry it returns from `observe` as columns; the host keeps them aligned with the entries and drops them
    with the entries.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    """What a host must prepare (`future`, `pre_rope`, `output_projection`, `second_pass`). A host that cannot, raises."""
    listed: ClassVar[bool] = True
    """Whether it is one to choose from; False for what a host puts together itself."""

    def observe(self, view: View, stats: Stats) -> Stats:
        """Return the columns to remember, each (heads, n). Entries that came with this call arrive as zeros."""
        return stats

    @abstractmethod
    def score(self, view: View, stats: Stats) -> Float[Tensor, "heads n"]:
        """Return (heads, n): higher is kept, inf is pinned."""

    def _repr_html_(self) -> str:
        about = (inspect.getdoc(type(self)) or "").split("\n")[0]
        return f"<code>{escape(repr(self))}</code> {escape(about)}"


def living_policies(offered: frozenset[str] | None = None) -> list[type[Policy]]:
    """Every concrete Policy class alive in this process that is `listed`, in order of name; a class defined again appears
    once, the newest.

    With `offered` only those which a host with these preparations can serve, by what their class `needs`.
    """
    found, waiting = {}, [Policy]
    while waiting:
        children = waiting.pop().__subclasses__()
        waiting += children
        found |= {(c.__module__, c.__qualname__): c for c in children if c.listed and not inspect.isabstract(c)}
    able = [c for c in found.values() if offered is None or _served(c, offered)]
    return sorted(able, key=lambda c: c.__name__)


def _served(kind: type[Policy], offered: frozenset[str]) -> bool:
    """Whether what a class needs is offered; of one whose needs hang on its fields, with its defaults, if it has them."""
    if not isinstance(kind.needs, property):
        return frozenset(kind.needs) <= offered
    declared = fields(kind) if is_dataclass(kind) else ()
    required = [f for f in declared if f.init and f.default is MISSING and f.default_factory is MISSING]
    return not required and kind().needs <= offered


def within(policy: Policy) -> Iterator[Policy]:
    """The policy and, where it wraps others, these and what they wrap."""
    yield policy
    for field in fields(policy) if is_dataclass(policy) else ():
        if isinstance(inner := getattr(policy, field.name), Policy):
            yield from within(inner)


def check_budget(budget: int) -> int:
    """Return a budget that is an int of at least 1; raise TypeError or BudgetError otherwise."""
    if isinstance(budget, bool) or not isinstance(budget, int):
        raise TypeError(f"budget {budget!r} is no int; give the number of entries that a KV head may hold")
    if budget < 1:
        raise BudgetError(f"budget {budget} < 1; a head must hold at least one entry")
    return budget


class Allocation:
    """Shares a budget out over layers and heads. Subclass it as a frozen dataclass with a field `budget`.

    `budget` is the average number of entries a KV head, `at` that of a layer, `split` the share of each of its heads. The
    heads of a layer together never hold more than their number times `at` between calls.
    """

    budget: int

    def at(self, layer: int, total: int) -> int:
        """Entries a KV head of this layer may hold on average, in a model of `total` layers; what a policy is shown as
        its budget."""
        return self.budget

    def split(self, scores: Float[Tensor, "heads n"], layer: int, total: int) -> Int[Tensor, " heads"]:
        """How many entries each KV head of this layer of one sequence may hold, (heads,) int64, each at least 1: `at`.

        Asked at every eviction: when the heads of the layer together hold more than their number times `at`. `scores` are
        the policy's, -inf where a head holds fewer than n entries; an entry that is there scores more than that.
        """
        return torch.full((len(scores),), self.at(layer, total), dtype=torch.int64, device=scores.device)

    @property
    def even(self) -> bool:
        """Whether the heads of a layer always get equal shares, so that a host need not ask `split`."""
        return type(self).split is Allocation.split


def check_allocation(budget: int | Allocation, layers: int) -> int | Allocation:
    """Return a budget for a model of so many layers: an int of at least 1 or an Allocation that fits it.

    Raises TypeError, BudgetError, or what the allocation says of a model of another depth.
    """
    if not isinstance(budget, Allocation):
        return check_budget(budget)
    for layer in range(layers):
        check_budget(budget.at(layer, layers))
    return budget


def held_before_eviction(budget: int | Allocation, layers: int) -> int:
    """How many tokens a model of so many layers has seen when it is about to evict for the first time."""
    return min(budget.at(n, layers) for n in range(layers)) if isinstance(budget, Allocation) else budget


def check_needs(policy: Policy, offered: frozenset[str], host: str) -> None:
    """Raise where a policy needs something that this host cannot prepare."""
    if not isinstance(policy, Policy):
        raise TypeError(f"{policy!r} is no Policy; pass an instance, such as fm.policies.SinkWindow(sinks=4)")
    if missing := sorted(policy.needs - offered):
        able = " and ".join(PREPARED_BY.get(name, f"a host of your own for {name}") for name in missing)
        raise ValueError(f"{policy!r} needs {', '.join(missing)}, which {host} cannot prepare; it takes {able}")


def select(
    scores: Float[Tensor, "heads n"],
    budget: int | Int[Tensor, " heads"],
    positions: Int[Tensor, "heads n"] | None = None,
) -> Bool[Tensor, "heads n"]:
    """Which entries to keep: the `budget` best of each head. Ties go to the larger position, never to slot order.

    `budget` is one for all heads or one a head. Without `positions` the entries stand in the order of their positions.
    Raises BudgetError where more entries are pinned (scored inf) than the budget holds, ValueError where a score is NaN.
    """
    heads, n = scores.shape
    limit = budget[:, None] if isinstance(budget, Tensor) else check_budget(budget)
    if positions is None:
        positions = torch.arange(n, device=scores.device).expand(heads, n)
    check_scores(scores, budget, positions)
    if not isinstance(budget, Tensor) and n <= budget:
        return torch.ones_like(scores, dtype=torch.bool)
    newest_first = positions.argsort(dim=-1, descending=True)
    best_first = scores.gather(-1, newest_first).argsort(dim=-1, descending=True, stable=True)
    kept = (torch.arange(n, device=scores.device) < limit).expand(heads, n)
    return torch.empty_like(kept).scatter_(-1, newest_first.gather(-1, best_first), kept)


def weakest(scores: Float[Tensor, "heads n"], positions: Int[Tensor, "heads n"]) -> Int[Tensor, "heads 1"]:
    """The one entry a head loses when it is a single entry over budget: what `select` drops at budget n - 1, in O(n)."""
    lowest = scores.amin(-1, keepdim=True)
    if not all(
        low < torch.inf for (low,) in lowest.tolist()
    ):  # a NaN, or nothing but pinned entries: find out and say it
        check_scores(scores, scores.shape[-1] - 1, positions)
    return torch.where(scores == lowest, positions, _LATER.to(positions.device)).argmin(-1, keepdim=True)


def check_scores(
    scores: Float[Tensor, "heads n"], budget: int | Int[Tensor, " heads"], positions: Int[Tensor, "heads n"]
) -> None:
    """Raise ValueError where a score is NaN and BudgetError where more is pinned than the budget holds."""
    check_numbers(scores, positions)
    pinned = (scores == torch.inf).sum(-1)
    if bool((pinned > budget).any()):
        row = int((pinned - budget).argmax())
        holds = int(budget[row]) if isinstance(budget, Tensor) else budget
        raise BudgetError(f"budget {holds} < {int(pinned[row])} pinned entries; raise the budget or pin fewer")


def check_numbers(scores: Float[Tensor, "heads n"], positions: Int[Tensor, "heads n"]) -> None:
    """Raise ValueError where a score is NaN."""
    if (bad := scores.isnan()).any():
        row, column = bad.nonzero()[0].tolist()
        raise ValueError(
            f"score of position {int(positions[row, column])} is NaN (row {row} of the heads axis); "
            "return a number for every entry, -inf for one that may go first"
        )


def step(policy: Policy, stats: Stats, view: View, budget: int) -> tuple[Stats, Int[Tensor, "heads excess"] | None]:
    """One turn of any host: let the policy observe, then, if a head holds more than `budget`, choose what it loses.

    Returns the policy's columns for all n entries and the indices of the entries to evict, (heads, n - budget), or
    None where nothing is to be evicted. Raises TypeError or ValueError where the policy breaks its contract.
    """
    observed, scores = ask(policy, stats, view, view.positions.shape[1] > budget)
    if scores is None:
        return observed, None
    heads, n = scores.shape
    try:
        if n == budget + 1:
            return observed, weakest(scores, view.positions)
        lost = ~select(scores, budget, view.positions)
    except (BudgetError, ValueError) as error:
        raise type(error)(f"{policy!r}: {error}") from None
    return observed, lost.nonzero()[:, 1].view(heads, n - budget)


def ask(policy: Policy, stats: Stats, view: View, over: bool) -> tuple[Stats, Float[Tensor, "heads n"] | None]:
    """Let the policy observe and, where the memory is `over` its budget, score; else the scores are None.

    Returns the policy's columns for all n entries and the scores, -inf for what the model's own sliding window hides
    from every later query: that goes first. Raises TypeError or ValueError where the policy breaks its contract.
    """
    versions = {name: column._version for name, column in stats.items()}
    heads, n = view.positions.shape
    observed, scores = policy.observe(view, stats), None
    _check_columns(policy, observed, heads, n)
    if over:
        scores = policy.score(view, observed)
        _check_shape(policy, "score", scores, heads, n)
        if view.window is not None:
            scores = scores.masked_fill(view.age >= view.window[:, None] - 1, -torch.inf)
    changed = view.changed() + [
        f"stats[{name!r}]" for name, column in stats.items() if column._version != versions[name]
    ]
    if changed:
        raise ValueError(f"{policy!r} changed {', '.join(changed)} in place; a policy must be pure, so work on a clone")
    return observed, scores


def _check_columns(policy: Policy, stats: object, heads: int, n: int) -> None:
    if not isinstance(stats, Mapping):
        raise TypeError(f"{policy!r}.observe returned {type(stats).__name__}; return a dict of (heads, n) tensors")
    for name, column in stats.items():
        _check_shape(policy, f"observe()[{name!r}]", column, heads, n)


def _check_shape(policy: Policy, what: str, value: object, heads: int, n: int) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{policy!r}.{what} is {type(value).__name__}; return a tensor of shape ({heads}, {n})")
    if value.shape != (heads, n):
        raise ValueError(
            f"{policy!r}.{what} has shape {tuple(value.shape)}; the view asks for (heads, n) = ({heads}, {n})"
        )
    if what == "score" and not value.is_floating_point():
        raise TypeError(f"{policy!r}.score is {value.dtype}; return floating-point scores, such as scores.float()")


def mask(expiry: Int[Tensor, "*heads tokens"]) -> Bool[Tensor, "*heads tokens tokens"]:
    """Which entry each query sees: True at [..., i, j] where `j <= i < expiry[..., j]`."""
    at = torch.arange(expiry.shape[-1], device=expiry.device)
    return (at <= at[:, None]) & (at[:, None] < expiry[..., None, :])
