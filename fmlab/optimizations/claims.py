"""The claims of speed of the progress report that this lab began from, one made elsewhere, and what a whole chat says of them."""

from dataclasses import dataclass

import pandas as pd

from . import (
    embedding_misses,
    kv_carry_over,
    lazy_evaluation,
    mask_construction,
    sentence_boundaries,
    sliding_eviction,
    token_decoding,
)
from .verdict import verdict
from .whole import label

FIRST = (sentence_boundaries.PAIR, sliding_eviction.PAIR, mask_construction.PAIR)
SECOND = (token_decoding.PAIR, embedding_misses.PAIR, lazy_evaluation.PAIR)


@dataclass(frozen=True)
class Claim:
    """What is claimed of some pairs, which are all on in the whole."""

    what: str
    speedup: tuple[float, float] | None
    pairs: tuple[str, ...]


CLAIMS = (
    *(Claim(pair.name, pair.claim, (pair.name,)) for pair in (*FIRST, *SECOND)),
    Claim("phase 1 together", (1.15, 1.35), tuple(pair.name for pair in FIRST)),
    Claim("both phases together", (1.45, 1.95), tuple(pair.name for pair in (*FIRST, *SECOND))),
    Claim("KV carry-over, elsewhere", (51.0, 51.0), (kv_carry_over.PAIR.name,)),
    Claim("KV carry-over, later", kv_carry_over.PAIR.claim, (kv_carry_over.PAIR.name,)),
)


def of_the_whole(speedups: pd.DataFrame) -> pd.DataFrame:
    """Each claim against what the whole gained with just these pairs on, one row a claim and workload.

    `speedups` is the table of `whole.speedups`; a claim whose setting was not measured there has no row. Columns: `claim`,
    `workload`, `claim_low`, `claim_high` (NaN: no number is claimed), `speedup`, `low`, `high`, `n`, `verdict`.
    """
    rows = []
    for claim in CLAIMS:
        for _, found in speedups[speedups["on"] == label(frozenset(claim.pairs))].iterrows():
            low, high = claim.speedup or (float("nan"), float("nan"))
            rows.append(
                {
                    "claim": claim.what, "workload": found["workload"], "claim_low": low, "claim_high": high,
                    "speedup": found["speedup"], "low": found["low"], "high": found["high"], "n": found["n"],
                    "verdict": str(verdict(found["speedup"], found["low"], found["high"], claim.speedup)),
                }
            )  # fmt: skip
    return pd.DataFrame(rows)
