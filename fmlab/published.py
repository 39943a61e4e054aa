"""Figures that others published, with their sources, and ours beside them: the gap, and whether it means anything."""

from collections.abc import Sequence

import pandas as pd

import fmlab

from .intervals import bootstrap

NAMES = ("attention_mass", "h2o_budget", "passkey", "prefix_hits", "ruler_8b", "sink_effect")
VERDICTS = ("agrees", "differs", "no verdict")


def published(name: str) -> pd.DataFrame:
    """The published figure of that name (NAMES): its settings, `value`, `unit` and `source`, a row a number.

    A source says who measured it and where; one that is recalled and not re-checked says so. Raises ValueError for
    another name.
    """
    if name not in NAMES:
        raise ValueError(f"no published figure {name!r}; there are {', '.join(NAMES)}")
    return pd.read_csv(fmlab.datafile(f"published/{name}.csv"))


def means(rows: pd.DataFrame, on: Sequence[str], text: str = "seed") -> pd.DataFrame:
    """One row a setting of the columns `on`: the mean of `value` with its 95% interval (`low`, `high`) over the texts
    that column `text` tells apart, and `n`, how many these are. With one text the interval is NaN."""
    table = []
    for setting, mine in rows.groupby(list(on), sort=False, dropna=False):
        found = bootstrap(mine["value"].astype(float).to_numpy(), mine[text].to_numpy())
        figures = {"value": found.mean, "low": found.low, "high": found.high, "n": found.clusters}
        table.append(dict(zip(on, setting, strict=True)) | figures)
    return pd.DataFrame(table, columns=[*on, "value", "low", "high", "n"])


def against(ours: pd.DataFrame, theirs: pd.DataFrame, on: Sequence[str]) -> pd.DataFrame:
    """Our figures beside theirs, matched on the columns `on`, every row of either side once.

    Both have `value`; `low` and `high` are its interval where it has one. The columns: `on`, `ours`, `low`, `high`,
    `theirs`, `gap` (ours minus theirs) and `verdict`. It *agrees* where our interval holds their value, or overlaps
    their interval; it *differs* where not; without an interval of ours, or without a partner, there is *no verdict*.
    Agreement is no proof: a wide interval agrees with much. Raises ValueError for a missing column or a setting that
    stands twice on a side.
    """
    for side, table in {"ours": ours, "theirs": theirs}.items():
        if missing := [name for name in (*on, "value") if name not in table]:
            raise ValueError(
                f"{side} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(str, table))}"
            )
        if (twice := table.duplicated(list(on))).any():
            setting = table.loc[twice, list(on)].iloc[0].to_dict()
            raise ValueError(f"{side} holds {setting} twice; aggregate to one row a setting, or match on more columns")
    bounds = ["low", "high"]
    mine = ours.reindex(columns=[*on, "value", *bounds]).rename(columns={"value": "ours"})
    their_bounds = {name: f"their_{name}" for name in bounds}
    other = theirs.reindex(columns=[*on, "value", *bounds]).rename(columns={"value": "theirs"} | their_bounds)
    table = mine.merge(other, how="outer", on=list(on), sort=False)
    for name in bounds:  # a value without an interval is a point
        table[f"their_{name}"] = table[f"their_{name}"].astype(float).fillna(table["theirs"])
    table["gap"] = table["ours"] - table["theirs"]
    known = table[["low", "high", "ours", "theirs"]].notna().all(axis=1)
    meets = (table["low"] <= table["their_high"]) & (table["their_low"] <= table["high"])
    table["verdict"] = [
        "no verdict" if not k else "agrees" if m else "differs" for k, m in zip(known, meets, strict=True)
    ]
    return table[[*on, "ours", "low", "high", "theirs", "gap", "verdict"]]


def printed(table: pd.DataFrame) -> str:
    """A table of `against` in words: ours with its interval, theirs, the gap, the verdict; and how many of each."""
    shown = table.drop(columns=["low", "high"]).astype(object)
    shown = shown.where(shown.notna(), "–").map(lambda value: f"{value:g}" if isinstance(value, float) else value)
    for name in ("ours", "theirs", "gap"):
        shown[name] = [f"{value:{'+' * (name == 'gap')}.3f}" if value == value else "–" for value in table[name]]
    bounds = zip(table["low"], table["high"], strict=True)
    shown["ours"] += [f" [{low:.3f}, {high:.3f}]" if low == low else "" for low, high in bounds]
    counts = table["verdict"].value_counts()
    tally = ", ".join(f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS)
    return f"{shown.to_string(index=False)}\n{tally}"
