"""Regret: how far policies stay behind the exact optimum, and which tokens, at which depth, in which heads, they lose."""

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..intervals import Interval, bootstrap
from .look import FULL, GRID, NEUTRAL, PANEL_TITLES, budgets_of, check, finish, measured, offset, styles

DEPTH_BINS = 40
OPTIMUM = "optimum"
SHAPES = ("", "/", "\\", "x", "-", "|", "+", ".")  # hatching of bars: never colour alone


def regret_bars(table: pd.DataFrame) -> go.Figure:
    """Mean regret of each policy by budget, with 95% intervals; the mark above a bar is its worst head.

    One row a policy, budget and head, as `fm.tables.by_head` gives it: `policy`, `budget`, `layer`, `head`, `regret`.
    The bootstrap draws whole texts where column `seed` names several, else whole layers, whose heads are not
    independent. Raises ValueError for a table without a known regret.
    """
    check(table, "layer", "head", "regret")
    rows = measured(table, "regret")
    rows = rows[~rows["policy"].isin((OPTIMUM, FULL))]
    budgets, look = budgets_of(rows), styles(rows["policy"])
    figure = go.Figure()
    names = list(dict.fromkeys(rows["policy"]))
    for at, policy in enumerate(names):
        mine = rows[rows["policy"] == policy]
        parts = {budget: mine[mine["budget"] == budget] for budget in budgets}
        parts = {budget: part for budget, part in parts.items() if len(part)}
        means = [_mean(part) for part in parts.values()]
        worst = [part.loc[part["regret"].idxmax()] for part in parts.values()]
        x = [budgets.index(budget) + 2 * offset(at, len(names)) for budget in parts]
        colour, bar = look[policy].colour, 0.74 / len(names) if len(names) > 1 else 0.5
        unit = "texts" if _several_texts(mine) else "layers"
        figure.add_bar(
            x=x, y=[mean.mean for mean in means], width=bar, name=escape(policy, quote=False), legendgroup=policy,
            marker={"color": colour, "pattern": {"shape": SHAPES[at % len(SHAPES)], "size": 6, "solidity": 0.25}},
            customdata=[[budget, mean.low, mean.high, mean.n, mean.clusters] for budget, mean in zip(parts, means, strict=True)],
            hovertemplate=f"{escape(policy, quote=False)}<br>budget %{{customdata[0]}}: %{{y:.3f}} "
            f"[%{{customdata[1]:.3f}}, %{{customdata[2]:.3f}}]<br>%{{customdata[3]}} heads in %{{customdata[4]}} {unit}<extra></extra>",
            error_y={
                "type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": NEUTRAL,
                "array": [mean.high - mean.mean for mean in means], "arrayminus": [mean.mean - mean.low for mean in means],
            },
        )  # fmt: skip
        figure.add_scatter(
            x=x, y=[head["regret"] for head in worst], mode="markers", legendgroup=policy, showlegend=False,
            name=escape(policy, quote=False),
            marker={"symbol": "line-ew", "size": 12, "line": {"width": 2, "color": colour}},
            customdata=[[f"{head['layer']:.0f}", f"{head['head']:.0f}"] for head in worst],
            hovertemplate="worst head: layer %{customdata[0]}, KV head %{customdata[1]}: %{y:.3f}<extra></extra>",
        )  # fmt: skip
    figure.update_xaxes(
        title_text="budget, entries a KV head", tickvals=list(range(len(budgets))), ticktext=[str(b) for b in budgets],
        range=[-0.5, len(budgets) - 0.5], showgrid=False,
    )  # fmt: skip
    figure.update_yaxes(title_text="regret: mass recall below the optimum", rangemode="tozero")
    return finish(figure, "Behind the optimum, by budget (line: worst head)")


