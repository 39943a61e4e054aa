"""The Bench widget without a browser: what it measures, refuses and cancels, and what travels."""

import threading
from dataclasses import replace

import numpy as np
import pytest

import fmlab as fm
from fmlab.optimizations.outcome import attempt
from fmlab.widgets import Bench
from fmlab.widgets.bench import STOPS, size_at

optimizations = fm.optimizations


def plain(values: list[float]) -> list[float]:
    return sorted(values)


def numbers(size: int, seed: int) -> tuple[list[float]]:
    return (np.random.default_rng(seed).random(size).tolist(),)


def broken(values):
    raise RuntimeError("no <b>sorting</b> today")


def missing(size: int, seed: int):
    raise ImportError("pip install 'abacus'")


PAIR = optimizations.Pair("sorting", (1.1, 1.3), "nobody", plain, np.sort, numbers, sizes=(0, 10, 1_000))
OTHER = replace(PAIR, name="sorting twice", claim=None, optimised=lambda values: sorted(sorted(values)), sizes=(7,))
WRONG = replace(PAIR, name="wrong", optimised=lambda values: [*sorted(values)[:-1], 2.0])
FAILS = replace(PAIR, name="fails", baseline=broken)


@pytest.fixture
def bench():
    view = Bench([PAIR, OTHER, WRONG, FAILS], rounds=6, seconds=2.0)
    yield view
    view.close()


def test_the_sizes_of_the_slider():
    sizes = [size_at(PAIR, stop) for stop in range(STOPS)]
    assert sizes == [10, 18, 32, 56, 100, 180, 320, 560, 1_000], "a size of 0 has no ratio to the others"
    assert {size_at(OTHER, stop) for stop in range(STOPS)} == {7}
    assert size_at(replace(PAIR, sizes=(0,)), 3) == 0


def test_what_is_measured_is_a_row_a_pair_and_size_in_the_order_of_the_pairs(bench):
    bench.show(pairs=["sorting twice", "sorting"], stop=8).measure().wait()
    assert [(row["pair"], row["size"], row["n"]) for row in bench.rows] == [
        ("sorting", 1_000, 6),
        ("sorting twice", 7, 6),
    ]
    first = bench.rows[0]
    assert first["low"] <= first["speedup"] <= first["high"] and first["claim"] == [1.1, 1.3] and first["error"] is None
    assert (
        bench.rows[1]["claim"] is None
        and first["floor"] is None
        and all(seconds.endswith("s") for seconds in first["seconds"])
    )
    assert bench.status["state"] == "ready" and "2 pairs" in bench.status["text"]
    bench.show(pairs=["sorting"], stop=0).measure().wait()
    assert [(row["pair"], row["size"]) for row in bench.rows] == [
        ("sorting", 10),
        ("sorting", 1_000),
        ("sorting twice", 7),
    ]
    bench.measure().wait()
    assert len(bench.rows) == len(bench.table) == 3, "measured again, a row takes the place of the former"
    assert bench.table["speedup"].tolist() == [row["speedup"] for row in bench.rows]
    assert len(fm.figures.speedups(bench.table).data) >= 2
    assert bench.clear().rows == [] and bench.table.empty


def test_a_refused_pair_is_a_row_with_its_error_and_no_speed_up(bench):
    bench.show(pairs=["wrong", "fails", "sorting twice"]).measure().wait()
    twice, wrong, fails = bench.rows
    assert twice["speedup"] > 0
    assert wrong["verdict"] == "not equivalent" and "wrong at 100 items, seed 1000: result[99]" in wrong["error"]
    assert fails["verdict"] == "failed" and "the baseline way raised RuntimeError: no <b>sorting" in fails["error"]
    assert "speedup" not in wrong and "speedup" not in fails
    assert bench.table["speedup"].isna().tolist() == [False, True, True]
    shown = bench._repr_mimebundle_()[0]["text/plain"]
    assert "measured in this kernel, on cpu" in shown and "not equivalent" in shown
    assert repr(bench) == "Bench(4 pairs, 3 rows measured)"


def test_the_floor_travels():
    view = Bench([replace(OTHER, floor=lambda size: optimizations.Floor(8 * size, "bytes", "read"))], rounds=6)
    view.measure().wait()
    assert view.rows[0]["floor"] == "56 bytes: read"
    view.close()


