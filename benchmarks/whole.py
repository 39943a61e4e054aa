"""What each optimisation is worth to a whole chat of 40 turns and to a whole grid of policies: all off, all on, each one
alone, each one left out; the sums that the progress report claims; and the portion of the time that each piece takes.

Writes data/optimizations_whole.csv.gz, a row a step and setting, data/optimizations_portions.csv, a row a step and piece,
and data/optimizations_interactions.csv. The settings go on step by step, in an order drawn for every step, and every
step's result is the same in all; the first step warms up and is not counted. All off is measured twice, so that one sees how
far two runs of the same lie apart. Where an optimisation alone and the same one left out disagree, all twos of such ones
are measured, too, and what they do together is named.
"""

from dataclasses import replace

import pandas as pd
from paired import options, ship, show
from tqdm import tqdm

from fmlab.optimizations.chat import chat
from fmlab.optimizations.claims import CLAIMS, of_the_whole
from fmlab.optimizations.grid import grid
from fmlab.optimizations.machine import machine
from fmlab.optimizations.portions import amdahl, portions
from fmlab.optimizations.whole import Workload, ablate, effects, interactions, settings, speedups, twos
from fmlab.provenance import provenance

INTERACTS = 0.02  # alone over left out, from which on it is asked with what


def measured(workload: Workload) -> pd.DataFrame:
    """The steps under all settings; those of the claims are among them where the work has their switches."""
    claimed = [frozenset(claim.pairs) for claim in CLAIMS if set(claim.pairs) <= set(workload.switches)]
    under = list(dict.fromkeys([*settings(workload.switches), *claimed]))
    return counted(workload, under)


def clocked(workload: Workload) -> pd.DataFrame:
    """Every step with all off and a clock around each piece."""
    with tqdm(desc=f"{workload.name}, clocked", unit="step") as bar:
        return portions(workload, after_step=lambda done: bool(bar.update()) or True)


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
    parser = options(__doc__.split("\n\n")[0])
    parser.add_argument("--only", choices=["chat", "grid"], help="one of the two")
    given = parser.parse_args()
    # before the tables are written, which makes the checkout dirty
    about = provenance().columns | {"machine": machine()}
    print(f"# {about['machine']}")
    workloads = map(with_one_switch, (chat(2), grid(2, 32))) if given.toy else (chat(40), grid(6))

    def shipped(table: pd.DataFrame, name: str) -> None:
        if not given.toy:
            ship(table.assign(**about), name, "workload", "%.6g")

    for workload in workloads:
        if given.only not in (None, workload.name):
            continue
        table, pieces = measured(workload), clocked(workload)
        shipped(table, "optimizations_whole.csv.gz")
        shipped(pieces, "optimizations_portions.csv")
        worth = effects(table)
        figures = ("alone", "left_out", "share", "interaction")
        told = worth.drop(columns=["saved_seconds", "saved_low", "saved_high", "workload"])
        print(f"# {workload.name}: the whole with one optimisation alone, without it, and its share of the seconds")
        print(spoken(told, *figures).round(2).to_string(index=False))
        print(
            f"# {workload.name}: the portion of the seconds that each piece takes with all off, and the most it can save"
        )
        print(amdahl(pieces).drop(columns="workload").round(5).to_string(index=False))
        whole = speedups(table)
        print(f"# {workload.name}: all settings\n{whole.round(3).to_string(index=False)}")
        if not (said := of_the_whole(whole)).empty:
            print(f"# {workload.name}: the claims\n{said.round(3).to_string(index=False)}", flush=True)
        mixing = worth[(worth.interaction_low > 1 + INTERACTS) | (worth.interaction_high < 1 - INTERACTS)].optimisation
        if len(mixing) > 1:
            pairs = interactions(counted(workload, twos(list(mixing))))
            shipped(pairs, "optimizations_interactions.csv")
            show(pairs.round(3).to_dict("records"), f"{workload.name}: what two do together")


if __name__ == "__main__":
    main()
