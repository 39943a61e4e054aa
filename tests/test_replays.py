import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import fmlab as fm
from fmlab import metrics
from fmlab import replays as module
from fmlab.core import Policy
from fmlab.policies import H2O, TOVA, KeyNorm, Pinned, SinkWindow
from fmlab.replays import Replays
from fmlab.trace import TraceError


@pytest.fixture(scope="module")
def trace():
    return fm.record(fm.tiny(), "A text to be forgotten, word by word.", layers=[0, 2])


@pytest.fixture
def counted(monkeypatch):
    calls = []
    monkeypatch.setattr(module, "replay", lambda *args: calls.append(args[1:4]) or fm.replay(*args))
    return calls


def test_each_replay_is_computed_once(trace, counted):
    replays = Replays(trace)
    for _ in range(2):
        for policy, budget, prefill in (
            (H2O(), 8, 1),
            (H2O(), 12, 1),
            (H2O(0.25), 8, 1),
            (H2O(), 8, 10),
            (KeyNorm(), 8, 1),
        ):
            assert torch.equal(replays.expiry(policy, budget, prefill), fm.replay(trace, policy, budget, prefill))
    assert len(counted) == len(replays) == 5
    assert (
        replays.budgets(H2O()) == [8, 12]
        and replays.budgets(H2O(), prefill=10) == [8]
        and replays.budgets(SinkWindow()) == []
    )
    assert replays.has(H2O(), 8) and not replays.has(H2O(), 9) and replays.expiry(H2O(), 8).dtype == torch.int64


def test_a_grid_in_other_processes_is_the_same_and_only_what_is_missing_is_computed(trace, counted):
    @dataclasses.dataclass(frozen=True)
    class Mine(Policy):
        """Written in a notebook, so that no other process could import it."""

        def score(self, view, stats):
            return -view.age.float()

    replays, grid = Replays(trace), [(policy, budget) for policy in (H2O(), TOVA(), Mine()) for budget in (8, 12)]
    replays.expiry(H2O(), 8)
    replays.fill([*grid, *grid], jobs=2)
    assert len(replays) == 6 and len(counted) == 1
    for policy, budget in grid:
        assert torch.equal(replays.expiry(policy, budget), fm.replay(trace, policy, budget))
    assert len(counted) == 1
    replays.fill(grid)


def test_what_a_grid_has_finished_survives_a_budget_that_is_refused(trace):
    replays = Replays(trace)
    with pytest.raises(fm.BudgetError, match="budget 2 < 3 pinned entries"):
        replays.fill([(SinkWindow(), 8), (Pinned(KeyNorm(), sinks=4, recent=4), 2)], jobs=1)
    assert replays.has(SinkWindow(), 8)


def test_what_is_given_out_is_a_copy(trace):
    replays = Replays(trace)
    replays.expiry(H2O(), 8).zero_()
    assert torch.equal(replays.expiry(H2O(), 8), fm.replay(trace, H2O(), 8))


def test_a_class_defined_again_is_replayed_again(trace, counted):
    def define(sign):
        @dataclasses.dataclass(frozen=True)
        class Cell(Policy):
            """Run again in its cell with another rule."""

            def score(self, view, stats):
                return sign * view.age.float().masked_fill(view.age == 0, sign * torch.inf)

        return Cell()

    replays, newest, oldest = Replays(trace), define(-1), define(1)
    assert repr(newest) == repr(oldest)
    assert not torch.equal(replays.expiry(newest, 8), replays.expiry(oldest, 8))
    assert len(counted) == 2 and replays.budgets(newest) == [8]


