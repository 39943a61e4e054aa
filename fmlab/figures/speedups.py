"""What optimisations are worth: measured intervals beside claimed ranges, speed-up by size, and their part in a whole."""

from collections.abc import Iterable
from html import escape
from math import log10
from textwrap import wrap

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from ..intervals import Interval
from .look import COLOURS, NEUTRAL, check_columns, finish, measured, series, styles

BETWEEN_PAIRS = 1.1  # rows, in which the name of the next pair stands
PALE = 0.35
MINUS = "−"
LABEL = 15  # letters of a line of a step's name
HOVER = 60  # letters of a line of what the pointer is told


def speedups(table: pd.DataFrame) -> go.Figure:
    """A row a pair and size: the measured speed-up with its 95% interval, and the claimed range as a pale bar behind it.

    The table is that of `Comparison.to_dataframe()`, of several pairs if need be: `pair`, `size`, `unit`, `speedup`, `low`,
    `high`, `n`, `claim_low` and `claim_high` (NaN: nothing is claimed), `verdict`, `unrest` (what made the machine
    unstable, if it was; such rows have a hollow mark), and `floor` if there is one, which the pointer tells. A row
    without a speed-up, of a pair that was refused, keeps its place and its verdict and has no mark. The axis is
    logarithmic, so that twice as fast and twice as slow lie equally far from 1. Raises ValueError for a table without a
    row, a column or any speed-up, with two rows for one pair and size, or with a figure that has no place on that axis.
    """
    check_columns(
        table, "pair", "size", "unit", "speedup", "low", "high", "n", "claim_low", "claim_high", "verdict", "unrest"
    )
    rows = _in_order(table)
    _check_ratios(measured(rows, "speedup"), "speedup", "low", "high")
    claimed = rows.dropna(subset=["claim_low", "claim_high"])
    _check_ratios(claimed, "claim_low", "claim_high")
    figure = go.Figure()
    if not claimed.empty:
        figure.add_trace(_claims(claimed))
    restless = rows["unrest"].notna()
    for part, name, symbol in (
        (rows[~restless], "measured, 95% interval", "circle"),
        (rows[restless], "measured on an unstable machine", "circle-open"),
    ):
        if part["speedup"].notna().any():
            figure.add_trace(_marks(part.dropna(subset=["speedup"]), name, symbol))
    for pair, place in rows.groupby("pair", sort=False)["place"].first().items():
        name = f"<b>{_text(pair)}</b>"  # in the plot, where there is room for a long one
        figure.add_annotation(x=0, xref="paper", xanchor="left", y=place - 0.9, text=name, showarrow=False)
    for place, verdict in zip(rows["place"], rows["verdict"], strict=True):
        figure.add_annotation(x=1.01, xref="paper", xanchor="left", y=place, text=_text(verdict), showarrow=False)
    figure.add_vline(x=1, line={"color": NEUTRAL, "width": 1.5})
    figure.update_xaxes(title_text="speed-up, baseline seconds over optimised seconds",
                        **_log_axis(rows[["low", "high", "claim_low", "claim_high"]].to_numpy().ravel()))  # fmt: skip
    figure.update_yaxes(
        tickvals=list(rows["place"]), ticktext=list(rows["label"]), range=[rows["place"].max() + 0.8, -1.5],
        showgrid=False, ticks="", zeroline=False,
    )  # fmt: skip
    finish(figure, "Speed-ups, measured and claimed", 150 + round(23 * rows["place"].max() + 40))
    return figure.update_layout(margin_r=130)


