"""Figures: what they draw, how series are told apart, and what they say about a table that cannot be drawn."""

import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest

from fmlab import figures
from fmlab.intervals import bootstrap, wilson

POLICIES = ["H2O(recent=0.5)", "SinkWindow(sinks=4)", "Odd(name='<b>&')"]
BUDGETS = [32, 64, 128]


def rows() -> pd.DataFrame:
    """One row a policy and budget, the full cache first."""
    full = {"policy": "full cache", "budget": None, "mass_recall": 1.0, "nbytes": 9e6, "nll_delta": 0.0}
    table = [full | {"nll_delta_low": 0.0, "nll_delta_high": 0.0}]
    for p, policy in enumerate(POLICIES):
        for budget in BUDGETS:
            delta = (p + 1) / budget
            table.append(
                {
                    "policy": policy, "budget": budget, "mass_recall": 1 - delta, "nbytes": budget * 1e4,
                    "nll_delta": delta, "nll_delta_low": delta - 0.01, "nll_delta_high": delta + 0.02,
                }
            )  # fmt: skip
    return pd.DataFrame(table)


def facts(seeds=4) -> pd.DataFrame:
    """One row a fact."""
    chance = np.random.default_rng(0)
    table = []
    for seed in range(seeds):
        for policy, budget in [("full cache", None), *((p, b) for p in POLICIES for b in BUDGETS)]:
            for fact, third in enumerate(("early", "early", "middle", "middle", "late", "late")):
                present, told = float(chance.random()), bool(chance.random() < 0.5)
                depth = (fact + 0.4 + 0.2 * chance.random()) / 6
                row = {"policy": policy, "budget": budget, "seed": seed, "third": third, "depth": depth}
                table.append(row | {"present": present, "answered": told})
    return pd.DataFrame(table)


def heads(seeds=0) -> pd.DataFrame:
    """One row a policy, budget and head, the optimum too."""
    chance = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "policy": policy, "budget": budget, "layer": layer, "head": head, "mass_recall": 0.8,
                "regret": 0.0 if policy == "optimum" else float(chance.random()), **({"seed": seed} if seeds else {}),
            }
            for seed in range(seeds or 1)
            for policy in [*POLICIES, "optimum"]
            for budget in BUDGETS
            for layer in (0, 7)
            for head in range(3)
        ]
    )  # fmt: skip


def losses() -> pd.DataFrame:
    """One row a layer, head and token of a text of 100 tokens."""
    rows = [
        {
            "policy": POLICIES[0], "budget": 32, "layer": layer, "head": head, "position": i, "token": f" <b>{i}\n",
            "lost": 0.001 * ((i * 7) % 11) * (layer + 1), "gained": 0.0,
        }
        for layer in (0, 7) for head in range(3) for i in range(100)
    ]  # fmt: skip
    return pd.DataFrame(rows)


LINES = [figures.mass_recall_by_budget, figures.nll_by_budget, figures.bytes_against_quality]
OF_FACTS = [figures.retention_by_depth, figures.needle_heatmap]
ALL = [(draw, rows) for draw in LINES] + [(draw, facts) for draw in OF_FACTS]
OF_REGRET = [(figures.regret_bars, heads), (figures.lost_by_depth, losses), (figures.lost_tokens, losses)]


@pytest.mark.parametrize(("draw", "make"), ALL + OF_REGRET)
def test_a_figure_is_a_pure_function(draw, make):
    table = make()
    before = table.copy(deep=True)
    figure = draw(table)
    pd.testing.assert_frame_equal(table, before)
    assert isinstance(figure, go.Figure) and figure.layout.title.text
    assert figure.layout.template.layout.paper_bgcolor == "rgba(0,0,0,0)"
    assert figure.to_json() == draw(table).to_json()
    assert json.loads(figure.to_json())["data"]


@pytest.mark.parametrize("draw", [*LINES, figures.retention_by_depth])
def test_series_differ_in_more_than_colour(draw):
    figure = draw(rows() if draw in LINES else facts())
    looks = {trace.name: (trace.line.dash, trace.marker.symbol) for trace in figure.data}
    assert len(looks) >= 3
    assert all(len(set(part)) >= 3 for part in zip(*looks.values(), strict=True))


def test_styles_repeat_late():
    names = [f"P{i}" for i in range(60)]
    looks = figures.styles(names)
    assert len(set(looks.values())) == 61
    assert figures.styles(["full cache", *names])["P3"] == looks["P3"]


def test_recall_at_its_budget():
    figure = figures.mass_recall_by_budget(rows())
    assert [trace.name for trace in figure.data] == [*POLICIES[:2], "Odd(name='&lt;b&gt;&amp;')"]
    first = figure.data[0]
    assert list(first.y) == [1 - 1 / 32, 1 - 1 / 64, 1 - 1 / 128] and list(first.customdata) == BUDGETS
    assert list(figure.layout.xaxis.ticktext) == ["32", "64", "128"]
    assert [round(x) for x in first.x] == [0, 1, 2]
    assert figure.layout.shapes[0].y0 == 1 and figure.layout.annotations[0].text == "full cache"


