"""What the switch of a pair is worth to the wholes that are shipped, which is told beside every speed-up of a piece."""

from functools import cache

import pandas as pd

from .. import datafile
from .portions import amdahl
from .whole import effects


def in_the_wholes(name: str) -> tuple[str, ...]:
    """A line for each shipped whole with a switch for the pair of this name, or one that says that there is none."""
    found = tuple(
        f"the whole {row['workload']} with this alone: {row['alone']:.3g} x [{row['alone_low']:.3g}, {row['alone_high']:.3g}]; "
        f"the piece is {row['portion']:.2g} of its time, which allows {row['at_most']:.5g} x at most (measured beforehand)"
        for row in _shipped()
        if row["optimisation"] == name
    )
    return found or ("no whole was measured with this as a switch",)


@cache
def _shipped() -> list[dict]:
    """The effects of each switch and the portion of each piece, a row a workload and optimisation."""
    steps = pd.read_csv(datafile("optimizations_whole.csv.gz"), keep_default_na=False)
    pieces = pd.read_csv(datafile("optimizations_portions.csv"), keep_default_na=False)
    return effects(steps).merge(amdahl(pieces), on=["workload", "optimisation"]).to_dict("records")
