"""What leaves the Explorer: rows of figures, and the view as a page of its own."""

from collections.abc import Sequence

from torch import Tensor

from ..replays import Replays
from ..trace import Trace
from .about import CAPTION, source
from .choice import Choice
from .export import Drawn, map_fragment, page
from .table import FIGURES, Recall, figures_of, table


def rows(choice: Choice, expiries: Sequence[Tensor], trace: Trace, recall: Recall) -> list[dict]:
    """One row a policy, layer and head."""
    found = []
    for policy, expiry in zip(choice.policies, expiries, strict=True):
        figures = figures_of(trace, expiry, recall)
        setting = {"policy": repr(policy), "budget": choice.budget, "prefill": choice.prefill}
        for at, layer in enumerate(trace.layers):
            for head in range(trace.kv_heads):
                values = {f.column: float(figures[f.column][at, head]) for f in FIGURES if f.column in figures}
                found.append(setting | {"layer": layer, "head": head} | values)
    return found


def view_page(choice: Choice, step: int, replays: Replays, recall: Recall) -> str:
    """The view of a choice as an HTML document, with every budget at hand behind its slider."""
    trace = replays.trace
    maps = [
        _drawn(choice.change(policy=policy, against=None, budget=budget), replays, recall)
        for policy in choice.policies
        for budget in sorted({choice.budget, *replays.budgets(policy, choice.prefill)})
    ]
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
    )
    return page(fragment, f"{trace.model}: what the memory keeps")


def _drawn(choice: Choice, replays: Replays, recall: Recall) -> Drawn:
    expiry = replays.expiry(choice.policy, choice.budget, choice.prefill)
    lines = table(replays.trace, choice, [expiry], recall)["rows"]
    figures = {line["name"]: line["cells"][0]["text"] for line in lines}
    return Drawn(repr(choice.policy), choice.budget, choice.heads_of(replays.trace, expiry), figures)
