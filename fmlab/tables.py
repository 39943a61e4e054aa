"""Data frames of replays: a row a head, a row a budget, a row a token lost; with the regret where the optimum is known."""

from collections.abc import Sequence

import pandas as pd
import torch

from .core import Policy
from .intervals import bootstrap, one_way
from .metrics import paid_between
from .replays import OPTIMUM, Replays

EMPTY_REGRET = "regret is empty where the optimum is not known: call replays.oracle(budget, prefill), which computes and remembers it"


def by_head(replays: Replays, policies: Sequence[Policy], budgets: Sequence[int], prefill: int = 1) -> pd.DataFrame:
    """One row a policy, budget, layer and KV head: `mass_recall` and `regret`; the optimum itself where it is known;
    `query_aware` as the trace was recorded.

    Nothing slow is computed: `regret` is NaN where the optimum of a budget is not known, and `attrs["regret"]` of the
    frame says how to get it. Raises ValueError where there is nothing to replay.
    """
    if not policies or not budgets:
        raise ValueError(f"policies={list(policies)}, budgets={list(budgets)}; give at least one of each")
    rows = []
    for budget in budgets:
        known = replays.has_oracle(budget, prefill)
        best = replays.mass_recall(None, budget, prefill) if known else None
        for policy in [*policies, *([None] if known else [])]:
            recall = replays.mass_recall(policy, budget, prefill)
            regret = torch.full_like(recall, torch.nan) if best is None else best - recall
            label = {"policy": OPTIMUM if policy is None else repr(policy), "budget": budget, "prefill": prefill}
            label["query_aware"] = replays.trace.query_aware
            for at, layer in enumerate(replays.trace.layers):
                for head in range(replays.trace.kv_heads):
                    figures = {"mass_recall": float(recall[at, head]), "regret": float(regret[at, head])}
                    rows.append(label | {"layer": layer, "head": head} | figures)
    return _told(pd.DataFrame(rows))


def by_budget(heads: pd.DataFrame) -> pd.DataFrame:
    """One row a policy and budget of a table by head: means over the heads, with the interval of the regret.

    `regret` with `regret_low` and `regret_high` (95%, bootstrap over texts where column `seed` names several, over
    layers otherwise), `regret_p90`, `regret_worst` and the `worst_head` as layer.head; `mass_recall`; `heads`. Raises
    ValueError where query-aware and query-blind rows are mixed.
    """
    rows, aware = [], one_way(heads["query_aware"])
    for (policy, budget), part in heads.groupby(["policy", "budget"], sort=False):
        row = {"policy": policy, "budget": budget, "query_aware": aware, "mass_recall": part["mass_recall"].mean()}
        rows.append(row | _regret(part) | {"heads": len(part)})
    return _told(pd.DataFrame(rows))


def lost(replays: Replays, policy: Policy, budget: int, prefill: int = 1) -> pd.DataFrame:
    """Where the optimum keeps what a policy loses: one row a layer, KV head and token.

    `lost` is the share of all queries' attention that falls on the token while the optimum still holds it and the
    policy does not, `gained` the same with the two exchanged; the sum of lost minus gained over a head is its regret.
    Raises ValueError where the optimum is not known.
    """
    if not replays.has_oracle(budget, prefill):
        raise ValueError(f"the optimum at budget {budget} is not known; call replays.oracle({budget}, {prefill}) first")
    trace, best = replays.trace, replays.oracle(budget, prefill)
    mine = replays.expiry(policy, budget, prefill)
    missed, more = paid_between(trace, mine, best), paid_between(trace, best, mine)
    layers, heads, tokens = mine.shape
    grid = torch.cartesian_prod(torch.tensor(trace.layers), torch.arange(heads), torch.arange(tokens)).view(-1, 3)
    return pd.DataFrame(
        {
            "policy": repr(policy),
            "budget": budget,
            "query_aware": trace.query_aware,
            "layer": grid[:, 0].numpy(),
            "head": grid[:, 1].numpy(),
            "position": grid[:, 2].numpy(),
            "token": list(trace.tokens) * (layers * heads),
            "lost": missed.flatten().numpy(),
            "gained": more.flatten().numpy(),
        }
    )


def _regret(part: pd.DataFrame) -> dict:
    empty = dict.fromkeys(("regret", "regret_low", "regret_high", "regret_p90", "regret_worst"), float("nan"))
    known = part.dropna(subset=["regret"])
    if known.empty:
        return empty | {"worst_head": ""}
    several = "seed" in known and known["seed"].nunique() > 1
    interval = bootstrap(known["regret"].to_numpy(), known["seed" if several else "layer"].to_numpy())
    worst = known.loc[known["regret"].idxmax()]
    return {
        "regret": interval.mean,
        "regret_low": interval.low,
        "regret_high": interval.high,
        "regret_p90": known["regret"].quantile(0.9),
        "regret_worst": worst["regret"],
        "worst_head": f"{worst['layer']:.0f}.{worst['head']:.0f}",
    }


def _told(table: pd.DataFrame) -> pd.DataFrame:
    if table["regret"].isna().any():
        table.attrs["regret"] = EMPTY_REGRET
    return table


def foretold(fidelity: pd.DataFrame) -> pd.DataFrame:
    """How far replays are off, a row a policy and budget of the rows of `fmlab.fidelity` with column `seed` (the text):
    means over layers and texts of `live`, `replayed` and `overlap`, and the `gap` replayed - live with its 95% interval,
    whole texts drawn. Raises ValueError where query-aware and query-blind rows are mixed."""
    rows, aware = [], one_way(fidelity["query_aware"])
    for (policy, budget), part in fidelity.groupby(["policy", "budget"], sort=False):
        gap = bootstrap((part["replayed"] - part["live"]).to_numpy(), part["seed"].to_numpy())
        means = part[["live", "replayed", "overlap"]].mean().to_dict()
        interval = {"gap": gap.mean, "gap_low": gap.low, "gap_high": gap.high}
        rows.append(
            {"policy": policy, "budget": budget, "query_aware": aware} | means | interval | {"texts": gap.clusters}
        )
    return pd.DataFrame(rows)


def ranks_foretold(fidelity: pd.DataFrame) -> pd.DataFrame:
    """How well replays rank policies, a row a budget: Spearman's correlation over the policies between the mass recall
    replayed and the live one (`recall`), and between the mass recall replayed and the nats not lost live (`nll`), mean
    over texts with 95% intervals, whole texts drawn. Raises ValueError for fewer than three policies,
    and where query-aware and query-blind rows are mixed."""
    if (count := fidelity["policy"].nunique()) < 3:
        raise ValueError(f"{count} policies have no ranking to speak of; give at least three")
    rows, aware = [], one_way(fidelity["query_aware"])
    for budget, part in fidelity.groupby("budget"):
        row: dict = {"budget": budget, "query_aware": aware}
        for name, other in {"recall": "live", "nll": "nll_delta"}.items():
            signs = -1 if name == "nll" else 1
            each = []
            for _, text in part.groupby("seed"):
                means = text.groupby("policy")[["replayed", other]].mean()
                each.append(signs * means["replayed"].corr(means[other], method="spearman"))
            interval = bootstrap(each)
            row |= {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
        rows.append(row | {"policies": part["policy"].nunique(), "texts": part["seed"].nunique()})
    return pd.DataFrame(rows)