def test_intervals_are_drawn_as_they_are():
    for draw in (figures.nll_by_budget, figures.bytes_against_quality):
        trace = next(trace for trace in draw(rows()).data if trace.name == POLICIES[0])
        assert trace.error_y.array == pytest.approx([0.02] * 3)
        assert trace.error_y.arrayminus == pytest.approx([0.01] * 3)


def test_no_interval_no_bar():
    table = rows().assign(nll_delta_low=None, nll_delta_high=None)
    assert all(trace.error_y.array is None for trace in figures.nll_by_budget(table).data)


def test_a_refused_cell_is_a_gap():
    table = rows()
    table.loc[(table["policy"] == POLICIES[0]) & (table["budget"] == 32), ["mass_recall", "nll_delta"]] = None
    for draw in LINES[:2]:
        first = draw(table).data[0]
        assert list(first.customdata) == [64, 128]


def test_bytes_are_the_horizontal_axis():
    figure = figures.bytes_against_quality(rows())
    names = [trace.name for trace in figure.data]
    assert names[0] == "full cache" and figure.data[0].x[0] == pytest.approx(9, rel=0.1)
    middle = figure.data[2]
    assert middle.x == pytest.approx([0.32, 0.64, 1.28]) and middle.customdata[0][0] == "32"


def test_retention_has_the_intervals_of_its_kind():
    table = facts()
    figure = figures.retention_by_depth(table)
    early = table[(table["policy"] == POLICIES[0]) & (table["budget"] == 32) & (table["third"] == "early")]
    traces = [trace for trace in figure.data if trace.name == POLICIES[0]]
    assert len(traces) == 6
    present, answered = traces[0], traces[3]
    held = bootstrap(early["present"].to_numpy(), early["seed"].to_numpy())
    assert present.y[0] == pytest.approx(held.mean) and present.error_y.array[0] == pytest.approx(held.high - held.mean)
    told = wilson(int(early["answered"].sum()), len(early))
    assert answered.y[0] == told.mean and answered.error_y.arrayminus[0] == pytest.approx(told.mean - told.low)
    assert answered.customdata[0] == ["early", 8]
    assert sum(bool(trace.showlegend) for trace in figure.data) == 4
    assert [note.text for note in figure.layout.annotations[:3]] == ["budget 32", "budget 64", "budget 128"]


def test_retention_of_one_text_has_no_interval_of_what_is_present():
    table = facts(seeds=1).drop(columns=["seed", "answered"])
    figure = figures.retention_by_depth(table)
    assert all(trace.error_y.array is None for trace in figure.data) and len(figure.data) == 12


def test_every_policy_is_explained_though_it_was_refused_at_first():
    table = facts()
    table = table[(table["policy"] != POLICIES[0]) | (table["budget"] > 32)]
    shown = [trace.name for trace in figures.retention_by_depth(table).data if trace.showlegend]
    assert sorted(shown) == sorted({trace.name for trace in figures.retention_by_depth(table).data})


def test_the_needle_map_counts():
    table = facts()
    figure = figures.needle_heatmap(table)
    assert len(figure.data) == 3 and figure.layout.annotations[0].text == "H2O(recent=0.5)"
    assert figure.layout.annotations[2].text == "Odd(name='&lt;b&gt;&amp;')"
    heat = figure.data[0]
    assert list(heat.x) == ["32", "64", "128", "full"] and len(heat.y) == 6
    assert heat.y[0] in ("7%", "8%", "9%")
    cell = table[(table["policy"] == POLICIES[0]) & (table["budget"] == 64)].sort_values(["seed", "depth"])
    last = cell.groupby("seed").tail(1)["answered"]
    assert heat.z[5][1] == last.mean() and heat.text[5][1] == f"{last.sum()}/4"


def test_the_needle_map_without_a_full_cache():
    table = facts(seeds=1)
    table = table[table["policy"] == POLICIES[1]].drop(columns="seed")
    heat = figures.needle_heatmap(table).data[0]
    assert list(heat.x) == ["32", "64", "128"] and set(np.ravel(heat.text)) <= {"0/1", "1/1"}


@pytest.mark.parametrize(("draw", "make"), ALL)
def test_tables_that_cannot_be_drawn(draw, make):
    with pytest.raises(ValueError, match="the table is empty"):
        draw(make().iloc[:0])
    with pytest.raises(ValueError, match="no column 'policy', 'budget'"):
        draw(make().drop(columns=["policy", "budget"]))
    with pytest.raises(ValueError, match="no row with a budget, only the full cache"):
        draw(make().query("policy == 'full cache'"))


