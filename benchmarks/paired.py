"""Times two functions in turn in one process and reports the ratio of the pairs with its interval."""

import argparse
import platform
import random
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]


def options(about: str) -> argparse.ArgumentParser:
    """The options that every benchmark takes, for one that takes more."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--toy", action="store_true", help="tiny sizes: does it run at all? The figures mean nothing")
    return parser


def arguments(about: str) -> argparse.Namespace:
    """The options that every benchmark takes."""
    return options(about).parse_args()


def seconds(run: Callable[[], object]) -> float:
    """Wall seconds of one call."""
    start = perf_counter()
    run()
    return perf_counter() - start


def ratio(
    baseline: Callable[[], object],
    candidate: Callable[[], object],
    rounds: int,
    warm_up: int = 5,
    between: Callable[[], object] = lambda: None,
) -> dict:
    """Candidate over baseline: each round runs both in random order, then `between`, untimed; the median of the rounds'
    ratios with a 95% bootstrap interval. Below 1 the candidate is faster."""
    order = random.Random(0)
    times = []
    for _ in range(warm_up + rounds):
        pair = {}
        for name, run in order.sample([("baseline", baseline), ("candidate", candidate)], 2):
            pair[name] = seconds(run)
        times.append((pair["baseline"], pair["candidate"]))
        between()
    base, ours = np.array(times[warm_up:]).T
    ratios = ours / base
    drawn = np.random.default_rng(0).integers(rounds, size=(4_000, rounds))
    low, high = np.quantile(np.median(ratios[drawn], axis=1), [0.025, 0.975])
    return {
        "ratio": round(median(ratios), 3),
        "low": round(low, 3),
        "high": round(high, 3),
        "rounds": rounds,
        "baseline_ms": round(median(base) * 1e3, 2),
        "candidate_ms": round(median(ours) * 1e3, 2),
    }


def machine() -> str:
    """What the rows were measured on."""
    import torch
    import transformers

    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, Python {platform.python_version()}, "
        f"torch {torch.__version__}, transformers {transformers.__version__}"
    )


def ship(part: pd.DataFrame, name: str, by: str, digits: str) -> pd.DataFrame:
    """Write rows to the shipped table of this name, in place of older ones with the same `by`, and return the whole table."""
    path = ROOT / "data" / name
    as_it_is = {"keep_default_na": False, "na_values": [""]}  # a reply may be "None"
    older = [pd.read_csv(path, **as_it_is)] if path.exists() else []
    older = [table[~table[by].isin(part[by])] for table in older]
    pd.concat([*older, part], ignore_index=True).to_csv(path, index=False, float_format=digits)
    return pd.read_csv(path, **as_it_is)


def show(rows: list[dict], title: str) -> None:
    """Print the rows as one table."""
    print(f"# {title}\n# {machine()}")
    print(pd.DataFrame(rows).to_string(index=False), flush=True)
