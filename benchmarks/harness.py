"""Can the optimisation lab's harness be believed? The same code against itself must come out as no difference, and a way
that does 5% more must come out as slower.

Twenty trials of each, on three kinds of work: Python objects, a NumPy sort and a matrix product of torch.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from paired import arguments, show

import fmlab as fm
from fmlab.optimizations import Pair, Verdict, compare

TRIALS = 20
PROSE = fm.texts.paragraphs()
WORK: dict[str, tuple[Callable[[list], object], Callable[[int, int], tuple], int]] = {
    "counting words": (
        lambda parts: [{word: len(word) for word in part} for part in parts],
        lambda size, seed: ([PROSE[(seed + part) % len(PROSE)].split()[:40] for part in range(size)],),
        400,
    ),
    "sorting": (
        lambda parts: [np.sort(part) for part in parts],
        lambda size, seed: ([np.random.default_rng(seed).random(200) for _ in range(size)],),
        400,
    ),
    "matrix products": (
        lambda parts: [part @ part for part in parts],
        lambda size, seed: ([torch.rand(64, 64, generator=torch.Generator().manual_seed(seed)) for _ in range(size)],),
        400,
    ),
}


def trial(name: str, more: float, rounds: int) -> dict:
    """One comparison of some work with itself, of which the second does `more` of it, such as 0.05."""
    work, inputs, size = WORK[name]

    def again(parts: list) -> object:
        found = work(parts)
        work(parts[: int(more * len(parts))])
        return found

    def same(parts: list) -> object:
        found = work(parts)
        work(parts[:0])
        return found

    (row,) = compare(Pair(name, None, "itself", same, again, inputs), [size], rounds).rows
    return {"work": name, "more": more, "speedup": row.speedup, "low": row.low, "high": row.high, "n": row.n,
            "verdict": row.verdict, "unrest": row.unrest}  # fmt: skip


def main() -> None:
    toy = arguments(__doc__).toy
    trials, rounds = (1, 6) if toy else (TRIALS, 40)
    rows = pd.DataFrame([trial(name, more, rounds) for name in WORK for more in (0.0, 0.05) for _ in range(trials)])
    lines = []
    for (name, more), found in rows.groupby(["work", "more"], sort=False):
        right = found["verdict"] == (Verdict.SLOWER if more else Verdict.NO_DIFFERENCE)
        lines.append(
            {
                "work": name, "second does more": f"{more:.0%}", "right verdict": f"{right.sum()} of {len(found)}",
                "speed-up from": round(found["speedup"].min(), 3), "to": round(found["speedup"].max(), 3),
                "unstable": int(found["unrest"].notna().sum()),
            }
        )  # fmt: skip
    show(lines, "verdicts of the harness on work whose difference is known")


if __name__ == "__main__":
    main()
