"""How a budget is shared out: sums, floors, and what an allocation may not do."""

import inspect
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fmlab as fm
from fmlab.core import BudgetError, check_allocation, held_before_eviction, select
from fmlab.policies import H2O, Ada, PerLayer, Pyramid, Uniform

LAYERS, BUDGETS = st.integers(1, 60), st.integers(1, 300)


@settings(max_examples=60, deadline=None)
@given(BUDGETS, LAYERS, st.sampled_from([1, 2, 3, 20, 1000]))
def test_a_pyramid_is_linear_and_exact(budget, layers, beta):
    pyramid = Pyramid(budget, beta)
    shares = [pyramid.at(layer, layers) for layer in range(layers)]
    assert sum(shares) == budget * layers and min(shares) >= 1
    assert all(above <= below for below, above in zip(shares, shares[1:], strict=False))
    last = max(1, budget // beta) if layers > 1 else budget
    first, steps = 2 * budget - last, max(1, layers - 1)
    exact = [first + (last - first) * layer / steps for layer in range(layers)]
    assert layers == 1 or all(abs(share - line) <= 1 for share, line in zip(shares, exact, strict=True))


def test_a_pyramid_is_not_uniform():
    assert [Pyramid(64).at(layer, 3) for layer in range(3)] == [125, 64, 3]
    assert Pyramid(64, 4).split(torch.zeros(5, 9), 1, 2).tolist() == [16] * 5
    assert {Pyramid(64, 1).at(layer, 7) for layer in range(7)} == {64}


def ada_by_hand(scores, budget, floor):
    """Head by head, entry by entry; `scores` a list of lists."""
    ranked = [sorted(row, reverse=True) for row in scores]
    counts = [max(1, int(floor * budget)) for _ in ranked]
    while sum(counts) < len(ranked) * budget:
        offers = [(row[count], -count, -head) for head, (row, count) in enumerate(zip(ranked, counts, strict=True))
                  if count < len(row)]  # fmt: skip
        if not offers:
            break
        counts[-max(offers)[2]] += 1
    return counts


@settings(max_examples=80, deadline=None)
@given(st.data(), st.integers(1, 5), st.integers(1, 12), st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_ada_keeps_the_sum_and_the_floor(data, heads, budget, floor):
    n = data.draw(st.integers(budget, 3 * budget + 2))
    worth = st.sampled_from([0.0, 1.0, 2.0, 3.0]) | st.floats(-5, 5, width=32)
    scores = data.draw(st.lists(st.lists(worth, min_size=n, max_size=n), min_size=heads, max_size=heads))
    shares = Ada(budget, floor).split(torch.tensor(scores), 0, 1)
    assert shares.dtype == torch.int64 and shares.sum() == heads * budget
    assert int(shares.min()) >= max(1, int(floor * budget))
    assert shares.tolist() == ada_by_hand(scores, budget, floor)


def test_ada_gives_to_what_is_wanted():
    scores = torch.tensor([[9.0, 8, 7, 6, 5, 4], [3.0, 2, 1, 0, 0, 0]])
    assert Ada(3, 0.0).split(scores, 0, 1).tolist() == [5, 1]
    assert Ada(3, 0.7).split(scores, 0, 1).tolist() == [4, 2]
    assert Ada(3, 1.0).split(scores, 0, 1).tolist() == [3, 3]
    assert Ada(3, 0.2).split(torch.zeros(2, 6), 0, 1).tolist() == [3, 3]  # ties are shared
    absent = torch.tensor([[1.0, 1, 1, -torch.inf, -torch.inf, -torch.inf], [-9.0] * 6])
    assert Ada(4, 1.0).split(absent, 0, 1)[1] >= 4  # what is not there takes no place
    pinned = torch.tensor([[0.0] * 6, [torch.inf] * 5 + [0.0]])
    assert Ada(3, 0.2).split(pinned, 0, 1).tolist() == [1, 5]  # but what is pinned does


def test_a_table():
    table = PerLayer((5, 2, 6))
    assert table.budget == 4 and table.at(2, 3) == 6 and table.split(torch.zeros(2, 9), 1, 3).tolist() == [2, 2]
    with pytest.raises(ValueError, match="a table of 3 budgets for a model of 30 layers"):
        table.split(torch.zeros(2, 9), 1, 30)
    with pytest.raises(ValueError, match="a table of 3 budgets for a model of 2 layers"):
        fm.replay(fm.record(fm.tiny(num_hidden_layers=2), "some text"), fm.policies.KeyNorm(), table)
    with pytest.raises(ValueError, match="a table of 2 budgets for a model of 3 layers"):
        with fm.finite(fm.tiny().model, fm.policies.KeyNorm(), PerLayer((4, 4))):
            pass


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: Uniform(0), BudgetError, "budget 0 < 1"),
        (lambda: Pyramid(2.5), TypeError, "budget 2.5 is no int"),
        (lambda: Ada(True), TypeError, "budget True is no int"),
        (lambda: Pyramid(8, 0), ValueError, "beta=0; give 1"),
        (lambda: Ada(8, 1.2), ValueError, r"floor=1.2; give a share"),
        (lambda: PerLayer(()), TypeError, r"budgets=\(\); give a tuple"),
        (lambda: PerLayer([4, 4]), TypeError, r"budgets=\[4, 4\]; give a tuple"),
        (lambda: PerLayer((4, 0)), BudgetError, "budget 0 < 1"),
    ],
)
def test_wrong_fields(make, error, says):
    with pytest.raises((error, TypeError), match=says if error is not TypeError else None):
        make()