def speedup_by_size(table: pd.DataFrame) -> go.Figure:
    """Speed-up against size, both axes logarithmic: a line a pair with its 95% intervals.

    The table is that of `speedups`. A ring marks where a pair starts to pay: the smallest size from which on every
    measured interval lies above 1, which the legend names, too. A size of 0 has no place on a logarithmic axis and is
    left out, as is a row without a speed-up. Raises ValueError as `speedups` does, and where no size above 0 is left.
    """
    check_columns(table, "pair", "size", "unit", "speedup", "low", "high", "n", "verdict")
    rows = measured(_in_order(table), "speedup")
    rows = rows[rows["size"] > 0]
    if rows.empty:
        raise ValueError("no row has a figure in column 'size' above 0, and 0 has no place on a logarithmic axis")
    _check_ratios(rows, "speedup", "low", "high")
    figure, look = go.Figure(), styles(rows["pair"])
    rings = []
    for pair, mine in rows.groupby("pair", sort=False):
        unit, start = mine["unit"].iloc[0], _pays_from(mine)
        name = f"{pair}: pays at no size that was measured" if start is None else f"{pair}: pays from {start:,} {unit}"
        intervals = [Interval(*row, 0, 0) for row in mine[["speedup", "low", "high"]].itertuples(index=False)]
        line = series(name, look[pair], mine["size"], mine["speedup"], intervals)
        least = mine.apply(_at_least, axis=1)
        line.customdata = mine[["low", "high", "n", "verdict"]].assign(least=least).to_numpy()
        line.hovertemplate = (
            f"{_text(pair)}<br>%{{x:,}} {_text(unit)}: %{{y:.3g}} x [%{{customdata[0]:.3g}}, %{{customdata[1]:.3g}}], "
            "n=%{customdata[2]}: %{customdata[3]}%{customdata[4]}<extra></extra>"
        )
        figure.add_trace(line)
        rings += [] if start is None else [mine[mine["size"] == start].iloc[0]]
    if rings:
        figure.add_scatter(
            x=[row["size"] for row in rings], y=[row["speedup"] for row in rings], name="starts to pay", mode="markers",
            marker={"symbol": "circle-open", "size": 19, "color": NEUTRAL, "line": {"width": 2}}, hoverinfo="skip",
        )  # fmt: skip
    figure.add_hline(y=1, line={"color": NEUTRAL, "width": 1.5})
    figure.update_xaxes(type="log", title_text="size, in the pair's unit", tickformat=",d", dtick=1)
    figure.update_yaxes(title_text="speed-up", **_log_axis(rows[["low", "high"]].to_numpy().ravel()))
    return finish(figure, "Speed-up by size", 480 + 12 * len(figure.data))


