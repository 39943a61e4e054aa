import inspect
import re
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmlab.contract import example
from fmlab.core import (
    BudgetError,
    Policy,
    check_budget,
    check_needs,
    living_policies,
    mask,
    select,
    step,
    weakest,
    within,
)
from fmlab.policies import ChunkKV, Pinned, SinkWindow

SCORES = st.sampled_from([-torch.inf, -1.0, 0.0, 0.0, 1.0, 2.5, torch.inf])  # few values, so that ties are common


@st.composite
def memories(draw):
    """Scores and positions of a few heads, the entries in any slot order, and a budget that may exceed them."""
    heads, n = draw(st.integers(1, 3)), draw(st.integers(1, 10))
    scores = [draw(st.lists(SCORES, min_size=n, max_size=n)) for _ in range(heads)]
    places = [draw(st.permutations(range(0, 3 * n, 3))) for _ in range(heads)]
    return torch.tensor(scores), torch.tensor(places), draw(st.integers(1, n + 2))


def kept_by_hand(scores, places, budget):
    """The positions that one head keeps: best score first, of equals the larger position."""
    ranked = sorted(zip(scores, places, strict=True), reverse=True)
    return {place for _, place in ranked[:budget]}


@settings(max_examples=300, deadline=None)
@given(memories())
def test_select_keeps_the_best_of_each_head(memory):
    scores, places, budget = memory
    if int((scores == torch.inf).sum(-1).max()) > budget:
        with pytest.raises(BudgetError, match=rf"budget {budget} < \d+ pinned entries; raise the budget or pin fewer"):
            select(scores, budget, places)
        return
    kept = select(scores, budget, places)
    for row in range(len(scores)):
        assert set(places[row][kept[row]].tolist()) == kept_by_hand(scores[row].tolist(), places[row].tolist(), budget)
        alone = select(scores[row : row + 1], budget, places[row : row + 1])
        assert torch.equal(kept[row : row + 1], alone)  # no head looks at another


@settings(max_examples=100, deadline=None)
@given(memories(), st.randoms())
def test_select_does_not_see_the_slot_order(memory, random):
    scores, places, budget = memory
    order = list(range(scores.shape[1]))
    random.shuffle(order)
    scores = scores.masked_fill(scores == torch.inf, 3.0)
    assert torch.equal(select(scores[:, order], budget, places[:, order]), select(scores, budget, places)[:, order])


def test_without_positions_the_entries_stand_in_order():
    assert select(torch.zeros(2, 5), 2).tolist() == [[False, False, False, True, True]] * 2


@settings(max_examples=200, deadline=None)
@given(memories())
def test_weakest_is_what_select_drops_at_one_less(memory):
    scores, places, _ = memory
    n = scores.shape[1]
    if n == 1 or (scores == torch.inf).all(-1).any():
        with pytest.raises((BudgetError, ValueError)):
            weakest(scores.fill_(torch.inf), places)
        return
    dropped = ~select(scores, n - 1, places)
    assert dropped.sum() == len(scores) and dropped.gather(1, weakest(scores, places)).all()


@pytest.mark.parametrize("choose", [lambda s, p: select(s, 2, p), lambda s, p: select(s, 9, p), weakest])
def test_nan_is_refused_and_its_position_named(choose):
    scores, places = torch.zeros(3, 4), torch.tensor([7, 5, 3, 1]).expand(3, 4)
    scores[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"position 5 is NaN \(row 2.*return a number.*-inf"):
        choose(scores, places)


@pytest.mark.parametrize(
    ("budget", "error", "says"),
    [
        (0, BudgetError, "budget 0 < 1; a head must hold at least one"),
        (-3, BudgetError, "budget -3 < 1"),
        (True, TypeError, "budget True is no int"),
        (64.0, TypeError, "budget 64.0 is no int; give the number of entries"),
        ("64", TypeError, "budget '64' is no int"),
        (None, TypeError, "budget None is no int"),
    ],
)
def test_wrong_budgets(budget, error, says):
    with pytest.raises(error, match=says):
        inspect.unwrap(check_budget)(budget)  # as users call it, without our check of annotations
    with pytest.raises((error, TypeError)):
        select(torch.zeros(1, 3), budget)


