"""Hit ratios of caches over their capacity: a line a policy, the clairvoyant ceiling above them, published points beside."""

from html import escape

import pandas as pd
import plotly.graph_objects as go

from .look import NEUTRAL, check_columns, finish, series, styles

RATIOS = {
    "block": "block accesses that hit",
    "token": "prompt tokens found in the cache",
    "request": "mean part of a request's tokens found",
}
CEILING = "Belady()"


def hit_ratio_by_capacity(
    table: pd.DataFrame, ratio: str = "token", unit: str = "blocks", published: pd.DataFrame | None = None
) -> go.Figure:
    """A hit ratio, one of RATIOS, over the capacity in `unit` (a logarithmic axis), a line a policy.

    One row a policy and capacity: `policy` (its repr), `capacity`, and the ratio from 0 to 1. Belady, which reads the
    future, is the grey line above the others. `published` has the `capacity` and `value` of somebody else's curve, drawn
    as hollow marks. Raises ValueError for a table without a row, a column, or a capacity above 0.
    """
    if ratio not in RATIOS:
        raise ValueError(f"ratio={ratio!r}; one of {', '.join(RATIOS)}")
    _check(table, "policy", "capacity", ratio)
    figure, look = go.Figure(), styles(name for name in table["policy"] if name != CEILING)
    for policy in sorted(dict.fromkeys(table["policy"]), key=lambda name: name == CEILING):
        rows = table[table["policy"] == policy].sort_values("capacity")
        if policy == CEILING:
            line = go.Scatter(
                x=list(rows["capacity"]), y=list(rows[ratio]), name=f"{CEILING}: reads the future",
                legendgroup=policy, mode="lines", line={"color": NEUTRAL, "dash": "dot", "width": 3},
            )  # fmt: skip
        else:
            line = series(policy, look[policy], rows["capacity"], rows[ratio], None)
            line.marker.size = 7
        line.hovertemplate = f"{escape(policy, quote=False)}<br>%{{x:,}} {escape(unit)}: %{{y:.1%}}<extra></extra>"
        figure.add_trace(line)
    if published is not None:
        _check(published, "capacity", "value")
        points = published.sort_values("capacity")
        figure.add_scatter(
            x=list(points["capacity"]), y=list(points["value"]), name="published", mode="markers",
            marker={"symbol": "circle-open", "size": 12, "color": NEUTRAL, "line": {"width": 2}},
            hovertemplate=f"published<br>%{{x:,}} {escape(unit)}: %{{y:.1%}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(type="log", title_text=f"capacity, {unit}")
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", title_text=RATIOS[ratio])
    return finish(figure, "Hit ratio by capacity", 480)


def _check(table: pd.DataFrame, *columns: str) -> None:
    check_columns(table, *columns)
    if (low := table["capacity"].min()) <= 0:
        raise ValueError(f"capacity={low} has no place on a logarithmic axis; leave it out")