def lost_by_depth(table: pd.DataFrame) -> go.Figure:
    """Where the optimum keeps what a policy loses: by depth in the text, layer and KV head; a panel a policy and budget.

    One row a layer, head and token, as `fm.tables.lost` gives it: `policy`, `budget`, `layer`, `head`, `position`,
    `lost` (share of the attention of all queries). A cell adds up the tokens of one of 40 stretches of the text; its
    colour goes by the square root, since one head may lose more than all others.
    """
    check(table, "layer", "head", "position", "lost")
    tokens = int(table["position"].max()) + 1
    bins = min(DEPTH_BINS, tokens)
    panels = list(dict.fromkeys(zip(table["policy"], table["budget"], strict=True)))
    heads = sorted(set(zip(table["layer"], table["head"], strict=True)))
    names = [f"{layer}.{head}" for layer, head in heads]
    wide = min(2, len(panels))
    high = -(-len(panels) // wide)
    figure = make_subplots(
        rows=high, cols=wide, shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.03, vertical_spacing=0.22 / high,
        subplot_titles=[escape(f"{policy}, budget {budget:g}", quote=False) for policy, budget in panels],
    )  # fmt: skip
    places = table["position"] * bins // tokens
    edges = [-(-at * tokens // bins) for at in range(bins + 1)]
    for at, (policy, budget) in enumerate(panels):
        here = (table["policy"] == policy) & (table["budget"] == budget)
        rows = table[here]
        summed = rows.groupby([rows["layer"], rows["head"], places[here]])["lost"].sum()
        whole = pd.MultiIndex.from_tuples([(*head, place) for head in heads for place in range(bins)])
        z = summed.reindex(whole, fill_value=0).to_numpy().reshape(len(heads), bins)
        figure.add_trace(
            go.Heatmap(
                z=z**0.5, x=[(low + high_ - 1) / 2 for low, high_ in zip(edges, edges[1:], strict=False)], y=names,
                coloraxis="coloraxis", xgap=0, ygap=1,
                customdata=np.stack([z, np.broadcast_to(edges[:-1], z.shape), np.broadcast_to(edges[1:], z.shape) - 1], -1),
                hovertemplate="layer.head %{y}, tokens %{customdata[1]} to %{customdata[2]}: "
                "%{customdata[0]:.2%} of the head's attention<extra></extra>",
            ),
            at // wide + 1,
            at % wide + 1,
        )  # fmt: skip
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_yaxes(title_text="layer.KV head", col=1)
    figure.update_xaxes(showgrid=False, range=[-0.5, tokens - 0.5])
    figure.update_xaxes(title_text="token in the text", row=high)
    most = max(trace.z.max() for trace in figure.data) ** 2
    ticks = [most * share for share in (0, 1 / 16, 1 / 4, 9 / 16, 1)]
    bar = {
        "title": {"text": "attention lost", "side": "right", "font": {"size": 12}}, "thickness": 12, "len": 0.9,
        "tickvals": [tick**0.5 for tick in ticks], "ticktext": [f"{tick:.1%}" for tick in ticks],
    }  # fmt: skip
    figure.update_layout(coloraxis={"colorscale": "Cividis", "cmin": 0, "colorbar": bar})
    each = max(220, min(640, 60 + 14 * len(heads)))
    return finish(figure, "Where the optimum keeps what the policy loses", 120 + each * high, PANEL_TITLES)


def lost_tokens(table: pd.DataFrame, top: int = 20) -> go.Figure:
    """The tokens themselves: those of which the optimum keeps most that a policy loses, mean over all heads.

    The same table, of one policy and budget, with column `token`; each bar is labelled with the token in its context.
    Raises ValueError for a table of several runs.
    """
    check(table, "layer", "head", "position", "token", "lost")
    runs = list(dict.fromkeys(zip(table["policy"], table["budget"], strict=True)))
    if len(runs) > 1:
        raise ValueError(f"the table holds {len(runs)} runs, such as {runs[0]} and {runs[1]}; give one of them")
    tokens = table.drop_duplicates("position").set_index("position")["token"]
    heads = len(table[["layer", "head"]].drop_duplicates())
    by_token = table.groupby("position")["lost"]
    mean = (by_token.sum() / heads).nlargest(top)
    mean = mean[mean > 0]
    if mean.empty:
        raise ValueError(f"{runs[0][0]} at budget {runs[0][1]:g} loses nothing that the optimum keeps; nothing to draw")
    in_heads = by_token.apply(lambda lost: int((lost > 0).sum()))
    labels = [_in_context(tokens, int(position)) for position in mean.index]
    look = styles([runs[0][0]])[runs[0][0]]
    figure = go.Figure(
        go.Bar(
            x=mean.to_numpy(), y=[f"{position}" for position in mean.index], orientation="h",
            marker={"color": look.colour},
            text=labels, textposition="none",
            customdata=[[label, int(in_heads[position]), heads] for label, position in zip(labels, mean.index, strict=True)],
            hovertemplate="token %{y}: %{customdata[0]}<br>%{x:.4f} of all attention, lost in %{customdata[1]} of "
            "%{customdata[2]} heads<extra></extra>",
        )
    )  # fmt: skip
    figure.update_yaxes(
        type="category", autorange="reversed", showgrid=False, tickvals=[f"{position}" for position in mean.index],
        ticktext=[f"{label}  {position}" for label, position in zip(labels, mean.index, strict=True)],
        tickfont={"size": 12}, ticks="",
    )  # fmt: skip
    figure.update_xaxes(title_text="share of all attention, mean over heads", tickformat=".2%", gridcolor=GRID)
    title = f"Lost by {escape(runs[0][0], quote=False)}, budget {runs[0][1]:g}, kept by the optimum"
    return finish(figure, title, 120 + 21 * len(mean))


def _in_context(tokens: pd.Series, position: int) -> str:
    """The token in bold between its neighbours, as plotly's own markup; line breaks are shown."""
    before = "".join(tokens.get(at, "") for at in range(position - 2, position))[-14:]
    after = "".join(tokens.get(at, "") for at in range(position + 1, position + 3))[:14]
    shown = [escape(part.replace("\n", "⏎"), quote=False) for part in (before, tokens[position], after)]
    return f"{shown[0]}<b>{shown[1]}</b>{shown[2]}"


def _several_texts(rows: pd.DataFrame) -> bool:
    return "seed" in rows and rows["seed"].nunique() > 1


def _mean(part: pd.DataFrame) -> Interval:
    return bootstrap(part["regret"].to_numpy(), part["seed" if _several_texts(part) else "layer"].to_numpy())