def test_what_hosts_ask():
    assert inspect.unwrap(check_allocation)(7, 3) == 7 and check_allocation(Ada(7), 3) == Ada(7)
    with pytest.raises(TypeError):
        inspect.unwrap(check_allocation)(7.0, 3)
    assert [held_before_eviction(b, 3) for b in (7, Ada(7), Pyramid(8, 4), PerLayer((9, 4, 5)))] == [7, 7, 2, 4]
    assert isinstance(Ada(7), fm.Allocation) and repr(Ada(7)) == "Ada(budget=7, floor=0.2)"
    assert not {"Ada", "PerLayer", "Pyramid", "Uniform"} & set(fm.policies.__all__)


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 4), st.integers(1, 9))
def test_select_with_a_budget_a_head_is_select_head_by_head(data, heads, n):
    scores = torch.tensor(data.draw(st.lists(st.lists(st.sampled_from([0.0, 1.0, -torch.inf]), min_size=n, max_size=n),
                                             min_size=heads, max_size=heads)))  # fmt: skip
    places = torch.stack([torch.tensor(data.draw(st.permutations(range(n)))) for _ in range(heads)])
    budgets = torch.tensor(data.draw(st.lists(st.integers(1, n + 2), min_size=heads, max_size=heads)))
    kept = select(scores, budgets, places)
    assert kept.sum(-1).tolist() == budgets.clamp(max=n).tolist()
    for row in range(heads):
        assert torch.equal(kept[row], select(scores[row : row + 1], int(budgets[row]), places[row : row + 1])[0])


@dataclass(frozen=True)
class Given(fm.Allocation):
    """Whatever it is told."""

    answer: object
    budget: int = 4

    def split(self, scores, layer, total):
        return self.answer


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (torch.tensor([4, 5]), r"layer 0: split gave \[4, 5\], 9 entries of 8 in layer 0"),
        (torch.tensor([8, 0]), r"split gave \[8, 0\]; every head must hold at least one"),
        (torch.tensor([4.0, 4.0]), "give one int64 a head"),
        (torch.tensor([4, 4, 4]), r"give one int64 a head, shape \(2,\)"),
        (None, "split gave None; give one int64"),
    ],
)
def test_a_split_that_is_none_is_refused(answer, says):
    trace = fm.record(fm.tiny(), "a text that is longer than the budget")
    with pytest.raises(ValueError, match=says):
        inspect.unwrap(fm.replay)(trace, fm.policies.KeyNorm(), Given(answer))


def test_equal_shares_replay_as_their_layers_alone():
    trace = fm.record(fm.tiny(), list(range(60)), dtype=torch.float32)
    for allocation in (PerLayer((9, 20, 9)), Pyramid(14, beta=3)):
        done: list[int] = []
        expiry = fm.replay(trace, H2O(), allocation, prefill=30, progress=done.append)
        for at, layer in enumerate(trace.layers):
            alone = fm.replay(trace.only([at]), H2O(), allocation.at(layer, 3), prefill=30)
            assert torch.equal(expiry[at], alone[0])
        assert done == sorted(done) and done[-1] == 60


def test_some_layers_of_a_trace():
    trace = fm.record(fm.tiny(), list(range(40)), second_pass=True)
    some = trace.only([2, 0])
    assert (some.layers, some.windows, len(some)) == ((2, 0), (None, None), 40)
    assert torch.equal(some.keys[0], trace.keys[2]) and torch.equal(some.repeated[1], trace.repeated[0])
    assert trace.layer(1).layers == (1,) and torch.equal(trace.layer(1).output_norms[0], trace.output_norms[1])
