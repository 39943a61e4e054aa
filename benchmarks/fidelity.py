"""How well a replay foretells the live run: every policy and budget both ways on four texts, layer by layer.

Writes data/fidelity.csv.gz, one row a text, policy, budget and layer. An interrupted run goes on where it stopped.
"""

import json
from functools import cache
from pathlib import Path

import pandas as pd
from paired import arguments

import fmlab as fm
from fmlab.contract import fits
from fmlab.fidelity import fidelity
from fmlab.needs import LIVE

ROOT = Path(__file__).resolve().parents[1]
KEEP = ["seed", "tokens", "first", "chunk", "commit", "dirty", "versions", "device"]


@cache
def model(tiny: bool):
    return fm.tiny() if tiny else fm.load()


def cell(seed, tokens, first, chunk, budgets, tiny):
    """One text under every policy that a live model can run, at every budget that it can keep."""
    lm = model(tiny)
    cells = [(policy, budget) for budget in budgets for policy in fm.policies.every(LIVE) if fits(policy, budget)]
    ids = lm.ids(" ".join(fm.texts.haystack(tokens, seed)))[:tokens]
    return {"rows": json.dumps(fidelity(lm, ids, cells, first, chunk))}


def long(table: pd.DataFrame) -> pd.DataFrame:
    """One row a policy, budget and layer."""
    parts = []
    for _, row in table.iterrows():
        part = pd.DataFrame(json.loads(row["rows"]))
        parts.append(part.assign(**{name: row[name] for name in KEEP}))
    return pd.concat(parts, ignore_index=True)


def main() -> None:
    toy = arguments(__doc__).toy
    tokens, first, chunk, budgets, seeds = (60, 40, 4, (32,), range(2)) if toy else (320, 256, 8, (32, 96), range(4))
    out = None if toy else ROOT / "runs" / "fidelity.sqlite"
    settings = {"tokens": tokens, "first": first, "chunk": chunk, "tiny": toy}
    table = long(fm.sweep(cell, seed=seeds, budgets=[budgets], out=out, **settings))
    if not toy:
        table.to_csv(ROOT / "data" / "fidelity.csv.gz", index=False, float_format="%.5f")
    print(fm.tables.foretold(table).round(3).to_string(index=False))
    print(fm.tables.ranks_foretold(table).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
