"""The Pareto figure of attention patterns: a line a pattern, the Oracle's as the bound, intervals, and what is refused."""

import math

import pandas as pd
import pytest

from fmlab import figures

TABLE = pd.DataFrame(
    [
        {"pattern": name, "setting": f"{name}({density})", "density": density, "mass_recall": base + density / 4,
         "mass_recall_low": base - 0.1, "mass_recall_high": base + 0.3, "output_error": 0.5 - density, "speedup": 0.5 / density,
         "speedup_low": 0.4 / density, "speedup_high": 0.7 / density}
        for name, base in {"Oracle": 0.7, "Streaming": 0.6, "Odd<b>": 0.3}.items()
        for density in (0.4, 0.1)
    ]
)  # fmt: skip


def test_every_pattern_is_a_line_and_the_oracle_the_bound():
    figure = figures.sparsity_pareto(TABLE)
    streaming, odd, oracle = figure.data
    assert (streaming.name, odd.name, oracle.legendgroup) == ("Streaming", "Odd&lt;b&gt;", "Oracle")
    assert list(streaming.x) == [0.1, 0.4] and list(streaming.y) == pytest.approx([0.625, 0.7])
    assert list(streaming.error_y.array) == pytest.approx([0.275, 0.2])
    assert (oracle.mode, oracle.line.dash, oracle.line.color) == ("lines", "dot", figures.NEUTRAL)
    assert streaming.line.dash != odd.line.dash and streaming.line.color != odd.line.color
    assert odd.customdata[0][0] == "Odd&lt;b&gt;(0.1)" and odd.customdata[0][1] == " [0.200, 0.600]"
    assert figure.layout.xaxis.type == "log" and "density" in figure.layout.xaxis.title.text


def test_over_speed_the_oracle_is_at_its_ideal():
    figure = figures.sparsity_pareto(TABLE, "speedup", "output_error")
    assert [line.name for line in figure.data] == ["Streaming", "Odd&lt;b&gt;", "Oracle at 1/density (a bound)"]
    oracle = figure.data[2]
    assert (oracle.mode, oracle.line.dash, oracle.line.color) == ("lines", "dash", figures.NEUTRAL)
    assert list(oracle.x) == [2.5, 10] and list(oracle.y) == pytest.approx([0.1, 0.4])
    assert [setting for setting, _ in oracle.customdata] == ["Oracle(0.4)", "Oracle(0.1)"]
    unmeasured = TABLE.assign(speedup=TABLE["speedup"].mask(TABLE["pattern"] == "Oracle"))
    assert figures.sparsity_pareto(unmeasured, "speedup", "output_error") == figure
    alone = TABLE[TABLE["pattern"] != "Oracle"].drop(columns="density")
    assert len(figures.sparsity_pareto(alone, "speedup").data) == 2
    assert list(figure.data[0].x) == [1.25, 5] and list(figure.data[0].y) == pytest.approx([0.1, 0.4])
    assert (
        list(figure.data[0].error_x.arrayminus) == pytest.approx([0.25, 1.0]) and figure.data[0].error_y.array is None
    )
    assert [shape.x0 for shape in figure.layout.shapes] == [1]


def test_nats_may_be_gained_and_have_no_percent():
    table = TABLE.assign(nll_delta=TABLE["mass_recall"] - 0.6)
    figure = figures.sparsity_pareto(table, y="nll_delta")
    assert min(figure.data[1].y) < 0 and figure.layout.yaxis.tickformat == ".2f"
    assert figure.layout.title.text.startswith("Nats a token lost against density")
    assert figures.sparsity_pareto(TABLE.assign(answered=0.5), y="answered").layout.yaxis.tickformat == ".0%"


def test_without_intervals_there_are_no_bars():
    plain = TABLE[["pattern", "setting", "density", "mass_recall"]]
    assert all(line.error_y.array is None for line in figures.sparsity_pareto(plain).data)
    one = TABLE.assign(mass_recall_low=math.nan, mass_recall_high=math.nan)
    assert figures.sparsity_pareto(one).data[0].error_y.array is None
    assert figures.sparsity_pareto(one).data[0].customdata[0][1] == ""


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        (TABLE[:0], {}, "the table is empty"),
        (TABLE.drop(columns="setting"), {}, "the table has no column 'setting'"),
        (TABLE, {"x": "tokens"}, "x='tokens'; one of density, speedup"),
        (TABLE, {"y": "nll"}, "y='nll'; one of mass_recall, output_error"),
        (TABLE.assign(density=1.2), {}, r"density=1.2 of Oracle\(0.4\) is not from 0 to 1"),
        (TABLE.assign(mass_recall=math.nan), {}, "mass_recall=nan"),
        (TABLE.assign(speedup=0.0), {"x": "speedup"}, "speedup=0.0 has no place on a logarithmic axis"),
        (TABLE.drop(columns="density"), {"x": "speedup"}, "the table has no column 'density'"),
        (TABLE.assign(density=0.0), {"x": "speedup"}, "density=0.0 has no place"),
        (TABLE.assign(nll_delta=math.inf), {"y": "nll_delta"}, "nll_delta=inf of .* is not a number"),
        (TABLE.assign(answered=1.5), {"y": "answered"}, "answered=1.5 of .* is not from 0 to 1"),
        (TABLE.assign(output_error=-1.0), {"y": "output_error"}, "output_error=-1.0 of .* is not 0 or more"),
    ],
)
def test_what_cannot_be_drawn_is_named(table, options, says):
    with pytest.raises(ValueError, match=says):
        figures.sparsity_pareto(table, **options)
