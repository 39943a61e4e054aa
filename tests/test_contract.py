from dataclasses import dataclass, field

import pytest
import torch

from fmlab import contract, policies
from fmlab.contract import CHECKS, ContractError, check
from fmlab.core import Policy, living_policies
from fmlab.needs import LIVE
from fmlab.policies import H2O, DuoAttention, SinkWindow, SnapKV

OURS = [getattr(policies, name)() for name in policies.__all__]
VARIANTS = [SinkWindow(0), SnapKV(window=5, kernel=3), DuoAttention(H2O(), by="area", recent=8)]


def test_no_policy_of_the_library_is_left_out():
    alive = {kind.__name__ for kind in living_policies() if kind.__module__.startswith("fmlab.policies.")}
    assert alive == set(policies.__all__)


@pytest.mark.parametrize("checked", CHECKS, ids=lambda c: c.__name__)
@pytest.mark.parametrize("policy", OURS + VARIANTS, ids=repr)
def test_every_policy_keeps_the_contract(policy, checked):
    if checked in contract.LIVE_CHECKS and policy.needs - LIVE:
        with pytest.raises(ValueError, match="needs .*, which a live model cannot prepare"):
            checked(policy)
    else:
        assert checked(policy) is None


def test_a_budget_fits_that_holds_what_is_pinned():
    assert contract.fits(SinkWindow(4), 5) and not contract.fits(SinkWindow(4), 4)


@dataclass(frozen=True)
class Bad(Policy):
    """What the policies below have in common: by themselves they keep the newest."""

    def score(self, view, stats):
        return -view.age.float()


class OneShort(Bad):
    def score(self, view, stats):
        return -view.age.float()[:, 1:]


class WholeNumbers(Bad):
    def score(self, view, stats):
        return -view.age


class NotANumber(Bad):
    def score(self, view, stats):
        return (-view.age.float()).masked_fill(view.positions == 2, torch.nan)


class NoColumns(Bad):
    def observe(self, view, stats):
        return view.age.float()


class Overwriting(Bad):
    def score(self, view, stats):
        return view.age.neg_().float()


class OverwritingColumns(Bad):
    def observe(self, view, stats):
        return {"age": stats["age"].add_(1)} if "age" in stats else {"age": view.age.float()}


@dataclass(frozen=True)
class Leaky(Bad):
    """Keeps what it saw in itself instead of in columns."""

    calls: list = field(default_factory=list, repr=False)

    def score(self, view, stats):
        self.calls.append(view.new)
        return -view.age.float()


class Counting(Bad):
    """The same in the class, where a comparison of its fields does not look."""

    calls = []

    def score(self, view, stats):
        self.calls.append(1)
        return (-view.age.float()) ** (1 + len(self.calls) % 7)


class Unseeded(Bad):
    def score(self, view, stats):
        return torch.rand(view.positions.shape)


class Reseeding(Bad):
    """Gives the same each time, but sets everybody else's random numbers."""

    def score(self, view, stats):
        torch.manual_seed(0)
        return torch.rand(view.positions.shape[1]).gather(0, view.age.flatten()).view(view.age.shape)


class Soothsaying(Bad):
    needs = frozenset({"tomorrow"})


class Listing(Bad):
    needs = ["future"]


class BySlot(Bad):
    """Takes the last slots for the newest entries."""

    def score(self, view, stats):
        return torch.arange(view.positions.shape[1]).float().expand(view.positions.shape)


class ByBatch(Bad):
    """Compares a sequence with the others of the batch."""

    def score(self, view, stats):
        norm = view.keys.norm(dim=-1)
        return norm - norm.mean()


class OneQueryHead(Bad):
    """Takes the first query heads for those of its KV heads."""

    def score(self, view, stats):
        queries = view.queries[: len(view.keys), -1:]
        return (queries @ view.keys.transpose(1, 2)).squeeze(1).float()


class FirstRow(Bad):
    """Lets the first head decide for all, whatever their layer."""

    def score(self, view, stats):
        norm = view.keys.float().norm(dim=-1).gather(1, view.positions.argsort(-1))
        return norm[:1].expand_as(norm).gather(1, view.positions.argsort(-1).argsort(-1))


class FairWeather(Bad):
    """Writes to the keys only where a chunk is small, which the checks of a view do not show."""

    def score(self, view, stats):
        if view.new == 20:
            view.keys.zero_()
        return -view.age.float()


