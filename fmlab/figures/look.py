"""What every figure shares: colours with dashes and markers, the template, and the checks of a table."""

from collections.abc import Iterable, Sequence
from html import escape
from itertools import count
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from ..intervals import Interval

FULL = "full cache"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C")  # Okabe and Ito, grey for black
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "star", "triangle-down")
THIRDS = ("early", "middle", "late")
NEUTRAL = "#7A7A7A"  # readable on white and on black
PANEL_TITLES = 68  # pixels above a figure whose panels have titles
GRID = "rgba(128,128,128,.25)"
CONFIG = {"displaylogo": False, "showSendToCloud": False, "responsive": True}
"""What to show a figure with elsewhere: no logo, and no button that uploads the chart to somebody's cloud."""

TEMPLATE = "fmlab"
_AXIS = {
    "gridcolor": GRID, "linecolor": NEUTRAL, "zerolinecolor": GRID, "ticks": "outside", "automargin": True,
    "title": {"font": {"size": 13}, "standoff": 8},
}  # fmt: skip
pio.templates[TEMPLATE] = go.layout.Template(
    layout={
        "colorway": COLOURS,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": NEUTRAL, "family": "system-ui, sans-serif", "size": 13},
        "title": {
            "font": {"size": 15},
            "x": 0,
            "xref": "paper",
            "xanchor": "left",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 10},
        },
        "margin": {"l": 64, "r": 16, "t": 44, "b": 52},
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "colorscale": {"sequential": "Cividis"},
        "hoverlabel": {"align": "left"},
    }
)
for _name in ("plotly_mimetype", "notebook"):  # where a notebook shows a figure
    pio.renderers[_name].config = {**(pio.renderers[_name].config or {}), **CONFIG}


class Style(NamedTuple):
    """How one policy is told from the others: never by colour alone."""

    colour: str
    dash: str
    marker: str


def styles(policies: Iterable[str]) -> dict[str, Style]:
    """A style for each policy, in order of appearance; the full cache is a grey dotted line."""
    others = [policy for policy in dict.fromkeys(policies) if policy != FULL]
    turn = ((COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)]) for i in count())
    return {FULL: Style(NEUTRAL, "dot", "circle-open")} | {p: Style(*s) for p, s in zip(others, turn, strict=False)}


def series(policy: str, look: Style, x, y, intervals: Sequence[Interval] | None) -> go.Scatter:
    """A line with markers in the look of its policy, with error bars where there are intervals."""
    trace = go.Scatter(
        x=list(x),
        y=list(y),
        name=escape(policy, quote=False),
        legendgroup=policy,
        mode="lines+markers",
        line={"color": look.colour, "dash": look.dash, "width": 2},
        marker={"color": look.colour, "symbol": look.marker, "size": 9, "line": {"width": 1.5, "color": look.colour}},
    )
    if intervals and any(interval.high == interval.high for interval in intervals):
        trace.error_y = {
            "type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": look.colour,
            "array": [interval.high - interval.mean for interval in intervals],
            "arrayminus": [interval.mean - interval.low for interval in intervals],
        }  # fmt: skip
    return trace


def intervals_of(rows: pd.DataFrame, *columns: str) -> list[Interval]:
    """Those of a table that has them in three columns: mean, low, high."""
    return [Interval(*values, 0, 0) for values in rows[list(columns)].astype(float).itertuples(index=False, name=None)]


def offset(at: int, of: int) -> float:
    """Where the at-th of several points stands around its place."""
    return 0.0 if of == 1 else 0.36 * (at / (of - 1) - 0.5)


def spoken(budget: float) -> str:
    """A budget as a word."""
    return "none" if budget != budget else f"{budget:g}"


def budgets_of(table: pd.DataFrame) -> list[int]:
    """The budgets of a table, in order. Raises ValueError where there is none."""
    budgets = sorted({int(budget) for budget in table["budget"].dropna()})
    if not budgets:
        raise ValueError("the table has no row with a budget, only the full cache; measure at least one")
    return budgets


def measured(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """The rows with a figure: a refused cell has none."""
    rows = table.dropna(subset=[column])
    if rows.empty:
        raise ValueError(f"no row of the table has a figure in column {column!r}; every cell was refused")
    return rows


def check(table: pd.DataFrame, *columns: str) -> None:
    """Raise ValueError for a table of policies and budgets that is empty or lacks a column."""
    check_columns(table, "policy", "budget", *columns)


def check_columns(table: pd.DataFrame, *columns: str) -> None:
    """Raise ValueError for a table that is empty or lacks a column."""
    if table.empty:
        raise ValueError("the table is empty; give at least one row")
    if missing := [column for column in columns if column not in table]:
        names = ", ".join(map(repr, missing))
        raise ValueError(f"the table has no column {names}; it has {', '.join(map(str, table))}")


def finish(figure: go.Figure, title: str, height: int = 420, top: int = 44) -> go.Figure:
    """The figure with the template, a title and its size."""
    figure.update_annotations(font_size=12)  # panel titles, which make_subplots makes larger than the figure's own
    return figure.update_layout(template=TEMPLATE, title_text=title, height=height, margin_t=top)
