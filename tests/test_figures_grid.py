"""Figures of a grid over several texts: their intervals, what tells kinds and fills apart, what is refused."""

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest

from fmlab import figures
from fmlab.figures import grid as grid_module
from fmlab.intervals import bootstrap

POLICIES = ["H2O(recent=0.5)", "SinkWindow(sinks=4)", "Odd(name='<b>&')", "TOVA()"]
BUDGETS = [32, 64, 128]
DRAW = [figures.quality_by_budget, figures.bytes_frontier, figures.footprint_against_quality]


def grid() -> pd.DataFrame:
    """One row a text, mode and cell, one of them refused."""
    chance = np.random.default_rng(0)
    rows = []

    def add(seed, policy, budget, nbytes, mode="post-fill", allocation=None, bits=None):
        rows.append(
            {
                "seed": seed, "mode": mode, "policy": policy, "budget": budget, "allocation": allocation, "bits": bits,
                "query_aware": False, "nbytes": nbytes, "peak_nbytes": nbytes * (3 if mode == "post-fill" else 2),
                "footprint": 1.0 if mode == "post-fill" else nbytes / 6e6, "answered": float(chance.random()),
                "answer_nll": 6e6 / nbytes + float(chance.random()), "nll_delta": float(chance.random()),
            }
        )  # fmt: skip

    for seed in range(4):
        for mode in ("post-fill", "in-fill"):
            add(seed, "full cache", None, 6e6, mode)
            for policy in POLICIES:
                for budget in BUDGETS:
                    add(seed, policy, budget, budget * 1e4, mode)
        add(seed, POLICIES[0], 128, 1.28e6, allocation="Ada(budget=128, floor=0.2)")
        for bits in (8, 4):
            add(seed, POLICIES[0], 128, 1.6e5 * bits / 2, bits=bits)
        add(seed, POLICIES[3], 256, np.nan)
        rows[-1] |= dict.fromkeys(("answered", "answer_nll", "nll_delta", "footprint", "peak_nbytes"), np.nan)
    return pd.DataFrame(rows)


def post() -> pd.DataFrame:
    return grid().query("mode == 'post-fill'")


@pytest.mark.parametrize("draw", DRAW)
@pytest.mark.parametrize("quality", ["answered", "answer_nll", "nll_delta"])
def test_a_figure_is_a_pure_function(draw, quality):
    table = grid()
    before = table.copy(deep=True)
    figure = draw(table, quality)
    pd.testing.assert_frame_equal(table, before)
    assert isinstance(figure, go.Figure) and "query-blind" in figure.layout.title.text
    assert figure.to_json() == draw(table, quality).to_json()


@pytest.mark.parametrize("draw", DRAW)
def test_tables_that_cannot_be_drawn(draw):
    table = grid()
    with pytest.raises(ValueError, match="the table mixes query-aware and query-blind"):
        draw(pd.concat([table, table.assign(query_aware=True)]))
    with pytest.raises(ValueError, match="no column 'query_aware'"):
        draw(table.drop(columns="query_aware"))
    with pytest.raises(ValueError, match="no row with a budget"):
        draw(table[table.policy == "full cache"])
    with pytest.raises(ValueError, match="every cell was refused"):
        draw(table.assign(answer_nll=None))
    assert "query-aware: asked before" in draw(table.assign(query_aware=True)).layout.title.text


def test_a_highlighted_curve_has_the_interval_of_its_texts():
    table = post()
    figure = figures.quality_by_budget(table, highlight=["TOVA", "H2O"])
    loud = [trace for trace in figure.data if trace.showlegend is not False]
    assert [trace.name for trace in loud] == ["TOVA()", "H2O(recent=0.5)"]
    assert list(figure.data[-2:]) == loud  # drawn over the others
    assert len({trace.line.dash for trace in loud}) == len({trace.marker.symbol for trace in loud}) == 2
    cell = table[
        (table.policy == "H2O(recent=0.5)") & (table.budget == 128) & table.allocation.isna() & table.bits.isna()
    ]
    mean = bootstrap(cell.answer_nll.to_numpy(), cell.seed.to_numpy())
    assert loud[1].y[2] == mean.mean and loud[1].error_y.array[2] == pytest.approx(mean.high - mean.mean)
    assert list(loud[1].customdata[2]) == [128, mean.low, mean.high, 4]
    full = table.loc[table.policy == "full cache", "answer_nll"].mean()
    assert figure.layout.shapes[0].y0 == full


