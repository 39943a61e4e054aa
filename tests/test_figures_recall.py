"""Figures of conversation memories: a line a memory, the two ways of asking apart, intervals by conversation."""

import numpy as np
import pandas as pd
import pytest

from fmlab import figures
from fmlab.intervals import bootstrap

MEMORIES = {"Sliding": [False], "BM25 <b>": [True], "Semantic": [False, True]}


@pytest.fixture(scope="module")
def table():
    chance = np.random.default_rng(0)
    return pd.DataFrame(
        [
            {
                "memory": memory, "query_aware": aware, "share": share, "conversation": str(talk), "third": third,
                "mean": chance.random(), "all": False, "any": True, "present": chance.random() < share,
                "answered": chance.random() < share,
            }
            for memory, ways in MEMORIES.items()
            for aware in ways
            for share in (1 / 8, 1 / 4, 1 / 2)
            for talk in range(4)
            for third in ("early", "middle", "late", "late")
        ]
    )  # fmt: skip


def lines(figure, panel):
    return {trace.name: trace for trace in figure.data if trace.name and (trace.xaxis or "x") == panel}


def test_evidence_has_a_panel_for_each_way_of_asking_and_its_intervals(table):
    figure = figures.evidence_by_share(table)
    blind, aware = lines(figure, "x"), lines(figure, "x2")
    assert set(blind) == {"Sliding", "Semantic"} and set(aware) == {"BM25 &lt;b&gt;", "Semantic"}
    rows = table[(table.memory == "Semantic") & table.query_aware & (table.share == 1 / 4)]
    want, drawn = bootstrap(rows["mean"].to_numpy(), rows["conversation"].to_numpy()), aware["Semantic"]
    assert drawn.x[1] == 1 / 4 and drawn.y[1] == pytest.approx(want.mean)
    assert drawn.error_y.array[1] == pytest.approx(want.high - want.mean)
    assert [bool(trace.showlegend) for trace in (blind["Semantic"], aware["Semantic"])] == [True, False]
    assert list(figure.layout.xaxis.ticktext) == ["1/8", "1/4", "1/2"]
    assert figures.evidence_by_share(table, "any").data[0].y == (1, 1, 1)


def test_thirds_are_marks_with_intervals(table):
    figure = figures.kept_by_third(table, 1 / 4)
    rows = table[(table.memory == "Sliding") & (table.share == 1 / 4) & (table.third == "late")]
    mark = lines(figure, "x")["Sliding"]
    assert mark.mode == "markers" and list(mark.customdata[2][:1]) == ["late"]
    assert mark.y[2] == pytest.approx(rows["answered"].mean()) and mark.customdata[2][3] == len(rows) == 8
    assert "present" in figures.kept_by_third(table, 1 / 4, "present").layout.title.text


def test_what_is_missing_is_named(table):
    with pytest.raises(ValueError, match="recall='some'; one of mean, all, any"):
        figures.evidence_by_share(table.assign(some=1), "some")
    with pytest.raises(ValueError, match="no column 'third'"):
        figures.kept_by_third(table.drop(columns="third"), 1 / 4)
    with pytest.raises(ValueError, match="no row has share=0.3"):
        figures.kept_by_third(table, 0.3)
    with pytest.raises(ValueError, match="the table is empty"):
        figures.evidence_by_share(table[:0])
