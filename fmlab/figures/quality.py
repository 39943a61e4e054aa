"""Retention, recall, losses and bytes by policy and budget."""

from html import escape

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..intervals import Interval, bootstrap, wilson
from .look import (
    FULL,
    NEUTRAL,
    PANEL_TITLES,
    THIRDS,
    budgets_of,
    check,
    finish,
    intervals_of,
    measured,
    offset,
    series,
    spoken,
    styles,
)  # fmt: skip


def retention_by_depth(table: pd.DataFrame) -> go.Figure:
    """How much of a text or of the facts in it is held (`present`), and how often they are told (`answered`), by third.

    One row a fact or third: `policy`, `budget` (empty for the full cache), `third`, and `present` or `answered` or
    both; `seed` names the text. Intervals of 95%: bootstrap over the texts for what is present, where there are
    several; Wilson for what is answered. Raises ValueError for a table that is empty or lacks a column.
    """
    shown = [name for name in ("present", "answered") if name in table] or ["present"]
    check(table, "third", *shown)
    budgets, look = budgets_of(table), styles(table["policy"])
    figure = make_subplots(
        rows=len(shown), cols=len(budgets), shared_xaxes=True, shared_yaxes=True, horizontal_spacing=0.03,
        vertical_spacing=0.08, column_titles=[f"budget {budget}" for budget in budgets],
    )  # fmt: skip
    explained = set()
    for row, name in enumerate(shown, start=1):
        for column, budget in enumerate(budgets, start=1):
            cell = table[(table["budget"] == budget) | table["budget"].isna()].dropna(subset=[name])
            names = list(dict.fromkeys(cell["policy"]))
            for at, policy in enumerate(names):
                rows = cell[cell["policy"] == policy]
                parts = [rows[rows["third"] == third] for third in THIRDS]
                points = {third: _share(part, name) for third, part in enumerate(parts) if len(part)}
                x = [third + offset(at, len(names)) for third in points]
                shares = list(points.values())
                trace = series(policy, look[policy], x, [share.mean for share in shares], shares)
                trace.showlegend = policy not in explained
                explained.add(policy)
                trace.customdata = [[THIRDS[third], share.n] for third, share in points.items()]
                point = "%{customdata[0]}: %{y:.3f}, n=%{customdata[1]}"
                trace.hovertemplate = f"{trace.name}<br>{point}<extra></extra>"
                figure.add_trace(trace, row, column)
        figure.update_yaxes(title_text="tokens held" if name == "present" else "answered", row=row, col=1)
    figure.update_yaxes(range=[-0.04, 1.04], tickformat=".0%")
    figure.update_xaxes(tickvals=[0, 1, 2], ticktext=THIRDS, range=[-0.5, 2.5])
    figure.update_xaxes(title_text="third of the text", row=len(shown), col=(len(budgets) + 1) // 2)
    return finish(figure, "Retention by depth", 150 + 230 * len(shown), PANEL_TITLES)


def mass_recall_by_budget(table: pd.DataFrame) -> go.Figure:
    """Attention-mass recall over the budget, a line a policy: columns `policy`, `budget`, `mass_recall`."""
    check(table, "mass_recall")
    figure = _by_budget(table, "mass_recall")
    figure.update_yaxes(title_text="attention-mass recall")
    return finish(figure, "Attention-mass recall by budget")


def nll_by_budget(table: pd.DataFrame) -> go.Figure:
    """Nats a token lost against the full cache over the budget, with 95% intervals.

    Columns `policy`, `budget`, `nll_delta`, `nll_delta_low`, `nll_delta_high`.
    """
    check(table, "nll_delta", "nll_delta_low", "nll_delta_high")
    figure = _by_budget(table, "nll_delta", "nll_delta_low", "nll_delta_high")
    figure.update_yaxes(title_text="NLL minus full cache, nats a token")
    return finish(figure, "What forgetting costs: NLL by budget")


def bytes_against_quality(table: pd.DataFrame) -> go.Figure:
    """Nats a token lost against the full cache over the bytes of keys and values held; lower left is better.

    Columns `policy`, `budget` (in the hover), `nbytes`, `nll_delta`, `nll_delta_low`, `nll_delta_high`.
    """
    needed = ("nbytes", "nll_delta", "nll_delta_low", "nll_delta_high")
    check(table, *needed)
    figure, look = go.Figure(), styles(table["policy"])
    rows = measured(table, "nll_delta").dropna(subset=["nbytes"])
    names = list(dict.fromkeys(rows.loc[rows["budget"].notna(), "policy"]))
    budgets_of(rows)  # raises where there is none
    for policy in dict.fromkeys(rows["policy"]):
        mine = rows[rows["policy"] == policy].sort_values("nbytes")
        aside = offset(names.index(policy), len(names)) if policy in names else 0.0
        x = mine["nbytes"] / 1e6 * (1 + 0.15 * aside)  # side by side: equal budgets are equal bytes
        trace = series(policy, look[policy], x, mine["nll_delta"], intervals_of(mine, *needed[1:]))
        trace.customdata = np.stack([mine["budget"].map(spoken), mine["nbytes"] / 1e6], axis=-1)
        held = "budget %{customdata[0]}, %{customdata[1]:.2f} MB"
        trace.hovertemplate = f"{trace.name}<br>{held}<br>%{{y:+.3f}} nats a token<extra></extra>"
        figure.add_trace(trace)
    figure.update_xaxes(title_text="bytes of keys and values held, MB", rangemode="tozero")
    figure.update_yaxes(title_text="NLL minus full cache, nats a token")
    return finish(figure, "Memory against quality")


def needle_heatmap(table: pd.DataFrame) -> go.Figure:
    """Share of planted facts answered, by where they stood and by the budget; a panel a policy, numbers in the cells.

    One row a fact: `policy`, `budget` (empty for the full cache, which is every panel's last column), `depth` from 0 to
    1 and `answered`; `seed` names the text. Facts are lined up by their order in the text.
    """
    check(table, "depth", "answered")
    by = [name for name in ("policy", "budget", "seed") if name in table]
    rows = table.dropna(subset=["answered"]).copy()
    rows["order"] = rows.groupby(by, dropna=False)["depth"].rank(method="first").astype(int)
    depths = rows.groupby("order")["depth"].mean()
    budgets, full = budgets_of(rows), rows[rows["budget"].isna()]
    panels = [policy for policy in dict.fromkeys(rows["policy"]) if policy != FULL]
    wide = min(4, len(panels))
    high = -(-len(panels) // wide)
    figure = make_subplots(
        rows=high, cols=wide, subplot_titles=[escape(policy, quote=False) for policy in panels], shared_yaxes=True,
        horizontal_spacing=0.03, vertical_spacing=0.32 / high,
    )  # fmt: skip
    for at, policy in enumerate(panels):
        mine = rows[rows["policy"] == policy]
        columns = [mine[mine["budget"] == budget] for budget in budgets] + ([full] if len(full) else [])
        cells = [[each.loc[each["order"] == place, "answered"] for each in columns] for place in depths.index]
        figure.add_trace(
            go.Heatmap(
                z=[[cell.mean() if len(cell) else None for cell in line] for line in cells],
                text=[[f"{cell.sum():.0f}/{len(cell)}" if len(cell) else "" for cell in line] for line in cells],
                texttemplate="%{text}",
                x=[str(budget) for budget in budgets] + (["full"] if len(full) else []),
                y=[f"{depth:.0%}" for depth in depths],
                zmin=0, zmax=1, coloraxis="coloraxis", xgap=1, ygap=1,
                hovertemplate="budget %{x}, depth %{y}: %{text} answered<extra></extra>",
            ),
            at // wide + 1,
            at % wide + 1,
        )  # fmt: skip
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(type="category", autorange="reversed", showgrid=False)
    figure.update_yaxes(title_text="depth in the text", col=1)
    figure.update_xaxes(title_text="budget", row=high)
    bar = {"title": {"text": "answered"}, "tickformat": ".0%", "thickness": 12, "len": 0.9}
    figure.update_layout(coloraxis={"colorscale": "Cividis", "cmin": 0, "cmax": 1, "colorbar": bar})
    return finish(figure, "Planted facts answered, by depth and budget", 130 + 210 * high, PANEL_TITLES)


def _by_budget(table: pd.DataFrame, column: str, low: str | None = None, high: str | None = None) -> go.Figure:
    """A line a policy over evenly spaced budgets, shifted a little so that intervals stand side by side."""
    figure, look = go.Figure(), styles(table["policy"])
    rows = measured(table, column)
    budgets = budgets_of(rows)
    finite = rows.dropna(subset=["budget"])
    names = list(dict.fromkeys(finite["policy"]))
    for at, policy in enumerate(names):
        mine = finite[finite["policy"] == policy].sort_values("budget")
        if mine["budget"].duplicated().any():
            budget = mine["budget"][mine["budget"].duplicated()].iloc[0]
            raise ValueError(f"several rows of {policy} at budget {budget:g}; aggregate them to one row first")
        x = [budgets.index(budget) + offset(at, len(names)) for budget in mine["budget"]]
        intervals = None
        if low is not None:
            intervals = intervals_of(mine, column, low, high)
        trace = series(policy, look[policy], x, mine[column], intervals)
        trace.customdata = mine["budget"]
        trace.hovertemplate = f"{trace.name}<br>budget %{{customdata}}: %{{y:.3f}}<extra></extra>"
        figure.add_trace(trace)
    for value in rows.loc[rows["budget"].isna(), column].unique():
        figure.add_hline(
            value, line={"color": NEUTRAL, "dash": "dot", "width": 1.5},
            annotation={"text": FULL, "yanchor": "bottom"}, annotation_position="top left",
        )  # fmt: skip
    figure.update_xaxes(
        title_text="budget, entries a KV head", tickvals=list(range(len(budgets))), ticktext=[str(b) for b in budgets],
        range=[-0.5, len(budgets) - 0.5], showgrid=False,
    )  # fmt: skip
    return figure


def _share(rows: pd.DataFrame, name: str) -> Interval:
    """Mean with its interval: of what is answered Wilson's, of what is present over texts."""
    if name == "answered":
        return wilson(int(rows[name].astype(bool).sum()), len(rows))
    texts = rows["seed"].to_numpy() if "seed" in rows else np.zeros(len(rows))
    return bootstrap(rows[name].astype(float).to_numpy(), texts)