def test_the_rest_is_faint_and_says_its_name():
    figure = figures.quality_by_budget(post(), highlight=["TOVA"])
    faint = [trace for trace in figure.data if trace.showlegend is False]
    assert [trace.name for trace in faint] == [*POLICIES[:2], "Odd(name='&lt;b&gt;&amp;')"]
    assert all(trace.hovertemplate.startswith(trace.name) and trace.error_y.array is None for trace in faint)
    assert list(faint[0].x) == [0, 1, 2] and list(figure.layout.xaxis.ticktext) == ["32", "64", "128"]
    with pytest.raises(ValueError, match="no policy 'TOVAA' in the table; it has H2O, SinkWindow, Odd, TOVA"):
        figures.quality_by_budget(post(), highlight=["TOVAA"])


def test_kinds_of_cells_differ_in_symbol():
    figure = figures.bytes_frontier(post())
    points = {trace.name: trace for trace in figure.data[1:]}
    assert list(points) == ["plain", "shared out", "8 bits", "4 bits"]
    assert len({trace.marker.symbol for trace in points.values()}) == 4
    assert [len(trace.x) for trace in points.values()] == [13, 1, 1, 1]
    assert points["shared out"].customdata[0][0] == "H2O(recent=0.5), Ada(budget=128, floor=0.2)"
    assert points["4 bits"].customdata[0][0] == "H2O(recent=0.5), budget 128, 4 bits"
    assert points["4 bits"].x[0] == pytest.approx(0.32)
    assert points["shared out"].x[0] > points["shared out"].customdata[0][4] == pytest.approx(1.28)
    assert points["4 bits"].text[0] in ("", "H2O<br>budget 128<br>4 bits")
    assert "full cache" in points["plain"].text


def test_the_frontier_is_what_none_beats_at_both():
    table = pd.DataFrame(
        {
            "seed": 0, "query_aware": False, "allocation": None, "bits": None, "policy": ["A()", "B()", "C()", "full cache"],
            "budget": [1, 1, 2, None], "nbytes": [1e6, 1e6, 2e6, 4e6], "answered": [0.1, 0.3, 0.2, 0.9],
            "answer_nll": [3.0, 2.0, 2.5, 1.0],
        }
    )  # fmt: skip
    for quality in ("answered", "answer_nll"):
        line = figures.bytes_frontier(table, quality).data[0]
        assert list(line.x) == [1, 4] and list(line.y) == list(table[quality][[1, 3]])


def test_fills_are_two_groups():
    table = grid()
    figure = figures.footprint_against_quality(table)
    points = [trace for trace in figure.data if trace.mode == "markers" and trace.x[0] is not None]
    symbols = {(trace.name, trace.marker.symbol) for trace in points}
    assert len({symbol for _, symbol in symbols}) == 8  # two a policy; the full cache has the circle of the first
    assert all((name, symbol + "-open") in symbols for name, symbol in symbols if "-open" not in symbol)
    left = [trace for trace in points if trace.name == "TOVA()" and trace.xaxis == "x"]
    assert list(left[0].x) == [1, 1, 1] and list(left[1].x) == pytest.approx([b * 1e4 / 6e6 for b in BUDGETS])
    right = [trace for trace in points if trace.name == "TOVA()" and trace.xaxis == "x2"]
    assert list(right[0].x) == pytest.approx([0.96, 1.92, 3.84]) and list(right[1].x) == pytest.approx(
        [0.64, 1.28, 2.56]
    )
    cell = table[(table.policy == "TOVA()") & (table.budget == 64) & (table["mode"] == "in-fill")]
    assert left[1].customdata[1][0] == "in-fill, budget 64"
    assert left[1].y[1] == pytest.approx(cell.answer_nll.mean()) and left[1].error_y.array[1] > 0
    named = [trace.name for trace in figure.data if trace.x[0] is None]
    assert named == list(grid_module.FILLS.values())


def test_what_is_gone_is_struck_out():
    attention = np.tril(np.full((3, 3), 0.25))
    figure = figures.attention_and_evictions(attention, [2, 4, 4], ["a", "<b>", " "], "Three")
    heat, gone = figure.data
    assert list(heat.x) == ["0 a", "1 &lt;b&gt;", "2 ' '"] and heat.text[2][0] == "25" and heat.text[0][2] == ""
    assert (list(gone.x), list(gone.y)) == (["0 a"], ["2 ' '"])
    with pytest.raises(ValueError, match="2 expiries for 3 tokens"):
        figures.attention_and_evictions(attention, [2, 4], ["a", "b", "c"], "Three")
