"""The contract that every policy keeps, as checks that anybody can run on a policy of their own."""

from collections.abc import Callable
from copy import deepcopy
from html import escape

import torch
from torch import Tensor

from .bag import Bag
from .core import BudgetError, Policy, step
from .live import finite
from .masked import masked_logits
from .models import tiny
from .needs import LIVE
from .record import record
from .rerun import replay
from .rope import Rope
from .slots import Slots, split
from .view import View

KNOWN_NEEDS = frozenset({"future", "pre_rope", "output_projection", "second_pass"})
GROUPS = 3  # query heads a KV head: the case that a policy written for one head a head gets wrong
DIMENSION = 8
TEXT = "A memory that forgets must choose, at every step, what it will never see again; and it must choose before it knows."


class ContractError(AssertionError):
    """A policy does not keep the contract."""


class Report(tuple):
    """The checks that a policy passed, in order; `left_out` are those that no live model can run for it."""

    left_out: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "\n".join([f"passed  {line}" for line in self] + [f"left out  {line}" for line in self.left_out])

    def _repr_html_(self) -> str:
        lines = [f"&#10003; {escape(line)}" for line in self] + [f"&ndash; {escape(line)}" for line in self.left_out]
        return "<ul>" + "".join(f"<li>{line}</li>" for line in lines) + "</ul>"


def check(policy: Policy) -> Report:
    """Run every check on a policy; raises ContractError, naming the check, at the first that it fails.

    A policy that needs what no live model can prepare (`future`, `second_pass`) is left out of the live checks.
    """
    passed, left_out = [], []
    for run in CHECKS:
        about = run.__doc__.split("\n")[0]
        if run in LIVE_CHECKS and policy.needs - LIVE:
            left_out.append(f"{about} (it needs {', '.join(sorted(policy.needs - LIVE))})")
            continue
        try:
            run(policy)
        except ContractError as error:
            raise ContractError(f"{policy!r} fails '{about}': {error}") from error
        passed.append(about)
    report = Report(passed)
    report.left_out = tuple(left_out)
    return report


def is_well_formed(policy: Policy) -> None:
    """Well formed: a floating-point number for every entry, columns of the same shape, nothing written to in place."""
    try:
        workable_budget(policy)
    except (TypeError, ValueError) as error:
        raise ContractError(str(error)) from error


def is_pure(policy: Policy) -> None:
    """Pure: the same view gives the same scores, whatever ran before; nothing is changed, no global random number drawn."""
    before, random_state = (repr(policy), deepcopy(vars(policy))), torch.random.get_rng_state()
    results = []
    for _ in range(2):
        view = example(entries=40, new=40)
        stats = policy.observe(view, {})
        policy.score(view, stats)
        later = example(entries=41, new=1, seed=1)
        columns = {name: torch.nn.functional.pad(column, (0, 1)) for name, column in stats.items()}
        kept = {name: column.clone() for name, column in columns.items()}
        results.append(policy.score(later, policy.observe(later, columns)))
        _need(not view.changed() + later.changed(), f"it writes to {view.changed() + later.changed()} of the view")
        _need(all(torch.equal(columns[name], kept[name]) for name in kept), "it writes to the columns it is given")
    _need(torch.equal(*results), "the second result differs from the first")
    _need((repr(policy), vars(policy)) == before, "it changes itself")
    _need(
        torch.equal(torch.random.get_rng_state(), random_state),
        "it draws from torch's global generator; use a seed field",
    )


def declares_what_it_needs(policy: Policy) -> None:
    """Honest: `needs` names only what hosts know to prepare."""
    _need(isinstance(policy.needs, frozenset), f"needs is {policy.needs!r}; give a frozenset")
    _need(policy.needs <= KNOWN_NEEDS, f"needs {sorted(policy.needs - KNOWN_NEEDS)}; known are {sorted(KNOWN_NEEDS)}")


def ignores_slot_order(policy: Policy) -> None:
    """Slot order means nothing: entries in another order get the same scores."""
    first = example(entries=40, new=40)
    stats = policy.observe(first, {})
    view = example(entries=44, new=4, seed=1)
    columns = {name: torch.nn.functional.pad(column, (0, 4)) for name, column in stats.items()}
    order = torch.randperm(44, generator=torch.Generator().manual_seed(2))
    entries = (x[:, order] for x in (view.keys, view.values))
    shuffled = _make(_bag(1), view.positions[:, order], 4, 32, *entries, view.queries)
    straight = policy.score(view, policy.observe(view, columns))[:, order]
    moved = {name: column[:, order] for name, column in columns.items()}
    _close(
        policy.score(shuffled, policy.observe(shuffled, moved)), straight, "scores depend on the order of the entries"
    )


