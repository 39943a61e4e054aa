"""The families of RULER with the full cache: which of them the small model can answer at all, and at which length.

Prints a row a family and length: exact match (share of expected answers said) with its interval over texts, samples
with all answers right with Wilson's, and the nats a token of the right answer. Keeps finished rows in runs/ruler.sqlite.

`python benchmarks/ruler.py` on SmolLM2-135M-Instruct, 6 texts a row, exact match at 512 and 1,024 tokens (answer NLL):
single 1.00, 1.00 (0.07, 0.08); multi_key 1.00, .83 (0.17, 0.23); multi_query .83, .50 (0.48, 0.58); multi_value .61, .61
(0.48, 0.57); frequent_words .50, .33 (1.10, 1.17); common_words .22, .17 (4.02, 4.51); variable_tracking 0, .06 (1.51,
1.77). So single and multi_key can be asked for; multi_query and multi_value in part; of the others hardly a sample is all
right (0 of 12 each), and the answer NLL is the figure. Where all texts agree the bootstrap has no width: read Wilson's.
"""

from functools import cache

import pandas as pd
from paired import arguments, machine

import fmlab as fm
from fmlab.intervals import bootstrap, wilson

FAMILIES = {family.__name__: family for family in fm.ruler.FAMILIES}


@cache
def model(tiny: bool):
    return fm.tiny() if tiny else fm.load()


def cell(family, tokens, seed, tiny):
    """One sample, read with the full cache."""
    lm = model(tiny)
    return fm.ruler.score(lm, FAMILIES[family](lm, tokens, seed), max_new_tokens=2 if tiny else None).row()


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a family and length; rows that saw the question before the eviction never share one with others."""
    table = []
    for (family, tokens, aware), mine in rows.groupby(["family", "tokens", "query_aware"], sort=False):
        share, right = bootstrap(mine.answered), wilson(int(mine.all_answered.sum()), len(mine))
        nats = bootstrap(mine.answer_nll)
        table.append(
            {
                "family": family,
                "tokens": tokens,
                "query_aware": aware,
                "n": len(mine),
                "exact_match": f"{share.mean:.2f} [{share.low:.2f}, {share.high:.2f}]",
                "all_right": f"{right.mean:.2f} [{right.low:.2f}, {right.high:.2f}]",
                "answer_nll": f"{nats.mean:.2f} [{nats.low:.2f}, {nats.high:.2f}]",
            }
        )
    return pd.DataFrame(table)


def main() -> None:
    toy = arguments(__doc__).toy
    lengths, seeds = ([1500], range(2)) if toy else ([512, 1024], range(6))
    out = None if toy else "runs/ruler.sqlite"
    rows = fm.sweep(cell, out, family=list(FAMILIES), tokens=lengths, seed=seeds, tiny=toy)
    print(f"# RULER's families, full cache\n# {machine()}")
    print(summary(rows).to_string(index=False))


if __name__ == "__main__":
    main()
