"""Why a token was evicted, in words and in a small table: under each policy shown, in the chosen heads."""

import math
from statistics import median

import torch
from jaxtyping import Int
from torch import Tensor

from ..trace import Trace
from ..why import Why
from .choice import Choice

COLUMNS = ("layer.head", "after step", "score", "the cut", "rank")


def reason(trace: Trace, choice: Choice, side: str, label: str, found: Why) -> dict:
    """What became of the token under one policy: a sentence, and a row a head that evicted it."""
    chosen = choice.heads_of(trace, torch.ones_like(found.step))
    rows = [
        row
        for row in found.rows()
        if choice.layer in (None, row["layer"]) and choice.head in (None, row["head"])
    ]  # fmt: skip
    cells = [
        [
            f"{row['layer']}.{row['head']}", f"{row['step']:,}", _number(row["score"]), _number(row["cut"]),
            f"{row['rank']:,} of {row['held']:,}",
        ]
        for row in rows
    ]  # fmt: skip
    return {"side": side, "label": label, "summary": _summary(rows, chosen.numel()), "rows": cells}


def of_optimum(trace: Trace, choice: Choice, expiry: Int[Tensor, "layers kv_heads tokens"], token: int) -> dict:
    """What became of it under the optimum, which has no scores: it knows what is to come."""
    ends = choice.heads_of(trace, expiry[..., token]).flatten().tolist()
    steps = [{"step": end - 1} for end in ends if end <= len(trace)]
    return {"side": "o", "label": "optimum", "summary": _went(steps, len(ends)) + ".", "rows": []}


def _summary(rows: list[dict], heads: int) -> str:
    words = _went(rows, heads)
    if heads > 1 or not rows:
        return f"{words}."
    (row,) = rows
    score, cut = _number(row["score"]), _number(row["cut"])
    if row["score"] == -math.inf:
        compared = "nothing could see it any more, so it went first"
    elif row["score"] == row["cut"]:
        compared = f"its score, {score}, equals the cut, and the newer token stays"
    else:
        compared = f"its score, {score}, is below the cut, {cut}, the lowest of the {row['kept']:,} kept"
    return f"{words}: {compared}."


def _went(rows: list[dict], heads: int) -> str:
    steps = sorted(row["step"] for row in rows)
    if not steps:
        return "Held to the end" + (f" in all {heads} heads" if heads > 1 else "")
    if heads == 1:
        return f"Evicted after step {steps[0]:,}"
    when = f"after step {steps[0]:,}"
    if steps[0] != steps[-1]:
        when = f"after steps {steps[0]:,} to {steps[-1]:,}, median {median(steps):,.0f}"
    kept = heads - len(steps)
    rest = f"; {kept} hold{'s' * (kept == 1)} it to the end" if kept else ""
    return f"Evicted in {len(steps)} of {heads} heads, {when}{rest}"


def _number(value: float) -> str:
    return {math.inf: "pinned", -math.inf: "−∞"}.get(value) or f"{value:.4g}".replace("-", "−")
