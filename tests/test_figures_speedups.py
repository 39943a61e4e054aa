"""Speed-ups as pictures: intervals beside claims, where a pair starts to pay, and the steps from all off to all on."""

import math

import pandas as pd
import pytest

from fmlab import figures

NAN = float("nan")


def row(pair, size, speedup, claim=(NAN, NAN), unrest=None, verdict="faster") -> dict:
    return {
        "pair": pair, "size": size, "unit": "tokens", "speedup": speedup, "low": speedup * 0.9, "high": speedup * 1.2, "n": 40,
        "claim_low": claim[0], "claim_high": claim[1], "verdict": verdict, "unrest": unrest,
    }  # fmt: skip


TABLE = pd.DataFrame(
    [
        row("decoding <b>", 1_000, 1.3, (1.2, 1.4), verdict="confirmed"),
        row("decoding <b>", 0, 1.0, (1.2, 1.4), verdict="no difference"),
        row("decoding <b>", 10, 0.5, (1.2, 1.4), "half of the rounds lie 40% apart", "slower"),
        row("masks", 10, 2.0),
        row("masks", 100, 0.8, verdict="slower"),
        row("masks", 1_000, 1.5),
        row("masks", 10_000, 400.0),
        row("eviction", 10, 0.7, (1.1, 1.1), verdict="slower"),
    ]
)
REFUSED = pd.DataFrame([row("wrong", 10, NAN, (2, 3), verdict="not equivalent")])


def test_every_row_has_its_mark_interval_and_verdict():
    figure = figures.speedups(TABLE)
    claimed, measured, restless = figure.data
    assert measured.name == "measured, 95% interval" and len(measured.x) == 7
    assert list(restless.x) == [0.5] and (measured.marker.symbol, restless.marker.symbol) == ("circle", "circle-open")
    at = list(measured.x).index(1.3)
    assert measured.error_x.array[at] == pytest.approx(0.26) and measured.error_x.arrayminus[at] == pytest.approx(0.13)
    assert (
        "1.3 x [1.17, 1.56], n=40" in measured.hovertext[at]
        and "claimed 1.2 to 1.4 x: confirmed" in measured.hovertext[at]
    )
    assert "unstable machine: half of the rounds lie 40% apart" in restless.hovertext[0]
    assert list(claimed.x[:3]) == [1.2, 1.4, None] and len(claimed.x) == 12, "three rows of decoding, one of eviction"
    verdicts = {note.y: note.text for note in figure.layout.annotations if note.x > 1}
    names = {note.y: note.text for note in figure.layout.annotations if note.x == 0}
    axis = figure.layout.yaxis
    assert axis.ticktext[:4] == ("0 tokens", "10 tokens", "1,000 tokens", "10 tokens")
    assert list(names.values()) == ["<b>decoding &lt;b&gt;</b>", "<b>masks</b>", "<b>eviction</b>"]
    assert axis.tickvals[2] < list(names)[1] < axis.tickvals[3], "a name stands above its rows"
    assert [verdicts[place] for place in axis.tickvals[:4]] == ["no difference", "slower", "confirmed", "faster"]
    assert axis.tickvals[3] - axis.tickvals[2] > axis.tickvals[2] - axis.tickvals[1], "pairs stand apart"


def test_the_axis_is_logarithmic_with_a_line_at_one():
    figure = figures.speedups(TABLE)
    low, high = figure.layout.xaxis.range
    assert figure.layout.xaxis.type == "log" and low < math.log10(0.45) and math.log10(480) < high
    assert (figure.layout.shapes[0].x0, figure.layout.shapes[0].x1) == (1, 1)
    assert "1 x" in figure.layout.xaxis.ticktext
    slow = figures.speedups(TABLE[TABLE["pair"] == "eviction"]).layout.xaxis.range
    assert slow[0] < math.log10(0.63) and slow[1] > math.log10(1.1), "the claim and 1 are inside it, too"


def test_a_refused_pair_keeps_its_place_and_has_no_mark():
    figure = figures.speedups(pd.concat([TABLE[:1], REFUSED]))
    assert [len(trace.x) for trace in figure.data if "measured" in trace.name] == [1]
    assert figure.layout.annotations[-1].text == "not equivalent" and len(figure.layout.yaxis.tickvals) == 2


def test_lines_by_size_and_where_they_start_to_pay():
    figure = figures.speedup_by_size(TABLE)
    decoding, masks, eviction, rings = figure.data
    assert list(decoding.x) == [10, 1_000], "a size of 0 is left out"
    assert (decoding.name, masks.name) == (
        "decoding &lt;b&gt;: pays from 1,000 tokens",
        "masks: pays from 1,000 tokens",
    )
    assert eviction.name == "eviction: pays at no size that was measured"
    assert list(rings.x) == [1_000, 1_000] and list(rings.y) == [1.3, 1.5], "not masks at 10: at 100 it is slower again"
    assert decoding.line.dash != masks.line.dash and decoding.marker.symbol != masks.marker.symbol
    assert masks.error_y.array[0] == pytest.approx(0.4)
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log" and figure.layout.shapes[0].y0 == 1
    assert len(figures.speedup_by_size(TABLE[TABLE["pair"] == "eviction"]).data) == 1


