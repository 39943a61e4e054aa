"""Replay beside live: whether what a replay says holds in the model, by policy and by layer."""

from html import escape

import pandas as pd
import plotly.graph_objects as go

from ..intervals import bootstrap
from .look import COLOURS, MARKERS, NEUTRAL, check, finish, measured, styles

FAINT = "rgba(128,128,128,.45)"
LINES = 5  # policies told apart by colour and dash; the others are grey and say their name under the mouse


def replay_gap(table: pd.DataFrame) -> go.Figure:
    """By how much a replay's mass recall is above the live run's, a row a policy, a mark a budget, with 95% intervals that
    draw whole texts. Rows of `fmlab.fidelity` with column `seed`: `policy`, `budget`, `seed`, `live`, `replayed`."""
    check(table, "seed", "live", "replayed")
    rows = measured(table, "live").assign(gap=lambda known: known["replayed"] - known["live"])
    worst = rows.groupby(["policy", "budget"])["gap"].mean().abs().groupby("policy").max().sort_values()
    figure, budgets = go.Figure(), sorted(rows["budget"].unique())
    for at, budget in enumerate(budgets):
        parts = {policy: rows[(rows["policy"] == policy) & (rows["budget"] == budget)] for policy in worst.index}
        parts = {policy: part for policy, part in parts.items() if len(part)}
        means = [bootstrap(part["gap"].to_numpy(), part["seed"].to_numpy()) for part in parts.values()]
        figure.add_scatter(
            x=[mean.mean for mean in means], y=[_short(policy) for policy in parts], mode="markers", name=f"budget {budget}",
            marker={"color": COLOURS[at % len(COLOURS)], "symbol": MARKERS[at % len(MARKERS)], "size": 8},
            error_x={
                "type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": NEUTRAL,
                "array": [mean.high - mean.mean for mean in means], "arrayminus": [mean.mean - mean.low for mean in means],
            },
            customdata=[
                [escape(policy, quote=False), part["live"].mean(), part["replayed"].mean(), mean.low, mean.high, mean.clusters]
                for (policy, part), mean in zip(parts.items(), means, strict=True)
            ],
            hovertemplate="%{customdata[0]}<br>live %{customdata[1]:.3f}, replayed %{customdata[2]:.3f}, %{x:+.3f} "
            "[%{customdata[3]:+.3f}, %{customdata[4]:+.3f}]<br>%{customdata[5]} texts<extra></extra>",
        )  # fmt: skip
    figure.add_vline(0, line={"color": NEUTRAL, "dash": "dot", "width": 1.2})
    figure.update_xaxes(title_text="mass recall, replayed minus live", zeroline=False)
    figure.update_yaxes(dtick=1, ticks="")
    return finish(figure, "What a replay says, and what the model then does", 130 + 20 * len(worst))


def overlap_by_layer(table: pd.DataFrame) -> go.Figure:
    """Share of the entries held live that the replay holds too, by layer, a line a policy, mean over texts and budgets; the
    policies that are least alike have colour and dash. Rows of `fmlab.fidelity`: `policy`, `budget`, `layer`, `overlap`."""
    check(table, "layer", "overlap")
    rows = measured(table, "overlap").groupby(["policy", "layer"], sort=False)["overlap"].mean().reset_index()
    order = rows.groupby("policy", sort=False)["overlap"].mean().sort_values(kind="stable").index
    look, figure = styles(order[:LINES]), go.Figure()
    for at, policy in reversed(list(enumerate(order))):
        mine, plain = rows[rows["policy"] == policy], at >= LINES
        line = {"color": FAINT, "width": 1} if plain else {"color": look[policy].colour, "dash": look[policy].dash, "width": 2}  # fmt: skip
        figure.add_scatter(
            x=mine["layer"], y=mine["overlap"], mode="lines", line=line, name=_short(policy), showlegend=not plain,
            hovertemplate=f"{escape(policy, quote=False)}<br>layer %{{x}}: %{{y:.1%}}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(title_text="layer", zeroline=False)
    figure.update_yaxes(title_text="held live and in the replay", tickformat=".0%")
    return finish(figure, "Where the replay holds what the model holds")


def _short(policy: str) -> str:
    """The names of the classes without their settings: what a label has room for."""
    name, _, inner = policy.partition("(")
    wrapped = inner.partition("policy=")[2]
    return f"{name}({_short(wrapped)})" if wrapped else name
