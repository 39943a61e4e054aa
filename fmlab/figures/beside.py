"""Our figures beside published ones: a chart of a table of `fm.published.against`."""

from html import escape

import pandas as pd
import plotly.graph_objects as go

from .look import COLOURS, finish


def ours_and_theirs(table: pd.DataFrame, title: str = "Ours and theirs", value: str = "value") -> go.Figure:
    """A line a setting: ours as a filled circle with its 95% interval, theirs as an open diamond; those with both.

    `table` is that of `against`, `value` names the axis. The verdict is in the hover. Raises ValueError for a table
    that is not of `against`, or in which no setting has both.
    """
    needed = ["ours", "low", "high", "theirs", "gap", "verdict"]
    if missing := [name for name in needed if name not in table]:
        raise ValueError(f"the table has no column {', '.join(map(repr, missing))}; give one of fm.published.against")
    both = table.dropna(subset=["ours", "theirs"])
    if both.empty:
        raise ValueError("no setting has a figure of ours and one of theirs; match them on other columns")
    settings = [name for name in table if name not in needed]
    labels = [
        _label(dict(zip(settings, row, strict=True))) for row in both[settings].itertuples(index=False, name=None)
    ]
    ours, theirs = both["ours"], both["theirs"]
    figure = go.Figure(
        [
            go.Scatter(
                x=ours, y=labels, name="ours, 95% interval", mode="markers",
                marker={"color": COLOURS[0], "symbol": "circle", "size": 9},
                error_x={
                    "type": "data", "symmetric": False, "color": COLOURS[0], "thickness": 1.5,
                    "array": (both["high"] - ours).fillna(0), "arrayminus": (ours - both["low"]).fillna(0),
                },
                customdata=both[["gap", "verdict"]],
                hovertemplate="%{y}<br>ours %{x:.3f}, gap %{customdata[0]:+.3f}: %{customdata[1]}<extra></extra>",
            ),
            go.Scatter(
                x=theirs, y=labels, name="theirs", mode="markers",
                marker={"color": COLOURS[1], "symbol": "diamond-open", "size": 10, "line": {"width": 2}},
                hovertemplate="%{y}<br>theirs %{x:.3f}<extra></extra>",
            ),
        ]
    )  # fmt: skip
    figure.update_xaxes(title_text=value)
    figure.update_yaxes(type="category", autorange="reversed")
    return finish(figure, title, 140 + 24 * len(both))


def _label(setting: dict) -> str:
    """A setting in words: a policy by its name, whatever else as name=value; what is empty is left out."""
    known = {name: value for name, value in setting.items() if pd.notna(value)}
    policy = known.pop("policy", None)
    words = [str(policy)] if policy is not None else []
    words += [f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in known.items()]
    return escape(", ".join(words), quote=False)
