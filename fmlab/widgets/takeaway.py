"""What leaves the Explorer: rows of figures, and the view as a page of its own."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from ..core import Policy
from ..replays import OPTIMUM, Recall, Replays
from ..trace import Trace
from .about import CAPTION, source
from .choice import Choice
from .export import Drawn, map_fragment, page
from .table import COLUMNS, FIGURES, Shown, figures_of, table


def rows(
    choice: Choice, trace: Trace, runs: Sequence[Shown], best: Float[Tensor, "layers kv_heads"] | None
) -> list[dict]:
    """One row a run, layer and head; regret is NaN where the optimum is not known."""
    found = []
    for run in runs:
        figures = figures_of(trace, run, best)
        setting = {"policy": run.label, "budget": choice.budget, "prefill": choice.prefill}
        for at, layer in enumerate(trace.layers):
            for head in range(trace.kv_heads):
                values = {c: float(figures[c][at, head]) if c in figures else float("nan") for c in COLUMNS}
                found.append(setting | {"layer": layer, "head": head} | values)
    return found


def view_page(choice: Choice, step: int, replays: Replays, measure: Recall) -> str:
    """The view of a choice as an HTML document, with every budget at hand behind its slider, and every optimum known."""
    trace = replays.trace
    budgets = {policy: sorted({choice.budget, *replays.budgets(policy, choice.prefill)}) for policy in choice.policies}
    maps = [
        _drawn(choice, policy, budget, replays, measure) for policy in choice.policies for budget in budgets[policy]
    ]
    known = [b for b in sorted(set().union(*budgets.values())) if replays.has_oracle(b, choice.prefill)]
    fragment = map_fragment(
        maps,
        trace.tokens,
        source=source(trace),
        caption=CAPTION,
        figures_caption=f"At the end of the text, {choice.where(trace)}",
        against=repr(choice.against) if choice.against is not None else None,
        budget=choice.budget,
        step=step,
        mode=choice.mode,
        optimum=[_drawn(choice, None, budget, replays, measure) for budget in known],
        oracle=choice.oracle,
    )
    return page(fragment, f"{trace.model}: what the memory keeps")


def _drawn(choice: Choice, policy: Policy | None, budget: int, replays: Replays, measure: Recall) -> Drawn:
    trace, prefill = replays.trace, choice.prefill
    best = replays.mass_recall(None, budget, prefill, measure) if replays.has_oracle(budget, prefill) else None
    expiry = replays.oracle(budget, prefill) if policy is None else replays.expiry(policy, budget, prefill)
    label = OPTIMUM if policy is None else repr(policy)
    run = Shown("a", label, expiry, replays.mass_recall(policy, budget, prefill, measure))
    lines = table(trace, choice.change(budget=budget), [run], best)["rows"]
    names = {figure.name for figure in FIGURES}  # a name with a hint for the Explorer's switch is none of a page
    figures = {line["name"]: line["cells"][0]["text"] for line in lines if line["name"] in names}
    return Drawn(label, budget, choice.heads_of(trace, expiry), figures)