def test_progress_is_handed_on_and_a_cancelled_replay_is_not_remembered(trace):
    replays = Replays(trace)

    def cancel(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replays.expiry(H2O(), 8, progress=cancel)
    assert len(replays) == 0 and not replays.has(H2O(), 8)


def test_round_trip_keeps_the_library_s_own_policies(trace, tmp_path, counted):
    class Mine(SinkWindow):
        pass

    replays = Replays(trace)
    kept = {
        (p, b, n): replays.expiry(p, b, n) for p, b, n in ((H2O(), 8, 1), (SinkWindow(2), 9, 20), (KeyNorm(), 100, 1))
    }
    kept[Pinned(TOVA()), 20, 1] = replays.expiry(Pinned(TOVA()), 20)
    for own in (Mine(), Pinned(Mine())):  # a class of one's own may have changed since, also within another
        replays.expiry(own, 20)
    path = replays.save(tmp_path / "replays")
    again = Replays.load(str(path), trace)
    assert len(again) == 4 and not again.has(Mine(), 20) and not again.has(Pinned(Mine()), 20) and len(counted) == 6
    assert all(torch.equal(again.expiry(*cell), expiry) for cell, expiry in kept.items())
    assert len(counted) == 6 and again.budgets(KeyNorm()) == [100]


def test_the_optimum_is_remembered_and_saved(trace, tmp_path, monkeypatch):
    replays, solved = Replays(trace), []
    monkeypatch.setattr(module, "oracle", lambda *args: solved.append(args[1:3]) or fm.oracle(*args))
    assert not replays.has_oracle(8) and replays.has_oracle(len(trace))
    for _ in range(2):
        assert torch.equal(replays.oracle(8), fm.oracle(trace, 8))
        assert torch.equal(replays.oracle(8, 10), fm.oracle(trace, 8, 10))
    assert solved == [(8, 1), (8, 10)] and replays.has_oracle(8) and replays.has_oracle(8, 10)
    replays.oracle(8).zero_()
    again = Replays.load(replays.save(tmp_path / "replays"), trace)
    assert again.has_oracle(8) and torch.equal(again.oracle(8, 10), fm.oracle(trace, 8, 10)) and len(solved) == 2
    assert again.budgets(H2O()) == []


def test_a_cancelled_optimum_is_not_remembered(trace):
    replays = Replays(trace)

    def cancel(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replays.oracle(8, progress=cancel)
    assert not replays.has_oracle(8)


def test_regret_is_that_of_metrics_and_measured_once(trace, monkeypatch):
    replays, measured = Replays(trace), []
    expected = metrics.regret(trace, fm.replay(trace, H2O(), 8), 8)
    monkeypatch.setattr(module, "mass_recall", lambda *args: measured.append(1) or metrics.mass_recall(*args))
    heads = []
    for _ in range(2):
        assert torch.equal(replays.regret(H2O(), 8, progress=heads.append), expected)
    assert len(measured) == 2 and heads == [1, 2, 3, 4] and (expected >= 0).all()
    quick = replays.mass_recall(KeyNorm(), 8, measure=metrics.Received(trace).mass_recall)
    assert torch.allclose(quick, metrics.mass_recall(trace, fm.replay(trace, KeyNorm(), 8)))


@pytest.mark.parametrize(
    "change", [{"model": "other"}, {"scaling": 1.0}, {"softcap": 3.0}, {"windows": (5, None)}, {"layers": (0, 1)}]
)
def test_the_file_of_another_trace_is_refused(trace, tmp_path, change):
    path = Replays(trace).save(tmp_path / "replays")
    with pytest.raises(TraceError, match="holds replays of another trace than Trace.*; replay this one again"):
        Replays.load(path, dataclasses.replace(trace, **change))
    keys = trace.keys.clone()
    keys[0, 0, 0, 0] += 1
    with pytest.raises(TraceError, match="another trace"):
        Replays.load(path, dataclasses.replace(trace, keys=keys))
    assert len(Replays.load(path, trace)) == 0


def test_foreign_and_broken_files(trace, tmp_path):
    replays = Replays(trace)
    replays.expiry(H2O(), 8)
    path = replays.save(tmp_path / "replays")
    with pytest.raises(TraceError, match="is no 'fmlab trace 1' file but 'fmlab replays 1'"):
        fm.Trace.load(path)
    with pytest.raises(TraceError, match="is no 'fmlab replays 1' file"):
        Replays.load(trace.save(tmp_path / "trace"), trace)
    with pytest.raises(FileNotFoundError, match="none does not exist"):
        Replays.load(tmp_path / "none", trace)
    (tmp_path / "cut").write_bytes(path.read_bytes()[:-9])
    with pytest.raises(TraceError, match="truncated"):
        Replays.load(tmp_path / "cut", trace)
    about = json.dumps({"format": module.FORMAT, "trace": module.fingerprint(trace), "keys": [[repr(H2O()), 8, 1]]})
    short = {name: tensor[..., 1:].contiguous() for name, tensor in load_file(path).items()}
    save_file(short, tmp_path / "short", {"fmlab": about})
    with pytest.raises(TraceError, match="holds an expiry of another shape"):
        Replays.load(tmp_path / "short", trace)


def test_the_numbers_of_a_long_trace_fit():
    zeros = torch.zeros(1, 1, 40_000, 1, dtype=torch.float16)
    long = fm.Trace(torch.arange(40_000), ("",) * 40_000, (0,), "long", zeros, zeros, zeros, 1.0)
    assert (Replays(long).expiry(SinkWindow(), 50_000) == 40_001).all()