def test_a_class_is_no_policy_and_needs_are_refused_on_entry():
    with pytest.raises(TypeError, match=r"is no Policy; pass an instance, such as fm.policies.SinkWindow\(sinks=4\)"):
        inspect.unwrap(check_needs)(SinkWindow, frozenset(), "a replay")

    @dataclass(frozen=True)
    class Prophet(SinkWindow):
        needs = frozenset({"future", "pre_rope"})

    with pytest.raises(
        ValueError,
        match=r"Prophet\(sinks=4\) needs pre_rope, which a live model cannot prepare; it takes a model whose",
    ):
        check_needs(Prophet(), frozenset({"future"}), "a live model")
    assert check_needs(Prophet(), Prophet.needs, "an oracle") is None


def policy(score=None, observe=None) -> Policy:
    """A policy of two functions."""

    class Given(Policy):
        def __repr__(self):
            return "Given()"

        def observe(self, view, stats):
            return observe(view, stats) if observe else stats

        def score(self, view, stats):
            return score(view, stats) if score else -view.age.float()

    return Given()


def first(view, value):
    scores = -view.age.float()
    scores[0, 0] = value
    return scores


@pytest.mark.parametrize(
    ("broken", "error", "says"),
    [
        (policy(score=lambda v, s: None), TypeError, r"score is NoneType; return a tensor of shape \(4, 9\)"),
        (policy(score=lambda v, s: [0.0] * 9), TypeError, "score is list"),
        (
            policy(score=lambda v, s: torch.zeros(9)),
            ValueError,
            r"shape \(9,\); the view asks for \(heads, n\) = \(4, 9\)",
        ),
        (policy(score=lambda v, s: torch.zeros(4, 8)), ValueError, r"score has shape \(4, 8\)"),
        (
            policy(score=lambda v, s: -v.age),
            TypeError,
            r"score is torch.int64; return floating-point.*scores.float\(\)",
        ),
        (policy(score=lambda v, s: v.age > 2), TypeError, "score is torch.bool"),
        (policy(score=lambda v, s: first(v, torch.nan)), ValueError, r"Given\(\): score of position 0 is NaN"),
        (policy(score=lambda v, s: first(v, 0.0).fill_(torch.inf)), BudgetError, r"Given\(\): budget \d < 9 pinned"),
        (policy(observe=lambda v, s: v.age), TypeError, "observe returned Tensor; return a dict"),
        (policy(observe=lambda v, s: None), TypeError, "observe returned NoneType; return a dict"),
        (policy(observe=lambda v, s: {"x": 3}), TypeError, r"observe\(\)\['x'\] is int"),
        (policy(observe=lambda v, s: {"x": v.age[:, 1:]}), ValueError, r"observe\(\)\['x'\] has shape \(4, 8\)"),
    ],
)
@pytest.mark.parametrize("budget", [8, 5])  # one entry over budget takes another way than several
def test_a_policy_that_breaks_its_contract(broken, error, says, budget):
    with pytest.raises(error, match=says):
        step(broken, {}, example(entries=9, new=9), budget)


WRITES = {
    "positions": lambda view: view.positions.add_(1),
    "keys": lambda view: view.keys[0].zero_(),
    "values": lambda view: view.values.mul_(2),
    "queries": lambda view: view.queries.detach().add_(1),
    "age": lambda view: view.age.clamp_(max=3),
    "weights(1)": lambda view: view.weights(1).fill_(0),
    "budget": lambda view: view.budget.sub_(1),
    "layer": lambda view: view.layer.zero_(),
    "head": lambda view: view.head.zero_(),
    "sequence": lambda view: view.sequence.add_(1),
}