@pytest.mark.parametrize(
    ("draw", "column"),
    [
        (figures.mass_recall_by_budget, "mass_recall"),
        (figures.nll_by_budget, "nll_delta_low"),
        (figures.bytes_against_quality, "nbytes"),
        (figures.needle_heatmap, "depth"),
        (figures.retention_by_depth, "third"),
        (figures.regret_bars, "regret"),
        (figures.lost_by_depth, "lost"),
        (figures.lost_tokens, "token"),
    ],
)
def test_a_missing_column_is_named(draw, column):
    make = dict(ALL + OF_REGRET)[draw]
    table = make().drop(columns=column)
    with pytest.raises(ValueError, match=f"the table has no column '{column}'; it has policy, budget"):
        draw(table)


def test_retention_needs_one_of_its_two_columns():
    with pytest.raises(ValueError, match="no column 'present'"):
        figures.retention_by_depth(facts().drop(columns=["present", "answered"]))


@pytest.mark.parametrize("draw", LINES)
def test_a_table_of_refused_cells(draw):
    with pytest.raises(ValueError, match="every cell was refused"):
        draw(rows().assign(mass_recall=None, nll_delta=None))


def test_several_rows_a_cell_are_not_averaged_silently():
    with pytest.raises(ValueError, match=r"several rows of H2O\(recent=0.5\) at budget 32"):
        figures.nll_by_budget(pd.concat([rows(), rows()]))


def test_bars_of_regret_have_the_interval_of_layers_or_texts():
    for table, unit, clusters in ((heads(), "layer", 2), (heads(seeds=4), "seed", 4)):
        figure = figures.regret_bars(table)
        bar, worst = figure.data[0], figure.data[1]
        cell = table[(table.policy == POLICIES[0]) & (table.budget == 64)]
        mean = bootstrap(cell.regret.to_numpy(), cell[unit].to_numpy())
        assert bar.y[1] == pytest.approx(mean.mean) and bar.error_y.array[1] == pytest.approx(mean.high - mean.mean)
        assert bar.customdata[1][4] == clusters and worst.y[1] == cell.regret.max()
        assert [trace.name for trace in figure.data if trace.type == "bar"] == [
            *POLICIES[:2],
            "Odd(name='&lt;b&gt;&amp;')",
        ]
        assert len({trace.marker.pattern.shape for trace in figure.data if trace.type == "bar"}) == 3


def test_bars_of_a_regret_that_nobody_knows():
    with pytest.raises(ValueError, match="no row of the table has a figure in column 'regret'"):
        figures.regret_bars(heads().assign(regret=float("nan")))


def test_what_is_lost_is_added_up_by_depth():
    table = losses()
    figure = figures.lost_by_depth(table)
    heat = figure.data[0]
    assert list(heat.y) == ["0.0", "0.1", "0.2", "7.0", "7.1", "7.2"] and len(heat.x) == 40
    summed = np.array(heat.customdata)[..., 0]
    assert summed.sum() == pytest.approx(table.lost.sum()) and np.asarray(heat.z) ** 2 == pytest.approx(summed)
    first = table[(table.layer == 7) & (table["head"] == 1) & (table.position < 3)]
    assert summed[4][0] == pytest.approx(first.lost.sum()) and list(np.array(heat.customdata)[4][0][1:]) == [0, 2]
    two = figures.lost_by_depth(pd.concat([table, table.assign(budget=64)]))
    assert len(two.data) == 2 and two.layout.annotations[1].text == "H2O(recent=0.5), budget 64"


def test_the_tokens_that_are_lost_most_are_shown_as_text():
    table = losses()
    bar = figures.lost_tokens(table, top=5).data[0]
    mean = table.groupby("position").lost.mean().sort_values(ascending=False)
    assert list(bar.x) == pytest.approx(mean.head(5).tolist()) and len(bar.y) == 5
    assert all("<b> &lt;b&gt;" in label and "⏎</b>" in label for label in bar.text)
    assert bar.customdata[0][1:] == [6, 6]
    with pytest.raises(ValueError, match="the table holds 2 runs"):
        figures.lost_tokens(pd.concat([table, table.assign(budget=64)]))
    with pytest.raises(ValueError, match="loses nothing that the optimum keeps"):
        figures.lost_tokens(table.assign(lost=0.0))


def test_no_button_uploads_a_chart():
    assert figures.CONFIG["showSendToCloud"] is False
    for name in ("plotly_mimetype", "notebook"):
        assert pio.renderers[name].config["showSendToCloud"] is False
    bundle = pio.renderers["plotly_mimetype"].to_mimebundle(figures.mass_recall_by_budget(rows()).to_dict())
    assert bundle["application/vnd.plotly.v1+json"]["config"]["showSendToCloud"] is False
