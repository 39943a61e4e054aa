"""What attention patterns keep, against their density or their speed: a line a pattern, and the Oracle's as the bound."""

import math
from html import escape

import pandas as pd
import plotly.graph_objects as go

from .look import NEUTRAL, check_columns, finish, intervals_of, series, styles

BOUND = "Oracle"
ACROSS = {"density": "density: share of the causal pairs", "speedup": "speed-up over dense causal attention"}
WORDS = {
    "density": ("Oracle: sees the attention it chooses from", "dot"),
    "speedup": ("Oracle at 1/density (a bound)", "dash"),
}
UP = {
    "mass_recall": "attention mass kept",
    "output_error": "error of the output, relative",
    "nll_delta": "nats a token lost",
    "answered": "planted facts told",
}
SHARES = ("density", "mass_recall", "answered")


def sparsity_pareto(table: pd.DataFrame, x: str = "density", y: str = "mass_recall") -> go.Figure:
    """What is kept (`mass_recall`, `answered`) or lost (`output_error`, `nll_delta`) over `density` or `speedup`.

    A line a pattern, one row a setting: `pattern` (its name), `setting` (its repr), x and y, and, where they were measured, `y_low` and
    `y_high` (and `x_low`, `x_high`) with 95% intervals. The thick dotted line is the Oracle's, which sees the full
    attention: of mass no choice of whole blocks keeps more at its density. Over `speedup` it is dashed and stands at
    1 / density, whatever its rows say: what it would be worth were it chosen for nothing and every block that is not read
    saved its whole share, so a bound and no measurement. Over a speed-up of 1 a pattern is faster than dense attention.

    Raises ValueError for another x or y, a table without a row or a column (`density` too, where the Oracle is over
    `speedup`), a share outside 0 to 1, an error below 0, and a speed-up that is not above 0.
    """
    for name, value, known in (("x", x, ACROSS), ("y", y, UP)):
        if value not in known:
            raise ValueError(f"{name}={value!r}; one of {', '.join(known)}")
    check_columns(table, "pattern", "setting", x, y)
    if x == "speedup" and (bound := table["pattern"] == BOUND).any():
        check_columns(table, "density")
        _check(table[bound], "density", y)
        table = table.assign(speedup=table["speedup"].mask(bound, 1 / table["density"]))
    _check(table, x, y)
    figure, look = go.Figure(), styles(name for name in table["pattern"] if name != BOUND)
    for name in sorted(dict.fromkeys(table["pattern"]), key=lambda name: name == BOUND):
        rows = table[table["pattern"] == name].sort_values(x)
        columns = (y, f"{y}_low", f"{y}_high")
        known = intervals_of(rows, *columns) if set(columns) <= set(rows) else None
        if name == BOUND:
            words, dash = WORDS[x]
            line = go.Scatter(
                x=list(rows[x]), y=list(rows[y]), name=words, legendgroup=name, mode="lines",
                line={"color": NEUTRAL, "dash": dash, "width": 3},
            )  # fmt: skip
        else:
            line = series(name, look[name], rows[x], rows[y], known)
            line.marker.size = 7
            if {f"{x}_low", f"{x}_high"} <= set(rows):
                _across(line, rows, x)
        line.customdata = [[escape(setting, quote=False), *_told(interval)]
                           for setting, interval in zip(rows["setting"], known or [None] * len(rows), strict=True)]  # fmt: skip
        line.hovertemplate = (
            f"%{{customdata[0]}}<br>{x} %{{x:.3g}}, {y.replace('_', ' ')} %{{y:.3f}}%{{customdata[1]}}<extra></extra>"
        )
        figure.add_trace(line)
    if x == "speedup":
        figure.add_vline(x=1, line={"color": NEUTRAL, "width": 1.5})
    figure.update_xaxes(title_text=ACROSS[x], type="log", **({"tickformat": ".0%"} if x == "density" else {}))
    figure.update_xaxes(dtick="D2")
    figure.update_yaxes(title_text=UP[y], tickformat=".2f" if y == "nll_delta" else ".0%")
    return finish(figure, f"{UP[y].split(',')[0].capitalize()} against {x.replace('speedup', 'speed-up')}", 520)


def _told(interval) -> list[str]:
    low = float("nan") if interval is None else interval.low
    return [f" [{interval.low:.3f}, {interval.high:.3f}]" if low == low else ""]


def _across(line: go.Scatter, rows: pd.DataFrame, x: str) -> None:
    """Error bars along x."""
    line.error_x = {
        "type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": line.line.color,
        "array": list(rows[f"{x}_high"] - rows[x]), "arrayminus": list(rows[x] - rows[f"{x}_low"]),
    }  # fmt: skip


def _check(table: pd.DataFrame, x: str, y: str) -> None:
    for name in (x, y):
        bounded, signed = name in SHARES, name == "nll_delta"
        least, greatest = -math.inf if signed else 0, 1 + 1e-6 if bounded else math.inf
        wrong = table[~(table[name].between(least, greatest) & (table[name].abs() < math.inf))]
        if not wrong.empty:
            row = wrong.iloc[0]
            wanted = "from 0 to 1" if bounded else "a number" if signed else "0 or more"
            raise ValueError(f"{name}={row[name]} of {row['setting']} is not {wanted}; leave the row out")
    if (low := table[x].min()) <= 0:
        raise ValueError(f"{x}={low} has no place on a logarithmic axis; leave it out")