def waterfall(effects: pd.DataFrame, workload: str | None = None) -> go.Figure:
    """The seconds of a whole workload from every optimisation off to every one on.

    A step an optimisation: what it saves alone, the largest first, with the 95% interval at the step's end. The step
    called "together" is what all of them save beyond that or less (their interaction), so that the last bar is the time
    that was measured with all on. `effects` has a row a workload and optimisation: `workload`, `optimisation`,
    `off_seconds`, `on_seconds`, `saved_seconds` with `_low` and `_high`, `share` (saved over off), `alone` and
    `left_out` with `_low` and `_high` (the whole's speed-up with this one only; what the whole loses without it), `n`.

    Raises ValueError for a table without a row or a column, a workload that it does not have, several where none is
    named, an optimisation twice, and times that differ within a workload or are not above 0.
    """
    ratios = [name + end for name in ("alone", "left_out") for end in ("", "_low", "_high")]
    saved = ["saved_seconds", "saved_low", "saved_high"]
    check_columns(effects, "workload", "optimisation", "off_seconds", "on_seconds", *saved, "share", *ratios, "n")
    rows = _of_workload(effects, workload).sort_values("saved_seconds", ascending=False, kind="stable")
    off, on = (_same(rows, name) for name in ("off_seconds", "on_seconds"))
    steps = -rows["saved_seconds"]
    ends = off + steps.cumsum()
    together = on - ends.iloc[-1]
    names = ("<br>".join(map(_text, wrap(str(name), LABEL))) for name in rows["optimisation"])
    labels = ["all off", *names, "together", "all on"]
    bars = go.Waterfall(
        x=labels, y=[off, *steps, together, None], measure=["absolute", *["relative"] * (len(rows) + 1), "total"],
        showlegend=False,
        decreasing={"marker_color": COLOURS[2]}, increasing={"marker_color": COLOURS[1]}, totals={"marker_color": NEUTRAL},
        connector={"line": {"color": NEUTRAL, "width": 1}},
        hovertext=[
            f"all off: {_seconds(off)}",
            *(_step_words(row) for _, row in rows.iterrows()),
            f"together: {_signed(together)} beside the sum of what each saves alone",
            f"all on: {_seconds(on)}, {off / on:.3g} x",
        ],
        hovertemplate="%{hovertext}<extra></extra>",
    )  # fmt: skip
    intervals = go.Scatter(
        x=labels[1:-2], y=ends, mode="markers", name="95% interval of what it saves alone", hoverinfo="skip",
        marker={"symbol": "line-ew-open", "size": 8, "color": NEUTRAL},
        error_y={
            "type": "data", "symmetric": False, "color": NEUTRAL, "thickness": 1.5, "width": 5,
            "array": rows["saved_seconds"] - rows["saved_low"], "arrayminus": rows["saved_high"] - rows["saved_seconds"],
        },
    )  # fmt: skip
    least = ends + rows["saved_seconds"] - rows["saved_low"]
    tops = np.maximum(np.array([off, *ends]), [*least, on])  # of each step, its interval included
    words = go.Scatter(
        x=labels, y=[off, *tops, on], mode="text",
        text=[_seconds(off), *(f"{_signed(s)}<br>({_signed(s / off, '.0%', '')})" for s in (*steps, together)), _seconds(on)],
        textposition="top center", showlegend=False, hoverinfo="skip", cliponaxis=False,
    )  # fmt: skip
    figure = go.Figure([bars, intervals, words])
    figure.update_xaxes(type="category", tickangle=0)
    figure.update_yaxes(title_text="seconds of the whole", rangemode="tozero")
    return finish(figure, f"{_text(rows['workload'].iloc[0])}: from all off to all on", 520)


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Pairs in order of appearance, the sizes of each ascending, each row with its place and label on the axis."""
    twice = table[table.duplicated(["pair", "size"])]
    if not twice.empty:
        pair, size = twice.iloc[0][["pair", "size"]]
        raise ValueError(f"columns 'pair' and 'size' have {pair!r} at {size} twice; give one row for each")
    if (low := table["size"].min()) < 0:
        raise ValueError(f"column 'size' has {low}; give sizes from 0 on")
    turn = {pair: at for at, pair in enumerate(dict.fromkeys(table["pair"]))}
    rows = table.assign(turn=table["pair"].map(turn)).sort_values(["turn", "size"], kind="stable")
    rows["place"] = np.arange(len(rows)) + BETWEEN_PAIRS * rows["turn"].to_numpy()
    rows["label"] = [f"{size:,} {_text(unit)}" for size, unit in zip(rows["size"], rows["unit"], strict=True)]
    return rows


def _check_ratios(rows: pd.DataFrame, *columns: str) -> None:
    for name in columns:
        wrong = rows[~((rows[name] > 0) & np.isfinite(rows[name].astype(float)))]
        if not wrong.empty:
            raise ValueError(
                f"column {name!r} has {wrong.iloc[0][name]} for {wrong.iloc[0]['pair']!r}, which has no place on a "
                "logarithmic axis; a speed-up is above 0 and finite"
            )


def _claims(rows: pd.DataFrame) -> go.Scatter:
    """A pale bar from the lower to the upper end of each claim, with a tick at both: some claims are one number."""
    return go.Scatter(
        x=[x for low, high in zip(rows["claim_low"], rows["claim_high"], strict=True) for x in (low, high, None)],
        y=[y for place in rows["place"] for y in (place, place, None)],
        name="claimed", mode="lines+markers", opacity=PALE, line={"color": COLOURS[4], "width": 13}, hoverinfo="skip",
        marker={"symbol": "line-ns-open", "size": 13, "color": COLOURS[4], "line": {"width": 4}},
    )  # fmt: skip


def _marks(rows: pd.DataFrame, name: str, symbol: str) -> go.Scatter:
    claim = [
        "nothing claimed" if low != low else f"claimed {low:g} x" if low == high else f"claimed {low:g} to {high:g} x"
        for low, high in zip(rows["claim_low"], rows["claim_high"], strict=True)
    ]
    said = [
        f"{_text(row['pair'])}<br>{row['size']:,} {_text(row['unit'])}: {row['speedup']:.3g} x [{row['low']:.3g}, {row['high']:.3g}], "
        f"n={row['n']}<br>{words}: {_text(row['verdict'])}"
        + (f"<br>unstable machine: {_text(row['unrest'])}" if pd.notna(row["unrest"]) else "")
        + _at_least(row)
        for (_, row), words in zip(rows.iterrows(), claim, strict=True)
    ]
    return go.Scatter(
        x=rows["speedup"], y=rows["place"], name=name, mode="markers", hovertext=said, hovertemplate="%{hovertext}<extra></extra>",
        marker={"color": COLOURS[0], "symbol": symbol, "size": 9, "line": {"width": 2, "color": COLOURS[0]}},
        error_x={
            "type": "data", "symmetric": False, "color": COLOURS[0], "thickness": 1.5, "width": 4,
            "array": rows["high"] - rows["speedup"], "arrayminus": rows["speedup"] - rows["low"],
        },
    )  # fmt: skip


def _at_least(row: pd.Series) -> str:
    """The floor of a row as a line, in pieces, of a pointer's words; nothing where the table has none."""
    floor = row.get("floor")
    return "<br>" + "<br>".join(map(_text, wrap(f"at least {floor}", HOVER))) if pd.notna(floor) else ""


