"""What conversation memories keep: evidence recall by share of the tokens, and facts by the third they were said in."""

from html import escape

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..intervals import Interval, bootstrap
from .look import NEUTRAL, PANEL_TITLES, THIRDS, check_columns, finish, offset, series, styles

RECALLS = {"mean": "mean share of the evidence", "all": "all of the evidence", "any": "any of the evidence"}
ASKED = {False: "query-blind", True: "query-aware: the memory reads the question"}


def evidence_by_share(table: pd.DataFrame, recall: str = "mean") -> go.Figure:
    """Evidence recall over the share of the conversation's tokens, a line a memory, with 95% intervals that draw whole
    conversations; query-blind and query-aware memories in panels of their own.

    One row a question: `memory`, `query_aware`, `share`, `conversation` and the recall, one of RECALLS. The dotted line
    is what keeping tokens at random would keep: the share itself.
    """
    check_columns(table, "memory", "query_aware", "share", "conversation", recall)
    if recall not in RECALLS:
        raise ValueError(f"recall={recall!r}; one of {', '.join(RECALLS)}")
    ways, look = sorted(set(table["query_aware"])), styles(table["memory"])
    figure = make_subplots(1, len(ways), shared_yaxes=True, subplot_titles=[ASKED[way] for way in ways])
    shares = sorted(set(table["share"]))
    for column, way in enumerate(ways, start=1):
        rows = table[table["query_aware"] == way]
        for memory, mine in rows.groupby("memory", sort=False):
            parts = {share: mine[mine["share"] == share] for share in shares if (mine["share"] == share).any()}
            means = [_mean(part, recall) for part in parts.values()]
            line = series(memory, look[memory], list(parts), [mean.mean for mean in means], means)
            line.customdata = [[mean.low, mean.high, mean.clusters] for mean in means]
            line.hovertemplate = (
                f"{line.name}<br>%{{x:.1%}} of the tokens: %{{y:.1%}} [%{{customdata[0]:.1%}}, %{{customdata[1]:.1%}}], "
                "%{customdata[2]} conversations<extra></extra>"
            )
            line.showlegend = memory not in {trace.legendgroup for trace in figure.data}
            figure.add_trace(line, 1, column)
        dotted = {"color": NEUTRAL, "dash": "dot", "width": 1.5}
        figure.add_trace(
            go.Scatter(x=shares, y=shares, mode="lines", line=dotted, showlegend=False, hoverinfo="skip"), 1, column
        )
    figure.update_xaxes(type="log", title_text="share of the conversation's tokens", tickvals=shares,
                        ticktext=[_fraction(share) for share in shares])  # fmt: skip
    figure.update_yaxes(tickformat=".0%")
    figure.update_yaxes(title_text=RECALLS[recall], col=1)
    return finish(figure, "Evidence that is still said, word for word", 520, PANEL_TITLES)


def kept_by_third(table: pd.DataFrame, share: float, quality: str = "answered") -> go.Figure:
    """`present` or `answered` by the third of the conversation in which the evidence stands, a mark a memory, with 95%
    intervals that draw whole conversations; query-blind and query-aware in panels of their own.

    One row a question: `memory`, `query_aware`, `share`, `conversation`, `third` and the quality (0 or 1).
    """
    check_columns(table, "memory", "query_aware", "share", "conversation", "third", quality)
    rows = table[table["share"] == share]
    if rows.empty:
        raise ValueError(f"no row has share={share}; the table has {sorted(set(table['share']))}")
    ways, look = sorted(set(rows["query_aware"])), styles(rows["memory"])
    figure = make_subplots(1, len(ways), shared_yaxes=True, subplot_titles=[ASKED[way] for way in ways])
    for column, way in enumerate(ways, start=1):
        panel = rows[rows["query_aware"] == way]
        memories = list(dict.fromkeys(panel["memory"]))
        for at, memory in enumerate(memories):
            mine = panel[panel["memory"] == memory]
            means = {
                name: _mean(mine[mine["third"] == name], quality) for name in THIRDS if (mine["third"] == name).any()
            }
            x = [THIRDS.index(name) + 1.8 * offset(at, len(memories)) for name in means]
            marks = series(memory, look[memory], x, [mean.mean for mean in means.values()], list(means.values()))
            marks.mode = "markers"
            marks.customdata = [[name, mean.low, mean.high, mean.n] for name, mean in means.items()]
            marks.hovertemplate = (
                f"{escape(memory, quote=False)}<br>%{{customdata[0]}}: %{{y:.0%}} [%{{customdata[1]:.0%}}, "
                "%{customdata[2]:.0%}], n=%{customdata[3]}<extra></extra>"
            )
            marks.showlegend = memory not in {trace.legendgroup for trace in figure.data}
            figure.add_trace(marks, 1, column)
    figure.update_xaxes(
        tickvals=list(range(len(THIRDS))), ticktext=list(THIRDS), title_text="where the evidence stands"
    )
    figure.update_yaxes(tickformat=".0%", range=[-0.03, 1.03])
    figure.update_yaxes(title_text=f"questions {quality}" if quality == "answered" else "evidence present", col=1)
    return finish(figure, f"{_fraction(share)} of the tokens: what is {quality}", 480, PANEL_TITLES)


def _mean(rows: pd.DataFrame, column: str) -> Interval:
    return bootstrap(rows[column].to_numpy(dtype=float), rows["conversation"].to_numpy())


def _fraction(share: float) -> str:
    return f"1/{round(1 / share)}" if abs(1 / share - round(1 / share)) < 1e-9 else f"{share:.0%}"