def ignores_other_sequences(policy: Policy) -> None:
    """Nothing leaks between sequences: a batch of two scores each as it would alone."""
    both, alone = example(entries=40, new=40, sequences=2), example(entries=40, new=40)
    rows = len(alone.layer)
    together = policy.score(both, policy.observe(both, {}))[:rows]
    _close(together, policy.score(alone, policy.observe(alone, {})), "another sequence in the batch changes the scores")


def knows_its_query_heads(policy: Policy) -> None:
    """Grouped: three query heads belong to each KV head, and its place among the rows means nothing."""
    view, order = example(entries=40, new=40), torch.tensor([2, 0, 3, 1])
    bag = Bag(view.sequence[order], view.layer[order], view.head[order], GROUPS)
    queries = view.queries.view(len(bag), GROUPS, 40, DIMENSION)[order].flatten(0, 1)
    moved = _make(bag, view.positions, 40, 32, view.keys[order], view.values[order], queries)
    straight = policy.score(view, policy.observe(view, {}))[order]
    _close(
        policy.score(moved, policy.observe(moved, {})), straight, "scores do not move along with the rows of the heads"
    )


def keeps_the_budget(policy: Policy) -> None:
    """Within budget at every step, in prefill chunks and in a thousand evictions; what is pinned stays."""
    budget = workable_budget(policy)
    slots, generator = Slots(_bag(1), budget), torch.Generator().manual_seed(3)
    for new in split(1_000 + budget + 60, (30, 20, 10)):
        data = {name: torch.randn(len(slots.bag), new, DIMENSION, generator=generator) for name in ("keys", "values")}
        queries = torch.randn(len(slots.bag) * GROUPS, new, DIMENSION, generator=generator)
        slots.stage(new, **data)
        view = slots.view(
            scaling=DIMENSION**-0.5,
            keys=lambda: slots.staged("keys"),
            values=lambda: slots.staged("values"),
            queries=lambda queries=queries: queries,
            prepared=_prepared(lambda: slots.staged("keys"), lambda data=data: (data["keys"], data["values"])),
        )
        stats, evicted = slots.choose(policy, view)
        pinned = [set()] * len(slots.bag)
        if evicted is not None:
            places, scores = slots.staged_positions(), policy.score(view, stats)
            pinned = [set(p[s == torch.inf].tolist()) for p, s in zip(places, scores, strict=True)]
        slots.settle(stats, evicted)
        _need(slots.held <= budget, f"{slots.held} entries held under a budget of {budget}")
        for row, must in zip(slots.positions.tolist(), pinned, strict=True):
            _need(must <= set(row), f"pinned positions {sorted(must - set(row))} were evicted")


def keeps_all_at_full_budget(policy: Policy) -> None:
    """A budget of the whole length evicts nothing."""
    trace = record(tiny(), TEXT, dtype=torch.float32, second_pass="second_pass" in policy.needs)
    budget = max(len(trace), workable_budget(policy))
    _need(bool((replay(trace, policy, budget) == len(trace) + 1).all()), "something is evicted though all fits")


@torch.no_grad()
def lives_as_one_masked_pass(policy: Policy) -> None:
    """Live, it gives what one forward pass under the mask of its expiry gives."""
    lm, budget = tiny(), workable_budget(policy)
    ids = lm.ids(TEXT)[None]
    sizes = split(ids.shape[1], (budget + 8, 7))
    with finite(lm.model, policy, budget) as cache:
        logits = [lm.model(input_ids=part, past_key_values=cache).logits for part in ids.split(sizes, 1)]
    _need(bool((cache.expiry <= ids.shape[1]).any()), "nothing was evicted, so nothing was checked")
    _close(
        torch.cat(logits, 1),
        masked_logits(lm.model, ids, cache.expiry),
        "the live run differs from the masked pass",
        1e-3,
    )


@torch.no_grad()
def equals_the_stock_model_at_full_budget(policy: Policy) -> None:
    """With a budget above the length, generation is the stock model's, token for token."""
    lm = tiny()
    ids = lm.ids(TEXT)[None]
    settings = dict(max_new_tokens=8, do_sample=False, attention_mask=torch.ones_like(ids))
    with finite(lm.model, policy, 2 * ids.shape[1] + workable_budget(policy)) as cache:
        ours = lm.model.generate(ids, past_key_values=cache, **settings)
    _need(torch.equal(ours, lm.model.generate(ids, **settings)), "the tokens differ")


