"""A grid of policies and budgets over several texts: curves with intervals, bytes against quality, how it was filled."""

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..intervals import Interval, bootstrap, one_way
from .look import FULL, NEUTRAL, PANEL_TITLES, budgets_of, check, finish, measured, offset, series, styles

QUALITIES = {
    "answered": "facts answered",
    "answer_nll": "NLL of the right answer, nats a token",
    "nll_delta": "NLL of the next tokens minus full cache, nats",
}
RISING = {"answered"}  # higher is better; of the others lower
KINDS = {"plain": "circle", "shared out": "diamond", "8 bits": "square", "4 bits": "triangle-up"}
FILLS = {"post-fill": "filled: context in one call", "in-fill": "open: in chunks, evicting after each"}
ASIDE = {"shared out": 1.06}  # as many bytes as plain ones: beside them, not upon them
TICKS = [digit * 10.0**power for power in range(-3, 6) for digit in (1, 2, 5)]
FAINT = "rgba(128,128,128,.45)"
CELL = ["policy", "budget", "allocation", "bits"]


def quality_by_budget(table: pd.DataFrame, quality: str = "answer_nll", highlight: Sequence[str] = ()) -> go.Figure:
    """How well a text is known over the budget, a line a policy, with 95% intervals that draw whole texts.

    One row a text (`seed`) and cell: `policy`, `budget` (empty for the full cache), `query_aware` and the quality, one
    of QUALITIES. The policies of `highlight`, named by class, have colour, dash and intervals; the others are thin grey
    lines that say their name under the mouse. Cells with an `allocation` or stored in `bits` are left out. Raises
    ValueError for a table that mixes query-aware and query-blind runs, or holds no policy of a highlighted name.
    """
    check(table, quality, "seed", "query_aware")
    rows = measured(_plain(table), quality)
    asked, budgets = _asked(rows), budgets_of(rows)
    names = list(dict.fromkeys(rows.loc[rows["budget"].notna(), "policy"]))
    chosen = [name for wanted in highlight for name in _named(wanted, names)]
    look, figure = styles(chosen), go.Figure()
    for policy in sorted(names, key=lambda name: (name in chosen, chosen.index(name) if name in chosen else 0)):
        mine = rows[rows["policy"] == policy]
        parts = {budget: mine[mine["budget"] == budget] for budget in budgets if (mine["budget"] == budget).any()}
        means = [_mean(part, quality) for part in parts.values()]
        x = [budgets.index(budget) for budget in parts]
        if policy in chosen:
            x = [place + 0.5 * offset(chosen.index(policy), len(chosen)) for place in x]
            trace = series(policy, look[policy], x, [mean.mean for mean in means], means)
        else:
            line = {"color": FAINT, "width": 1}
            trace = go.Scatter(x=x, y=[mean.mean for mean in means], mode="lines", line=line, showlegend=False)
            trace.name = escape(policy, quote=False)
        trace.customdata = [
            [budget, mean.low, mean.high, mean.clusters] for budget, mean in zip(parts, means, strict=True)
        ]
        trace.hovertemplate = f"{trace.name}<br>budget {_HOVER}"
        figure.add_trace(trace)
    full = rows.loc[rows["policy"] == FULL, quality]
    if len(full):
        figure.add_hline(
            full.mean(), line={"color": NEUTRAL, "dash": "dot", "width": 1.5},
            annotation={"text": FULL, "yanchor": "bottom"}, annotation_position="top left",
        )  # fmt: skip
    figure.update_xaxes(
        title_text="budget, entries a KV head", zeroline=False, tickvals=list(range(len(budgets))), ticktext=[str(b) for b in budgets],
        range=[-0.4, len(budgets) - 0.6], showgrid=False,
    )  # fmt: skip
    figure.update_yaxes(title_text=QUALITIES[quality], tickformat=".0%" if quality in RISING else None)
    return finish(figure, f"What is still known, by budget ({asked})", 480)