class Timid(Bad):
    """Scores only what it saw in one go; in a replay, where the layers stand together, it scores otherwise."""

    def score(self, view, stats):
        return view.age.float() if len(set(view.layer.tolist())) > 1 else -view.age.float()


FAILS = {
    OneShort: ("is_well_formed", r"score has shape \(4, 7\)"),
    WholeNumbers: ("is_well_formed", "score is torch.int64"),
    NotANumber: ("is_well_formed", "score of position 2 is NaN"),
    NoColumns: ("is_well_formed", "observe returned Tensor; return a dict"),
    Overwriting: ("is_well_formed", "changed age in place"),
    OverwritingColumns: ("is_pure", "writes to the columns"),
    Leaky: ("is_pure", "changes itself"),
    Counting: ("is_pure", "second result differs"),
    Unseeded: ("is_pure", "second result differs"),
    Reseeding: ("is_pure", "global generator; use a seed field"),
    Soothsaying: ("declares_what_it_needs", r"needs \['tomorrow'\]; known are"),
    Listing: ("declares_what_it_needs", "give a frozenset"),
    BySlot: ("ignores_slot_order", "depend on the order of the entries by up to"),
    ByBatch: ("ignores_other_sequences", "another sequence in the batch changes the scores"),
    OneQueryHead: ("knows_its_query_heads", "do not move along with the rows"),
    FirstRow: ("knows_its_query_heads", "do not move along with the rows"),
    Timid: ("replays_as_it_lives", "expiries of layer 0 differ"),
}


@pytest.mark.parametrize("bad", FAILS, ids=lambda c: c.__name__)
def test_a_bad_policy_fails_the_check_that_is_meant_for_it(bad):
    name, says = FAILS[bad]
    with pytest.raises(ContractError, match=says):
        getattr(contract, name)(bad())


@pytest.mark.parametrize("bad", [NotANumber, Unseeded, BySlot])
def test_check_stops_at_the_first_failure_and_names_it(bad):
    title = getattr(contract, FAILS[bad][0]).__doc__
    with pytest.raises(ContractError, match=rf"{bad.__name__}\(\) fails '{title}': .*{FAILS[bad][1]}"):
        check(bad())


def test_writing_in_the_middle_of_a_run_is_caught():
    with pytest.raises(ValueError, match="changed keys in place"):
        contract.keeps_the_budget(FairWeather())


def test_a_policy_that_pins_everything_has_no_budget():
    class Hoarder(Bad):
        def score(self, view, stats):
            return torch.full_like(view.age, torch.inf, dtype=torch.float32)

    with pytest.raises(ContractError, match="pins more than 64 entries of 128"):
        contract.workable_budget(Hoarder())
    assert contract.workable_budget(SinkWindow(4)) == 12 and contract.workable_budget(SnapKV()) == 64


class Brittle(Policy):
    """Keeps the contract up to one host, which is broken on purpose in the test."""

    def score(self, view, stats):
        return -view.age.float()


@pytest.mark.parametrize(
    ("checked", "host", "broken", "says"),
    [
        ("keeps_all_at_full_budget", "replay", lambda *args: torch.zeros(1), "evicted though all fits"),
        ("lives_as_one_masked_pass", "masked_logits", lambda model, ids, expiry: torch.zeros(1, 115, 256), "by up to"),
        ("replays_as_it_lives", "replay", lambda *args, **rest: torch.zeros(3, 2, 120).long(), "expiries .* differ"),
    ],
)
def test_the_checks_of_the_hosts_see_a_broken_host(monkeypatch, checked, host, broken, says):
    monkeypatch.setattr(contract, host, broken)
    with pytest.raises(ContractError, match=says):
        getattr(contract, checked)(Brittle())


def test_a_policy_that_lives_in_the_past_differs_from_the_stock_model(monkeypatch):
    class Forgetful(Bad):
        def score(self, view, stats):
            return view.age.float()

    monkeypatch.setattr(contract, "workable_budget", lambda policy: -220)  # a budget below the length after all
    with pytest.raises(ContractError, match="the tokens differ"):
        contract.equals_the_stock_model_at_full_budget(Forgetful())


def test_the_report_lists_what_was_passed(monkeypatch):
    monkeypatch.setattr(contract, "CHECKS", CHECKS[:4])
    report = check(SinkWindow())
    assert len(report) == 4 and repr(report).count("passed  ") == 4
    assert report[0].startswith("Well formed") and report._repr_html_().count("<li>&#10003;") == 4
