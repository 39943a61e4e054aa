"""Replaying all 90 KV heads of SmolLM2 over 1,024 tokens: each policy at each budget, and the whole grid."""

from pydoc_data import topics

from paired import arguments, seconds, show

import fmlab as fm

BUDGETS = (16, 32, 64, 128, 256, 512, 768, 896)


def main() -> None:
    toy = arguments(__doc__).toy
    lm = fm.tiny() if toy else fm.load()
    tokens = 96 if toy else 1024
    trace = fm.record(lm, lm.ids(topics.topics["typesseq"])[:tokens])
    rows, total = [], 0.0
    for name in fm.policies.__all__:
        policy = getattr(fm.policies, name)()
        for budget in BUDGETS[2:4] if toy else BUDGETS:
            try:
                took = seconds(lambda policy=policy, budget=budget: fm.replay(trace, policy, budget))
            except fm.BudgetError as refused:
                rows.append({"policy": repr(policy), "budget": budget, "seconds": None, "refused": str(refused)})
                continue
            total += took
            rows.append({"policy": repr(policy), "budget": budget, "seconds": round(took, 3), "refused": ""})
    show(rows, f"replay of {len(trace)} tokens, {len(trace.layers) * trace.kv_heads} KV heads")
    print(f"whole grid: {total:.1f} s for {len(rows)} runs")


if __name__ == "__main__":
    main()