def bytes_frontier(table: pd.DataFrame, quality: str = "answer_nll") -> go.Figure:
    """Quality over the bytes of keys and values, a point a cell; a symbol a kind: plain, shared out, 8 and 4 bits.

    Rows as for `quality_by_budget`, with `nbytes`, and `allocation` and `bits` (empty: equal shares, as the model
    computes). The line joins the cells that no other beats at both, by their means: where intervals overlap, which the
    hover tells, it ranks nothing.
    """
    check(table, quality, "seed", "query_aware", "nbytes", "allocation", "bits")
    rows = measured(table, quality)
    budgets_of(rows)  # raises where there is none
    points = [_Point.of(cell, part, quality) for cell, part in rows.groupby(CELL, dropna=False, sort=False)]
    figure = go.Figure()
    best = _frontier(points, quality in RISING)
    line = {"color": NEUTRAL, "dash": "dot", "width": 1.5, "shape": "hv"}
    x, y = [point.nbytes / 1e6 for point in best], [point.mean.mean for point in best]
    figure.add_scatter(x=x, y=y, mode="lines", line=line, name="not beaten at both", hoverinfo="skip")
    look = styles(KINDS)
    for kind, symbol in KINDS.items():
        mine = [point for point in points if point.kind == kind]
        if not mine:
            continue
        figure.add_scatter(
            x=[point.nbytes / 1e6 * ASIDE.get(kind, 1) for point in mine], y=[point.mean.mean for point in mine],
            mode="markers+text", text=[point.short if point in best else "" for point in mine],
            textposition="top center" if quality in RISING else "bottom center", textfont={"size": 11}, cliponaxis=False, name=kind,
            marker={
                "symbol": symbol, "color": look[kind].colour, "size": [12 if point in best else 8 for point in mine],
                "opacity": [1 if point in best else 0.5 if kind == "plain" else 0.9 for point in mine],
                "line": {"width": 1, "color": look[kind].colour},
            },
            customdata=[[p.label, p.mean.low, p.mean.high, p.mean.clusters, p.nbytes / 1e6] for p in mine],
            hovertemplate=f"%{{customdata[4]:.2f}} MB, {_HOVER}",
        )  # fmt: skip
    asked = _asked(rows)
    figure.update_xaxes(
        title_text="bytes of keys and values held, MB",
        type="log",
        tickvals=TICKS,
        ticktext=[f"{tick:g}" for tick in TICKS],
    )
    values = [point.mean.mean for point in points]
    room = 0.15 * (max(values) - min(values))  # for the words beside the best
    figure.update_yaxes(title_text=QUALITIES[quality], tickformat=".0%" if quality in RISING else None)
    figure.update_yaxes(range=[min(values) - room, max(values) + room])
    return finish(figure, f"Bytes against quality ({asked})", 480)