@torch.no_grad()
def replays_as_it_lives(policy: Policy) -> None:
    """At layer 0 a replay evicts what the live run evicts."""
    lm, budget = tiny(), workable_budget(policy)
    # no token twice: layer 0 sees the embedding alone, so two of a kind tie, and rounding decides
    ids = torch.randperm(256, generator=torch.Generator().manual_seed(4))[: max(120, budget + 60)]
    with finite(lm.model, policy, budget) as cache:
        for part in ids.split(split(len(ids), 9)):
            lm.model(input_ids=part[None], past_key_values=cache)
    replayed = replay(record(lm, ids, dtype=torch.float32), policy, budget, prefill=9)
    _need(torch.equal(replayed[0], cache.expiry[0]), "the expiries of layer 0 differ")


CHECKS: tuple[Callable[[Policy], None], ...] = (
    is_well_formed,
    is_pure,
    declares_what_it_needs,
    ignores_slot_order,
    ignores_other_sequences,
    knows_its_query_heads,
    keeps_the_budget,
    keeps_all_at_full_budget,
    equals_the_stock_model_at_full_budget,
    lives_as_one_masked_pass,
    replays_as_it_lives,
)

LIVE_CHECKS = frozenset({equals_the_stock_model_at_full_budget, lives_as_one_masked_pass, replays_as_it_lives})


def fits(policy: Policy, budget: int) -> bool:
    """Whether a budget holds what the policy pins."""
    try:
        step(policy, {}, example(entries=2 * budget, new=2 * budget, budget=budget), budget)
    except BudgetError:
        return False
    return True


def workable_budget(policy: Policy) -> int:
    """Twice the first of 4, 6, 8, 12, ... that holds what the policy pins, so that there is something left to choose."""
    for budget in (4, 6, 8, 12, 16, 24, 32, 48, 64):
        if fits(policy, budget):
            return 2 * budget
    raise ContractError(f"{policy!r} pins more than 64 entries of 128")


def example(entries: int, new: int, seed: int = 0, sequences: int = 1, budget: int = 32) -> View:
    """A view of two layers of two KV heads with random keys, values and queries; the entries stand in order of position."""
    bag = _bag(sequences)
    rows, generator = len(bag), torch.Generator().manual_seed(seed)
    draw = lambda heads, n: torch.randn(sequences, heads // sequences, n, DIMENSION, generator=generator)  # noqa: E731
    first = [draw(rows, entries), draw(rows, entries), draw(rows * GROUPS, new)]
    if sequences > 1:  # the first sequence is the one that `sequences=1` draws
        alone = example(entries, new, seed)
        for drawn, same in zip(first, (alone.keys, alone.values, alone.queries), strict=True):
            drawn[0] = same
    keys, values, queries = (drawn.flatten(0, 1) for drawn in first)
    positions = torch.arange(entries).expand(rows, entries).clone()
    return _make(bag, positions, new, budget, keys, values, queries)


def _bag(sequences: int) -> Bag:
    return Bag.of(sequences, [0, 1], 2, GROUPS)


def _make(bag: Bag, positions: Tensor, new: int, budget: int, keys: Tensor, values: Tensor, queries: Tensor) -> View:
    view = View(
        bag, positions, new, torch.full((len(bag),), budget), scaling=DIMENSION**-0.5,
        keys=lambda: keys, values=lambda: values, queries=lambda: queries,
        prepared=_prepared(lambda: keys, lambda: (view.new_keys, view.new_values)),
    )  # fmt: skip
    return view


def _prepared(keys: Callable[[], Tensor], arrived: Callable[[], tuple[Tensor, Tensor]]) -> dict[str, Callable]:
    """Stand-ins for what a policy may need, each a number of the entry's own vectors."""
    return {
        "future": lambda: keys().square().sum(-1),
        "pre_rope": lambda: Rope(0.1 ** torch.arange(DIMENSION // 2)),
        "output_projection": lambda: arrived()[1].abs().sum(-1),
        "second_pass": lambda: arrived()[0].sum(-1).sigmoid(),
    }


def _need(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ContractError(otherwise)


def _close(ours: Tensor, theirs: Tensor, otherwise: str, tolerance: float = 1e-5) -> None:
    _need(ours.shape == theirs.shape, f"{otherwise}: shape {tuple(ours.shape)} against {tuple(theirs.shape)}")
    same = torch.isclose(ours, theirs, rtol=tolerance, atol=tolerance) | (ours == theirs)
    _need(
        bool(same.all()),
        f"{otherwise} by up to {float((ours - theirs)[~same].abs().max()) if not same.all() else 0:.2g}",
    )
