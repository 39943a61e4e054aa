"""Hit ratios over capacity: a line a policy with dash and colour, the ceiling last, published points hollow."""

import pandas as pd
import pytest

from fmlab import figures

TABLE = pd.DataFrame(
    [
        {"policy": policy, "capacity": capacity, "block": 0.1, "token": base + capacity / 1e4, "request": 0.3}
        for policy, base in {"Belady()": 0.5, "LRU()": 0.2, "Odd('<b>')": 0.1}.items()
        for capacity in (1000, 100)
    ]
)


def test_every_policy_is_a_line_and_the_ceiling_stands_apart():
    figure = figures.hit_ratio_by_capacity(TABLE)
    lru, odd, ceiling = figure.data
    assert (lru.name, odd.name, ceiling.name) == ("LRU()", "Odd('&lt;b&gt;')", "Belady(): reads the future")
    assert list(lru.x) == [100, 1000] and list(lru.y) == pytest.approx([0.21, 0.3])
    assert lru.line.dash != odd.line.dash and lru.line.color != odd.line.color
    assert ceiling.line.color == figures.NEUTRAL and list(ceiling.y) == pytest.approx([0.51, 0.6])
    assert figure.layout.xaxis.type == "log" and figure.layout.xaxis.title.text == "capacity, blocks"
    assert list(figures.hit_ratio_by_capacity(TABLE, "request").data[0].y) == [0.3, 0.3]


def test_published_points_are_hollow_marks():
    points = pd.DataFrame({"capacity": [500, 50], "value": [0.4, 0.2]})
    *_, mark = figures.hit_ratio_by_capacity(TABLE, unit="tokens", published=points).data
    assert (mark.mode, mark.marker.symbol, list(mark.x), list(mark.y)) == (
        "markers",
        "circle-open",
        [50, 500],
        [0.2, 0.4],
    )


@pytest.mark.parametrize(
    ("table", "options", "says"),
    [
        (TABLE[:0], {}, "the table is empty"),
        (TABLE.drop(columns="token"), {}, "no column 'token'; it has policy, capacity, block, request"),
        (TABLE, {"ratio": "byte"}, "ratio='byte'; one of block, token, request"),
        (TABLE.assign(capacity=0), {}, "capacity=0 has no place on a logarithmic axis"),
        (TABLE, {"published": pd.DataFrame({"capacity": [1]})}, "no column 'value'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(table, options, says):
    with pytest.raises(ValueError, match=says):
        figures.hit_ratio_by_capacity(table, **options)