def footprint_against_quality(table: pd.DataFrame, quality: str = "answer_nll") -> go.Figure:
    """Quality over the KV footprint and over the peak bytes, where the context came in one call and where in chunks.

    Rows as for `quality_by_budget`, with `mode` ("post-fill" or "in-fill"; others are left out), `footprint` and
    `peak_nbytes`. The two fills are told apart by filled and open symbols, and a thin line joins those of one policy and budget.
    """
    check(table, quality, "seed", "query_aware", "mode", "footprint", "peak_nbytes")
    rows = measured(table[table["mode"].isin(FILLS)], quality)
    asked, look = _asked(rows), styles(rows["policy"])
    budgets_of(rows)  # raises where there is none
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04)
    cells = rows.groupby(["policy", "budget"], dropna=False, sort=False)
    for column, (name, scale) in enumerate((("footprint", 1), ("peak_nbytes", 1e6)), start=1):
        for _, part in cells:
            ends = [(own[name].mean() / scale, own[quality].mean()) for _, own in part.groupby("mode")]
            joint = {"color": FAINT, "width": 1}
            x, y = zip(*ends, strict=True)
            figure.add_scatter(
                x=x, y=y, mode="lines", line=joint, showlegend=False, hoverinfo="skip", row=1, col=column
            )
        for fill in FILLS:
            for policy, mine in rows[rows["mode"] == fill].groupby("policy", sort=False):
                symbol = look[policy].marker.removesuffix("-open") + ("-open" if fill == "in-fill" else "")
                parts = [part for _, part in mine.groupby("budget", dropna=False)]
                means = [_mean(part, quality) for part in parts]
                trace = series(
                    policy, look[policy], [part[name].mean() / scale for part in parts], [m.mean for m in means], means
                )
                budgets = [f"{fill}, budget {part['budget'].iloc[0]:g}" if policy != FULL else fill for part in parts]
                trace.customdata = [[b, m.low, m.high, m.clusters] for b, m in zip(budgets, means, strict=True)]
                trace.update(mode="markers", marker_symbol=symbol, showlegend=column == 1 and fill == "post-fill")
                trace.hovertemplate = f"{trace.name}<br>{_HOVER}"
                figure.add_trace(trace, 1, column)
    for symbol, words in zip(("circle", "circle-open"), FILLS.values(), strict=True):
        marker = {"symbol": symbol, "color": NEUTRAL, "size": 9, "line": {"width": 1.5, "color": NEUTRAL}}
        figure.add_scatter(x=[None], y=[None], mode="markers", marker=marker, name=words)
    figure.update_yaxes(title_text=QUALITIES[quality], tickformat=".0%" if quality in RISING else None, col=1)
    figure.update_xaxes(title_text="KV footprint of reading the context", rangemode="tozero", col=1)
    figure.update_xaxes(title_text="peak bytes while reading it, MB", rangemode="tozero", col=2)
    return finish(figure, f"How the memory was filled ({asked})", 480, PANEL_TITLES - 20)


_HOVER = (
    "%{customdata[0]}: %{y:.3f} [%{customdata[1]:.3f}, %{customdata[2]:.3f}], %{customdata[3]} texts<extra></extra>"
)


class _Point(NamedTuple):
    """A cell of the grid: what it takes, and how well it does."""

    label: str
    short: str
    kind: str
    nbytes: float
    mean: Interval

    @classmethod
    def of(cls, cell: tuple, rows: pd.DataFrame, quality: str) -> "_Point":
        policy, budget, allocation, bits = cell
        stored, shared = pd.notna(bits), pd.notna(allocation)
        kind = f"{bits:g} bits" if stored else "shared out" if shared else "plain"
        words = [
            policy,
            allocation if shared else f"budget {budget:g}" if pd.notna(budget) else "",
            kind if stored else "",
        ]
        words = [escape(word, quote=False) for word in words if word]
        label, short = ", ".join(words), "<br>".join(word.partition("(")[0] for word in words)
        return cls(label, short, kind, float(rows["nbytes"].mean()), _mean(rows, quality))


def _frontier(points: list[_Point], rising: bool) -> list[_Point]:
    """Those that none beats in bytes and quality both, from the smallest on."""
    sign, best = (-1 if rising else 1), []
    for point in sorted(points, key=lambda point: (point.nbytes, sign * point.mean.mean)):
        if not best or sign * point.mean.mean < sign * best[-1].mean.mean:
            best.append(point)
    return best


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    for name in ("allocation", "bits"):
        table = table[table[name].isna()] if name in table else table
    return table


def _named(wanted: str, names: list[str]) -> list[str]:
    if not (found := [name for name in names if name.partition("(")[0] == wanted]):
        raise ValueError(
            f"no policy {wanted!r} in the table; it has {', '.join(name.partition('(')[0] for name in names)}"
        )
    return found


def _asked(rows: pd.DataFrame) -> str:
    """How the question came, in words. Raises ValueError where both ways are in one table."""
    aware = one_way(rows["query_aware"])
    return "query-aware: asked before the eviction" if aware else "query-blind: asked after the eviction"


def _mean(rows: pd.DataFrame, quality: str) -> Interval:
    return bootstrap(rows[quality].to_numpy(), rows["seed"].to_numpy())