def _pays_from(rows: pd.DataFrame) -> int | None:
    """The smallest size of a pair from which on every interval lies above 1."""
    start = None
    for size, low in zip(rows["size"][::-1], rows["low"][::-1], strict=True):
        if low <= 1:
            break
        start = int(size)
    return start


def _log_axis(values: Iterable[float]) -> dict:
    """A logarithmic axis that holds these values and 1, with ticks that can be read as they stand."""
    known = [1.0, *(value for value in values if value == value)]
    low, high = log10(min(known)), log10(max(known))
    margin = max(0.04 * (high - low), 0.01)
    axis = {"type": "log", "range": [low - margin, high + margin], "ticksuffix": " x"}
    if high - low > 0.4:  # below, plotly's own ticks are evenly spaced
        steps = (1,) if high - low > 3 else (1, 2, 5) if high - low > 1 else (1, 1.2, 1.5, 2, 3, 4, 5, 7)
        powers = range(int(np.floor(low)), int(np.ceil(high)) + 1)
        axis["tickvals"] = [float(f"{step}e{power}") for power in powers for step in steps]
        axis["ticktext"] = [f"{value:,.10g} x" for value in axis["tickvals"]]
    return axis


def _of_workload(effects: pd.DataFrame, workload: str | None) -> pd.DataFrame:
    known = list(dict.fromkeys(effects["workload"]))
    names = ", ".join(map(repr, known))
    if workload is None and len(known) > 1:
        raise ValueError(f"column 'workload' has {names}; say which: waterfall(effects, {known[0]!r})")
    if workload is not None and workload not in known:
        raise ValueError(f"column 'workload' has no {workload!r}; it has {names}")
    rows = effects[effects["workload"] == (known[0] if workload is None else workload)]
    if (twice := rows["optimisation"].duplicated()).any():
        raise ValueError(
            f"column 'optimisation' has {rows[twice].iloc[0]['optimisation']!r} twice; give one row for each"
        )
    if rows["saved_seconds"].isna().any():
        raise ValueError("column 'saved_seconds' has no figure in a row; leave out what was not measured")
    return rows


def _same(rows: pd.DataFrame, name: str) -> float:
    """The one value of a column that says the same in every row."""
    values = sorted(set(rows[name]))
    if len(values) > 1 or not values[0] > 0:
        raise ValueError(f"column {name!r} has {', '.join(map(str, values))} in one workload; give one time above 0")
    return float(values[0])


def _step_words(row: pd.Series) -> str:
    def ratio(name: str) -> str:
        return f"{row[name]:.3g} x [{row[name + '_low']:.3g}, {row[name + '_high']:.3g}]"

    return (
        f"{_text(row['optimisation'])}<br>saves {_seconds(row['saved_seconds'])} [{_seconds(row['saved_low'])}, "
        f"{_seconds(row['saved_high'])}] alone, {row['share']:.1%} of the whole<br>the whole with it alone: {ratio('alone')}"
        f"<br>what the whole loses without it: {ratio('left_out')}<br>n={row['n']}"
    )


def _seconds(value: float) -> str:
    return f"{value:.3g} s".replace("-", MINUS)


def _signed(value: float, form: str = ".3g", unit: str = " s") -> str:
    return f"{value:+{form}}{unit}".replace("-", MINUS)


def _text(value: object) -> str:
    return escape(str(value), quote=False)
