"""Replaying all 90 KV heads of SmolLM2 over 1,024 tokens: each policy at each budget; and the grid against running the
model for the same policies and budgets, a token a call, which is timed over some steps of each. The grid is replayed one
replay after another and then as `Replays.fill` does it, in a process a core, their start included.

A grid of every policy, whole: those that only a replay can serve (Clairvoyant) are shown and left out of the comparison.
"""

from pydoc_data import topics
from statistics import median

import torch
from paired import arguments, seconds, show

import fmlab as fm
from fmlab.needs import LIVE
from fmlab.replays import Replays

BUDGETS = (16, 32, 64, 128, 256, 512, 768, 896)


def main() -> None:
    toy = arguments(__doc__).toy
    lm = fm.tiny() if toy else fm.load()
    tokens, budgets, steps = (96, (64, 80), 4) if toy else (1024, BUDGETS, 6)
    trace = fm.record(lm, lm.ids(topics.topics["typesseq"])[:tokens])
    rows, totals, grid = [], [], []
    for policy in fm.policies.every(trace.offers):
        took = {}
        for budget in budgets:
            try:
                took[budget] = seconds(lambda policy=policy, budget=budget: fm.replay(trace, policy, budget))
                figures = {"seconds": round(took[budget], 3), "refused": ""}
            except fm.BudgetError as refused:
                figures = {"seconds": None, "refused": str(refused)}
            rows.append({"policy": repr(policy), "budget": budget, **figures})
        live = None
        if policy.needs <= LIVE:
            live = sum(live_seconds(lm, trace.ids, policy, budget, steps) for budget in took)
            grid += [(policy, budget) for budget in took]
        totals.append({"policy": repr(policy), "runs": len(took), "replays_s": sum(took.values()), "live_s": live})
    show(rows, f"replay of {len(trace)} tokens, {len(trace.layers) * trace.kv_heads} KV heads")
    show(
        [row | _times(row) for row in totals],
        "all budgets of a policy: replayed, and run by the model (from its steps)",
    )
    both = [row for row in totals if row["live_s"] is not None]
    replays, live = (sum(row[name] for row in both) for name in ("replays_s", "live_s"))
    filled = seconds(lambda: Replays(trace).fill(grid))
    print(
        f"whole grid: {len(grid)} runs, the model {live:.0f} s; replays one after another {replays:.0f} s, "
        f"{live / replays:.0f} times as fast; in a process a core {filled:.0f} s, {live / filled:.0f} times as fast"
    )


def _times(row: dict) -> dict:
    live = row["live_s"]
    rounded = {"replays_s": round(row["replays_s"], 1), "live_s": None if live is None else round(live)}
    return rounded | {"times": None if live is None else round(live / row["replays_s"])}


@torch.no_grad()
def live_seconds(lm, ids, policy: fm.Policy, budget: int, steps: int) -> float:
    """Seconds of a whole live run of these ids, from some of its steps before the budget is full and some after."""
    half = budget // 2
    with fm.finite(lm.model, policy, budget) as cache:

        def read(start: int, stop: int) -> None:
            lm.model(input_ids=ids[None, start:stop], past_key_values=cache, logits_to_keep=1)

        def step(start: int) -> float:
            return median(seconds(lambda at=at: read(at, at + 1)) for at in range(start, start + steps))

        read(0, half)
        filling = step(half)
        read(half + steps, budget)
        return filling * budget + step(budget) * (len(ids) - budget)


if __name__ == "__main__":
    main()
