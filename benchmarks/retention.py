"""Context retention on the real model: which planted facts are still held, and which can it still tell, by depth.

Writes data/retention.csv, one row a document, policy, budget and fact. An interrupted run goes on where it stopped.
"""

from functools import cache
from pathlib import Path

import pandas as pd
from paired import arguments

import fmlab as fm
from fmlab.needs import LIVE

ROOT = Path(__file__).resolve().parents[1]
FACTS = 6
KEEP = ["policy", "budget", "seed", "tokens", "query_aware", "commit", "dirty", "versions", "device"]


@cache
def model(tiny: bool):
    return fm.tiny() if tiny else fm.load()


def cell(policy, budget, seed, tokens, tiny):
    """One document under one policy and budget: `present_i` and `answered_i` of its facts, in order of depth."""
    lm = model(tiny)
    answers = fm.tasks.answer(lm, fm.tasks.recall(lm, tokens, FACTS, seed), policy, budget, max_new_tokens=20)
    figures = {"query_aware": False}
    for i, answer in enumerate(answers):
        figures |= {
            f"depth_{i}": answer.planted.depth,
            f"third_{i}": answer.planted.third,
            f"present_{i}": float(answer.present.mean()),
            f"answered_{i}": bool(answer.answered),
        }
    return figures


def long(wide: pd.DataFrame) -> pd.DataFrame:
    """One row a fact."""
    facts = []
    for i in range(FACTS):
        columns = {f"{name}_{i}": name for name in ("depth", "third", "present", "answered")}
        facts.append(wide[[*KEEP, *columns]].rename(columns=columns).assign(fact=i))
    return pd.concat(facts, ignore_index=True).sort_values(["seed", "budget", "fact"], kind="stable")


def main() -> None:
    toy = arguments(__doc__).toy
    tokens, budgets, seeds = (700, [64], range(1)) if toy else (512, [64, 128, 256], range(6))
    policies = fm.policies.every(LIVE)
    out = None if toy else ROOT / "runs" / "retention.sqlite"
    settings = {"tokens": tokens, "tiny": toy, "out": out}
    tables = [
        fm.sweep(cell, policy=[None], budget=[None], seed=seeds, **settings),
        fm.sweep(cell, seed=seeds, budget=budgets, policy=policies, **settings),
    ]
    table = long(pd.concat(tables, ignore_index=True))
    if not toy:
        table.to_csv(ROOT / "data" / "retention.csv", index=False)
    table["policy"] = table.policy.fillna("full cache")
    print(
        table.groupby(["budget", "policy"], dropna=False)[["present", "answered"]]
        .agg(["mean", "count"])
        .round(3)
        .to_string()
    )


if __name__ == "__main__":
    main()
