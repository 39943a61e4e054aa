"""HitCurves without a browser: what travels, what may be chosen, and the table of the chosen point."""

import numpy as np
import pytest
import traitlets

import fmlab as fm
from fmlab.caches import LRU, SIEVE, Belady, ChatTraffic, coarser, hit_rows, simulate
from fmlab.widgets import HitCurves

POLICIES = [Belady(), LRU(), SIEVE()]
CAPACITIES = [200, 3_000, 20_000, 90_000]


@pytest.fixture(scope="module")
def requests():
    return ChatTraffic(chats=12).requests(seed=3, block=128)


@pytest.fixture(scope="module")
def rows(requests):
    return hit_rows(requests, POLICIES, CAPACITIES, block=128, factors=[4, 1])


def test_what_travels_is_what_simulate_says(requests, rows):
    curves = HitCurves(rows).curves
    assert curves["blocks"] == [128, 512] and curves["capacities"] == CAPACITIES
    assert curves["policies"] == ["LRU()", "SIEVE()", "Belady()"], "the ceiling is drawn last"
    assert curves["looks"][-1] is None and len({tuple(look.items()) for look in curves["looks"][:-1]}) == 2
    larger = simulate(coarser(requests, 4), SIEVE(), 20_000 // 512, block=512)
    for name in ("block", "token", "request"):
        assert curves["ratios"][name][1][1][2] == pytest.approx(getattr(larger, name), abs=1e-6)
    assert {line[0] for line in curves["ratios"]["token"][1]} == {None}, "no block of 512 fits 200 tokens"


def test_the_table_is_of_the_chosen_point(rows):
    view = HitCurves(rows)
    assert (view.block_tokens, view.capacity_tokens, view.ratio) == (128, 20_000, "token")
    view.block_tokens, view.capacity_tokens = 512, 3_000
    said = {row["policy"]: row for row in rows if (row["block_tokens"], row["capacity_tokens"]) == (512, 3_000)}
    assert list(view.table.index) == ["LRU()", "SIEVE()", "Belady()"]
    for name in ("block", "token", "request"):
        assert np.allclose(view.table[name], [said[policy][name] for policy in view.table.index])
    view.capacity_tokens = 200
    assert view.table.isna().all(axis=None)
    assert "200 tokens in blocks of 512" in view._repr_mimebundle_()[0]["text/plain"]
    assert repr(view) == "HitCurves(3 policies, 2 block sizes, 4 capacities)"


def test_a_choice_that_the_rows_do_not_have_is_refused(rows):
    view = HitCurves(rows)
    with pytest.raises(traitlets.TraitError, match="block_tokens=256; the rows have 128, 512"):
        view.block_tokens = 256
    with pytest.raises(traitlets.TraitError, match="capacity_tokens=201; the rows have 200, 3000"):
        view.capacity_tokens = 201
    with pytest.raises(traitlets.TraitError, match="ratio"):
        view.ratio = "byte"
    assert (view.block_tokens, view.capacity_tokens, view.ratio) == (128, 20_000, "token")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: [], "no row"),
        (lambda rows: [{k: v for k, v in row.items() if k != "token"} for row in rows], "no 'token'"),
        (lambda rows: [*rows, rows[0]], r"Belady\(\) has two rows at 3000 tokens in blocks of 512"),
        (lambda rows: [{**rows[0], "capacity_tokens": 0}], "logarithmic"),
        (lambda rows: [*rows[:-1], {**rows[-1], "block": 1.5}], r"block=1.5 of SIEVE\(\)"),
        (lambda rows: [*rows[:-1], {**rows[-1], "request": float("nan")}], "request=nan"),
    ],
)
def test_malformed_rows_are_refused(rows, spoil, message):
    with pytest.raises(ValueError, match=message):
        fm.widgets.HitCurves(spoil(rows))
