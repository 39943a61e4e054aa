"""The exact optimum of a real trace: how long it takes, and by how much each policy falls short of it."""

from pydoc_data import topics

from paired import arguments, seconds, show

import fmlab as fm
from fmlab.metrics import mass_recall


def main() -> None:
    toy = arguments(__doc__).toy
    lm = fm.tiny() if toy else fm.load()
    ids = lm.ids(topics.topics["typesseq"])
    sizes = [(48, 8), (96, 16)] if toy else [(512, 32), (512, 64), (512, 128), (1024, 64)]
    took, short = [], []
    for tokens, budget in sizes:
        trace, best = fm.record(lm, ids[:tokens]), []
        time = seconds(lambda trace=trace, budget=budget, best=best: best.append(fm.oracle(trace, budget)))
        optimum = mass_recall(trace, best[0])
        heads = optimum.numel()
        took.append({"tokens": tokens, "budget": budget, "heads": heads, "seconds": round(time, 2)})
        for policy in fm.policies.every(trace.offers):
            try:
                recall = mass_recall(trace, fm.replay(trace, policy, budget))
            except fm.BudgetError:
                continue
            regret = optimum - recall
            row = {"tokens": tokens, "budget": budget, "policy": repr(policy), "recall": float(recall.mean())}
            row |= {"optimum": float(optimum.mean()), "regret": float(regret.mean()), "worst_head": float(regret.max())}
            short.append({name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()})
    show(took, "the exact optimum, each head's certificate checked")
    show(short, "attention-mass recall and regret, means over the heads of one text")


if __name__ == "__main__":
    main()
