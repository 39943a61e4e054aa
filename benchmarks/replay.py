"""Replaying all 90 KV heads of SmolLM2 over 1,024 tokens: each policy at each budget, the whole grid, and the grid
against running the model, a token a call, which is timed over a few of its steps."""

from pydoc_data import topics
from statistics import median

import torch
from paired import arguments, seconds, show

import fmlab as fm

BUDGETS = (16, 32, 64, 128, 256, 512, 768, 896)


def main() -> None:
    toy = arguments(__doc__).toy
    lm = fm.tiny() if toy else fm.load()
    tokens = 96 if toy else 1024
    trace = fm.record(lm, lm.ids(topics.topics["typesseq"])[:tokens])
    rows, total = [], 0.0
    for policy in fm.policies.every(trace.offers):
        for budget in BUDGETS[2:4] if toy else BUDGETS:
            try:
                took = seconds(lambda policy=policy, budget=budget: fm.replay(trace, policy, budget))
            except fm.BudgetError as refused:
                rows.append({"policy": repr(policy), "budget": budget, "seconds": None, "refused": str(refused)})
                continue
            total += took
            rows.append({"policy": repr(policy), "budget": budget, "seconds": round(took, 3), "refused": ""})
    show(rows, f"replay of {len(trace)} tokens, {len(trace.layers) * trace.kv_heads} KV heads")
    ran = [row for row in rows if row["seconds"] is not None]
    print(f"whole grid: {total:.1f} s for {len(ran)} runs")
    live = live_seconds(lm, trace.ids, BUDGETS[3], 8 if toy else 64)
    print(
        f"running the model a token a call under SinkWindow, the cheapest: {live:.1f} s a run, so the grid "
        f"{live * len(ran) / total:.0f} times as long as its replays"
    )


@torch.no_grad()
def live_seconds(lm, ids, budget: int, steps: int) -> float:
    """Seconds of a whole live run of these ids, from its last steps."""
    with fm.finite(lm.model, fm.policies.SinkWindow(), min(budget, len(ids) // 2)) as cache:
        lm.model(input_ids=ids[None, :-steps], past_key_values=cache, logits_to_keep=1)
        took = [
            seconds(lambda at=at: lm.model(input_ids=ids[None, at : at + 1], past_key_values=cache))
            for at in range(len(ids) - steps, len(ids))
        ]
    return median(took) * len(ids)


if __name__ == "__main__":
    main()