def test_the_pointer_is_told_the_floor_where_there_is_one():
    floors = TABLE[TABLE["pair"] == "masks"].assign(floor=["40 bytes: <i>", "400 bytes: a boolean a block", None, None])
    told = figures.speedups(floors).data[0].hovertext
    assert told[0].endswith("<br>at least 40 bytes: &lt;i&gt;") and "at least 400 bytes" in told[1]
    line = figures.speedup_by_size(floors).data[0]
    assert [row[4] for row in line.customdata] == [
        "<br>at least 40 bytes: &lt;i&gt;",
        "<br>at least 400 bytes: a boolean a block",
        "",
        "",
    ]
    assert "%{customdata[4]}" in line.hovertemplate
    assert "at least" not in "".join(figures.speedups(TABLE).data[1].hovertext)


@pytest.mark.parametrize("draw", [figures.speedups, figures.speedup_by_size])
@pytest.mark.parametrize(
    ("table", "says"),
    [
        (TABLE[:0], "the table is empty"),
        (TABLE.drop(columns="low"), "no column 'low'; it has pair"),
        (pd.concat([TABLE, TABLE[:1]]), "'decoding <b>' at 1000 twice"),
        (TABLE.assign(low=0.0), "column 'low' has 0.0 for 'decoding <b>'"),
        (TABLE.assign(high=math.inf), "column 'high' has inf"),
        (TABLE.assign(size=-1).iloc[:1], "column 'size' has -1"),
        (REFUSED, "has a figure in column 'speedup'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(draw, table, says):
    with pytest.raises(ValueError, match=says):
        draw(table)


def test_only_sizes_of_zero_cannot_be_drawn_by_size():
    with pytest.raises(ValueError, match="column 'size' above 0"):
        figures.speedup_by_size(TABLE[TABLE["size"] == 0])


def effect(name, saved, workload="a chat of 40 turns", off=10.0, on=4.0) -> dict:
    alone = off / (off - saved)
    ratios = {key + end: alone for key in ("alone", "left_out", "interaction") for end in ("", "_low", "_high")}
    seconds = {"saved_seconds": saved, "saved_low": saved - 0.25, "saved_high": saved + 0.5}
    share = {"share": saved / off, "share_low": 0.0, "share_high": 1.0}
    return (
        {"workload": workload, "optimisation": name, "off_seconds": off, "on_seconds": on, "n": 7, "clusters": 3}
        | ratios
        | seconds
        | share
    )


EFFECTS = pd.DataFrame(
    [effect("slow <i>, a step with a long name", -0.5), effect("carry-over", 4.0), effect("batching", 1.0)]
)


def test_the_waterfall_ends_where_all_is_on():
    bars, intervals, words = figures.waterfall(EFFECTS).data
    assert list(bars.x) == [
        "all off",
        "carry-over",
        "batching",
        "slow &lt;i&gt;, a<br>step with a<br>long name",
        "together",
        "all on",
    ]
    assert list(bars.y[:5]) == [10, -4, -1, 0.5, -1.5], "together they save 1.5 s more than one by one"
    assert sum(bars.y[:5]) == 4.0 and bars.measure[0] == "absolute" and bars.measure[-1] == "total"
    assert words.text[1] == "−4 s<br>(−40%)" and words.text[3] == "+0.5 s<br>(+5%)" and words.text[-1] == "4 s"
    assert list(words.y) == [10, 10, 6, 5.75, 5.5, 4], "above each bar and its interval"
    assert list(intervals.x) == list(bars.x[1:4]) and list(intervals.y) == [6.0, 5.0, 5.5]
    assert list(intervals.error_y.array) == [0.25] * 3 and list(intervals.error_y.arrayminus) == [0.5] * 3
    assert "saves 4 s [3.75 s, 4.5 s] alone, 40.0% of the whole" in bars.hovertext[1]
    assert "without it: 1.67 x [1.67, 1.67]<br>n=7" in bars.hovertext[1]


def test_an_interaction_may_cost_and_a_workload_is_named():
    two = pd.concat([EFFECTS, pd.DataFrame([effect("overlap", 3.0, "grid", 5.0, 4.5)])])
    bars, _, words = figures.waterfall(two, "grid").data
    assert list(bars.y[:3]) == [5.0, -3.0, 2.5] and words.text[2] == "+2.5 s<br>(+50%)"
    with pytest.raises(ValueError, match="column 'workload' has 'a chat of 40 turns', 'grid'; say which"):
        figures.waterfall(two)
    with pytest.raises(ValueError, match="column 'workload' has no 'x'"):
        figures.waterfall(two, "x")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (EFFECTS[:0], "the table is empty"),
        (EFFECTS.drop(columns="saved_low"), "no column 'saved_low'"),
        (EFFECTS.assign(on_seconds=[1.0, 2.0, 1.0]), "column 'on_seconds' has 1.0, 2.0 in one workload"),
        (EFFECTS.assign(off_seconds=0.0), "column 'off_seconds' has 0.0"),
        (EFFECTS.assign(optimisation="x"), "column 'optimisation' has 'x' twice"),
        (EFFECTS.assign(saved_seconds=NAN), "column 'saved_seconds' has no figure"),
    ],
)
def test_effects_that_cannot_be_drawn_are_refused(table, says):
    with pytest.raises(ValueError, match=says):
        figures.waterfall(table)
