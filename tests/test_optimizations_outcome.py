"""A refused pair is a row without a figure, and never a speed-up."""

from dataclasses import replace

import numpy as np
import pytest

import fmlab as fm
from fmlab.optimizations import machine
from fmlab.optimizations.outcome import Refused, attempt, records, table

optimizations = fm.optimizations


def plain(values: list[float]) -> list[float]:
    return sorted(values)


def numbers(size: int, seed: int) -> tuple[list[float]]:
    return (np.random.default_rng(seed).random(size).tolist(),)


def upside_down(values):
    return sorted(values, reverse=True)


def broken(values):
    raise RuntimeError("no <b>sorting</b> today")


PAIR = optimizations.Pair("sorting", (1.1, 1.3), "nobody", plain, np.sort, numbers, sizes=(2, 20, 50))
WRONG = replace(PAIR, name="wrong", optimised=upside_down)
FAILS = replace(PAIR, name="fails", claim=None, baseline=broken)


@pytest.fixture(scope="module")
def outcomes():
    return [attempt(PAIR, (1, 20), rounds=6), attempt(WRONG), attempt(FAILS, (5,))]


def test_a_refusal_says_why_and_has_no_figure(outcomes):
    good, wrong, fails = outcomes
    assert isinstance(good, optimizations.Comparison) and isinstance(wrong, Refused) and isinstance(fails, Refused)
    assert (wrong.verdict, fails.verdict) == ("not equivalent", "failed")
    assert isinstance(fails.error, optimizations.SideFailed) and isinstance(wrong.error, optimizations.NotEquivalent)
    assert "claimed 1.1-1.3 x" in repr(wrong) and "not equivalent: wrong at 2 items, seed 1000: result[0]" in repr(
        wrong
    )
    assert "<b>sorting" not in fails._repr_html_() and "&lt;b&gt;sorting" in fails._repr_html_()


def test_the_table_has_every_pair_and_size(outcomes):
    rows = table(outcomes)
    assert list(rows["pair"]) == ["sorting"] * 2 + ["wrong"] * 3 + ["fails"]
    assert list(rows["size"]) == [1, 20, 2, 20, 50, 5] and list(rows["n"]) == [6, 6, 0, 0, 0, 0]
    assert list(rows["speedup"].isna()) == list(rows["baseline_nbytes"].isna()) == [False] * 2 + [True] * 4
    assert (
        rows["error"].isna().tolist() == [True] * 2 + [False] * 4
        and "the baseline way raised" in rows["error"].iloc[-1]
    )
    assert list(rows["claim_low"][:5]) == [1.1] * 5 and set(records(outcomes)[0]) == set(records(outcomes)[-1])
    drawn = fm.figures.speedups(rows)
    verdicts = [note.text for note in drawn.layout.annotations if note.x > 1]
    assert verdicts[2:] == ["not equivalent"] * 3 + ["failed"]


def test_a_row_without_a_word_says_nothing(outcomes):
    first, second = outcomes[0].rows
    mixed = replace(outcomes[0], rows=(replace(first, unrest="it drifts"), replace(second, unrest=None)))
    assert [row["unrest"] for row in records([mixed])] == ["it drifts", None]
    assert [row["floor"] for row in records([mixed])] == [None, None]


def test_other_errors_go_on():
    with pytest.raises(ValueError, match="rounds=3"):
        attempt(PAIR, (1,), rounds=3)
    with pytest.raises(optimizations.Cancelled):
        attempt(PAIR, (1,), rounds=6, after_round=lambda size, done: False)


def test_the_sizes_of_a_refused_pair_may_come_one_by_one():
    refused = attempt(WRONG, (size for size in (5, 6)), rounds=6)
    assert refused.sizes == (5, 6) and list(refused.to_dataframe()["size"]) == [5, 6]
    with pytest.raises(ValueError, match="sizes=\\(\\); give several"):
        attempt(WRONG, ())


def test_the_machine_in_words(tmp_path, monkeypatch):
    there = tmp_path / "cpuinfo"
    there.write_text("processor\t: 0\nmodel name\t: Abacus 3000\nmodel name\t: Abacus 3000\n")
    monkeypatch.setattr(machine, "CPUINFO", there)
    assert "Abacus 3000, torch on" in machine.machine() and machine.machine().count("Abacus") == 1
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")
    assert "cpu" in machine.machine() and ", ," not in machine.machine()
