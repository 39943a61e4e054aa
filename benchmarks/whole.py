"""What each optimisation is worth to a whole chat of 40 turns and to a whole grid of policies: all off, all on, each one
alone, each one left out; and the sums that the progress report claims.

Writes data/optimizations_whole.csv.gz, a row a step and setting. The settings go on step by step, in an order drawn for
every step, and every step's result is the same in all. Where an optimisation alone and the same one left out disagree,
all twos of such ones are measured, too, and what they do together is named.
"""

from dataclasses import replace
from pathlib import Path

import pandas as pd
from paired import arguments, machine, show
from tqdm import tqdm

from fmlab.optimizations.chat import chat
from fmlab.optimizations.claims import CLAIMS, of_the_whole
from fmlab.optimizations.grid import grid
from fmlab.optimizations.whole import Workload, ablate, effects, interactions, settings, speedups, twos

ROOT = Path(__file__).resolve().parents[1]
INTERACTS = 0.02  # alone over left out, from which on it is asked with what


def measured(workload: Workload) -> pd.DataFrame:
    """The steps under all settings; those of the claims are among them where the work has their switches."""
    claimed = [frozenset(claim.pairs) for claim in CLAIMS if set(claim.pairs) <= set(workload.switches)]
    under = list(dict.fromkeys([*settings(workload.switches), *claimed]))
    return counted(workload, under)


def with_one_switch(workload: Workload) -> Workload:
    return replace(workload, switches=workload.switches[-1:])


def counted(workload: Workload, under: list[frozenset[str]]) -> pd.DataFrame:
    with tqdm(desc=f"{workload.name}, {len(under)} settings", unit="step") as bar:
        return ablate(workload, under, lambda done: bool(bar.update()) or True)


def spoken(table: pd.DataFrame, *figures: str) -> pd.DataFrame:
    """Figures with their intervals as text."""
    said = table.copy()
    for figure in figures:
        low, high = (table[f"{figure}_{end}"] for end in ("low", "high"))
        said[figure] = [f"{v:.3f} [{a:.3f}, {b:.3f}]" for v, a, b in zip(table[figure], low, high, strict=True)]
        said = said.drop(columns=[f"{figure}_low", f"{figure}_high"])
    return said


def main() -> None:
    toy = arguments(__doc__).toy
    print(f"# {machine()}")
    tables = []
    for workload in map(with_one_switch, (chat(2), grid(1, 32))) if toy else (chat(40), grid(12)):
        table = measured(workload)
        worth = effects(table)
        mixing = worth[(worth.interaction_low > 1 + INTERACTS) | (worth.interaction_high < 1 - INTERACTS)].optimisation
        pairs = counted(workload, twos(list(mixing))) if len(mixing) > 1 else pd.DataFrame()
        tables.append(table)
        if not toy:
            pd.concat(tables).to_csv(ROOT / "data" / "optimizations_whole.csv.gz", index=False, float_format="%.6g")
        figures = ("alone", "left_out", "share", "interaction")
        worth = worth.drop(columns=["saved_seconds", "saved_low", "saved_high", "workload"])
        print(f"# {workload.name}: the whole with one optimisation alone, without it, and its share of the seconds")
        print(spoken(worth, *figures).round(2).to_string(index=False))
        whole = speedups(table)
        print(f"# {workload.name}: all settings\n{whole.round(3).to_string(index=False)}")
        if not (said := of_the_whole(whole)).empty:
            print(f"# {workload.name}: the claims\n{said.round(3).to_string(index=False)}")
        if len(pairs):
            show(interactions(pairs).round(3).to_dict("records"), f"{workload.name}: what two do together")


if __name__ == "__main__":
    main()