def test_an_unstable_machine_travels(bench, monkeypatch):
    monkeypatch.setattr("fmlab.optimizations.clock.SPREAD", -1.0)
    bench.measure().wait()
    assert "half of the rounds lie" in bench.rows[0]["unrest"]


def test_cancelled_after_the_round_in_work():
    started, gate = threading.Event(), threading.Event()

    def waits(values):
        if len(values) == 7 and threading.current_thread() is not threading.main_thread():
            started.set()
            assert gate.wait(20)
        return sorted(values)

    view = Bench([PAIR, replace(OTHER, optimised=waits)], rounds=6, seconds=2.0)
    view.show(pairs=["sorting", "sorting twice"]).measure()
    assert started.wait(20)
    assert (
        view.status["state"] == "busy"
        and "sorting twice, 7 items" in view.status["text"]
        and view.status["share"] == 0.5
    )
    view.cancel()
    assert "Cancelling" in view.status["text"]
    gate.set()
    view.wait()
    assert view.status == {
        "state": "ready",
        "text": "Cancelled; what was measured before stays.",
        "detail": "",
        "share": None,
    }
    assert [row["pair"] for row in view.rows] == ["sorting"]
    view.cancel()
    assert view.status["state"] == "ready", "nothing is left to cancel"
    view.close()


def test_inputs_that_raise_are_a_row_and_the_next_pair_is_measured():
    view = Bench([replace(OTHER, name="gone", inputs=missing), OTHER], rounds=6)
    view.show(pairs=["gone", "sorting twice"]).measure().wait()
    assert "the inputs raised ImportError: pip install 'abacus'" in view.rows[0]["error"] and view.rows[1]["n"] == 6
    view.close()


def test_what_is_no_refusal_ends_the_measuring_and_is_shown(bench, monkeypatch):
    def tried(pair, *rest):
        return missing(0, 0) if pair is OTHER else attempt(pair, *rest)

    monkeypatch.setattr("fmlab.widgets.bench.attempt", tried)
    view = Bench([PAIR, OTHER], rounds=6)
    with pytest.raises(ImportError, match="abacus"):
        view.show(pairs=["sorting", "sorting twice"]).measure().wait()
    assert view.status["state"] == "error" and "abacus" in view.status["text"] and "missing" in view.status["detail"]
    assert len(view.rows) == 1
    view.show(pairs=["sorting"]).measure().wait()
    assert view.status["state"] == "ready"
    view.close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pairs": ["nothing"]}, "no pair 'nothing'; there are: sorting; sorting twice; wrong; fails"),
        ({"stop": 9}, "stop=9; give 0"),
        ({"rounds": 5}, "rounds=5; give 6 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused_from_python_and_shown_in_the_browser(bench, changes, says):
    with pytest.raises(ValueError, match=says):
        bench.show(**changes)
    bench._heard(bench, {"kind": "measure", "choice": bench.choice | changes}, [])
    assert bench.status["state"] == "error" and says in bench.status["text"] and bench.rows == []


def test_the_browser_chooses_measures_and_clears(bench):
    bench._heard(bench, {"kind": "choose", "choice": {"pairs": [], "stop": 1, "rounds": 7}}, [])
    assert bench.choice == {"pairs": [], "stop": 1, "rounds": 7}
    bench._heard(bench, {"kind": "measure", "choice": bench.choice}, [])
    assert "no pair is switched on" in bench.status["text"]
    bench._heard(bench, {"kind": "measure", "choice": {"pairs": ["sorting"], "stop": 1, "rounds": 7}}, [])
    bench.wait()
    assert [(row["size"], row["n"]) for row in bench.rows] == [(18, 7)]
    bench._heard(bench, {"kind": "clear"}, [])
    assert bench.rows == []


def test_pairs_are_told_apart_by_name(monkeypatch):
    for pairs in ([], [PAIR, PAIR]):
        with pytest.raises(ValueError, match="at least one, each with a name of its own"):
            Bench(pairs)
    monkeypatch.setattr(optimizations, "ALL", (OTHER,), raising=False)
    view = Bench()
    assert list(view.pairs) == ["sorting twice"] and view.about["pairs"][0]["claim"] == "nothing claimed"
    view.close()
