"""Replay beside live: whether what a replay says holds in the model, by policy and by layer."""

from html import escape

import pandas as pd
import plotly.graph_objects as go

from .look import NEUTRAL, check, finish, measured, styles


def replay_against_live(table: pd.DataFrame) -> go.Figure:
    """Mass recall of the live run against that of the replay, a mark a policy, budget and text; on the diagonal the replay
    was right. Rows of `fmlab.fidelity` with column `seed`: `policy`, `budget`, `seed`, `live`, `replayed`."""
    check(table, "seed", "live", "replayed")
    rows = measured(table, "live").groupby(["policy", "budget", "seed"], sort=False)[["live", "replayed"]].mean()
    rows = rows.reset_index()
    look, figure = styles(rows["policy"]), go.Figure()
    ends = [rows[["live", "replayed"]].to_numpy().min() - 0.02, 1]
    line = {"color": NEUTRAL, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    for policy, mine in rows.groupby("policy", sort=False):
        figure.add_scatter(
            x=mine["live"], y=mine["replayed"], mode="markers", name=escape(policy, quote=False),
            marker={"color": look[policy].colour, "symbol": look[policy].marker, "size": 8, "opacity": 0.8},
            customdata=mine[["budget", "seed"]],
            hovertemplate=f"{escape(policy, quote=False)}<br>budget %{{customdata[0]}}, text %{{customdata[1]}}<br>"
            "live %{x:.3f}, replayed %{y:.3f}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="mass recall of the live run", range=ends)
    figure.update_yaxes(title_text="mass recall of the replay", range=ends)
    return finish(figure, "What a replay says, and what the model then does")


def overlap_by_layer(table: pd.DataFrame) -> go.Figure:
    """Share of the entries held live that the replay holds too, by layer, a line a policy, mean over texts and budgets.
    Rows of `fmlab.fidelity`: `policy`, `budget`, `layer`, `overlap`."""
    check(table, "layer", "overlap")
    rows = measured(table, "overlap").groupby(["policy", "layer"], sort=False)["overlap"].mean().reset_index()
    look, figure = styles(rows["policy"]), go.Figure()
    for policy, mine in rows.groupby("policy", sort=False):
        figure.add_scatter(
            x=mine["layer"], y=mine["overlap"], mode="lines", name=escape(policy, quote=False),
            line={"color": look[policy].colour, "dash": look[policy].dash, "width": 2},
            hovertemplate=f"{escape(policy, quote=False)}<br>layer %{{x}}: %{{y:.1%}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="layer")
    figure.update_yaxes(title_text="held live and in the replay", tickformat=".0%", rangemode="tozero")
    return finish(figure, "Where the replay holds what the model holds")