@pytest.mark.parametrize("method", ["score", "observe"])
@pytest.mark.parametrize("written", WRITES)
def test_writing_to_the_view_is_caught(written, method):
    def write(view, stats):
        WRITES[written](view)
        return -view.positions.float() if method == "score" else stats

    says = rf"changed .*\b{re.escape(written)}.* in place; a policy must be pure, so work on a clone"
    with pytest.raises(ValueError, match=says):
        step(policy(**{method: write}), {}, example(entries=9, new=4), 8)


def test_writing_to_the_columns_is_caught():
    def write(view, stats):
        stats["seen"].add_(1)
        return dict(stats)

    columns = {"seen": torch.zeros(4, 9), "other": torch.zeros(4, 9)}
    with pytest.raises(ValueError, match=r"changed stats\['seen'\] in place"):
        step(policy(observe=write), columns, example(entries=9, new=4), 8)


def test_step_evicts_only_over_budget_and_then_exactly_the_excess():
    oldest_first = policy(observe=lambda v, s: {"age": v.age.float()})
    for budget, lost in ((9, None), (20, None), (8, [[0]] * 4), (6, [[0, 1, 2]] * 4)):
        stats, evicted = step(oldest_first, {}, example(entries=9, new=9), budget)
        assert stats.keys() == {"age"}
        assert (evicted is None) if lost is None else evicted.tolist() == lost


def test_a_policy_is_not_asked_for_scores_while_all_fits():
    def never(view, stats):
        raise AssertionError("asked though nothing is to be evicted")

    assert step(policy(score=never), {}, example(entries=9, new=9), 9) == ({}, None)


def test_mask_is_what_each_query_sees():
    expiry = torch.tensor([[2, 4, 3, 5]])  # the first entry is gone after query 1, the third after its own query
    seen = mask(expiry)[0]
    assert [[j for j in range(4) if seen[i, j]] for i in range(4)] == [[0], [0, 1], [1, 2], [1, 3]]


def test_a_class_defined_again_appears_once_the_newest():
    def define(number):
        @dataclass(frozen=True)
        class Twice(Policy):
            """Defined in a cell."""

            version = number

            def score(self, view, stats):
                return -view.age.float()

        return Twice

    old, new = define(1), define(2)
    living = living_policies()
    assert new in living and old not in living and Policy not in living
    assert [c.__name__ for c in living] == sorted(c.__name__ for c in living)


def test_a_policy_shows_itself():
    assert SinkWindow(3)._repr_html_().startswith("<code>SinkWindow(sinks=3)</code> StreamingLLM")

    @dataclass(frozen=True)
    class Escaped(SinkWindow):
        """Keep <b>all</b>."""

        name: str = "<script>"

    html = Escaped()._repr_html_()
    assert "&lt;script&gt;" in html and "&lt;b&gt;all" in html and "<script>" not in html


def test_what_a_policy_is_made_of():
    inner = Pinned(SinkWindow(3))
    assert list(within(ChunkKV(inner))) == [ChunkKV(inner), inner, SinkWindow(3)]

    class Plain(Policy):
        def score(self, view, stats):
            return -view.age.float()

    plain = Plain()
    assert list(within(plain)) == [plain]


def test_who_can_be_served_is_known_without_making_what_cannot_be_made():
    @dataclass(frozen=True)
    class Around(Policy):
        """Needs what it wraps needs, and has no default."""

        policy: Policy

        @property
        def needs(self):
            return self.policy.needs

        def score(self, view, stats):
            return self.policy.score(view, stats)

    class Demanding(SinkWindow):
        needs = frozenset({"future"})

    assert {Around, Demanding} <= set(living_policies())
    served = living_policies(frozenset({"pre_rope"}))
    assert not {Around, Demanding} & set(served) and {ChunkKV, SinkWindow} <= set(served)
