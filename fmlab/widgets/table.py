"""The figures beside the map: retention by third, attention-mass recall, entries held and their bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from ..metrics import Received, mass_recall, present, thirds
from ..trace import Trace
from .choice import Choice

PENDING = "…"


@dataclass(frozen=True)
class Figure:
    """One row of the table: its name, what it says, how values become text; a share of one, a mean or a total."""

    column: str
    name: str
    help: str
    text: Callable[[float], str]
    share: bool = False
    total: bool = False


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _nbytes(value: float) -> str:
    return f"{value / 1e6:,.2f} MB" if value >= 1e6 else f"{value / 1e3:,.1f} kB"


_THIRD = "Share of the {} third of the tokens that is held after the last step"
FIGURES = (
    Figure("early_held", "Early third held", _THIRD.format("first"), _percent, True),
    Figure("middle_held", "Middle third held", _THIRD.format("second"), _percent, True),
    Figure("late_held", "Late third held", _THIRD.format("last"), _percent, True),
    Figure(
        "mass_recall",
        "Attention-mass recall",
        "Share of the full cache's attention that lies on entries still seen, mean over all queries",
        "{:.3f}".format,
        True,
    ),
    Figure("held_entries", "Entries held a head", "Held by a KV head after the last step, mean", "{:,.0f}".format),
    Figure("held_nbytes", "KV bytes held", "By the chosen heads, in the precision of the trace", _nbytes, total=True),
)


Recall = Callable[[Int[Tensor, "layers kv_heads tokens"]], Float[Tensor, "layers kv_heads"]]


def recall_in_steps(received: Received, check: Callable[[], None] = lambda: None, layer: int | None = None) -> Recall:
    """Mass recall that a reader need not wait for: from the look-up where there is one, else layer by layer.

    `check` is called between layers and may raise to stop. With `layer`, others are left NaN where that saves time.
    """

    def one_layer(expiry: Tensor, at: int) -> Tensor:
        trace = received.trace
        if layer not in (None, trace.layers[at]):
            return expiry.new_full((1, trace.kv_heads), 0).double() * float("nan")
        check()
        return mass_recall(trace.layer(at), expiry[at : at + 1])

    def recall(expiry: Tensor) -> Tensor:
        if received.fast:
            return received.mass_recall(expiry)
        whole = expiry.new_empty(expiry.shape[:2]).double()
        for at in range(len(received.trace.layers)):
            whole[at] = one_layer(expiry, at)
        return whole

    return recall


def figures_of(
    trace: Trace, expiry: Int[Tensor, "layers kv_heads tokens"], recall: Recall | None
) -> dict[str, Float[Tensor, "layers kv_heads"]]:
    """Every figure of a run, by column. Without `recall` the mass recall, which may take seconds, is left out."""
    held = present(expiry, 0, len(trace)) * len(trace)
    figures = {"held_entries": held, "held_nbytes": held * _entry_nbytes(trace)}
    if len(trace) >= 3:
        figures |= dict(zip(("early_held", "middle_held", "late_held"), thirds(expiry), strict=True))
    if recall is not None:
        figures["mass_recall"] = recall(expiry)
    return figures


def full_cache(trace: Trace, like: dict[str, Tensor]) -> dict[str, Float[Tensor, "layers kv_heads"]]:
    """The same figures of a run that forgets nothing: every share is one."""
    ones = {column: values.new_ones(values.shape) for column, values in like.items()}
    held, nbytes = (ones[name] * len(trace) for name in ("held_entries", "held_nbytes"))
    return ones | {"held_entries": held, "held_nbytes": nbytes * _entry_nbytes(trace)}


def _entry_nbytes(trace: Trace) -> int:
    return (trace.keys.shape[-1] + trace.values.shape[-1]) * trace.keys.element_size()


def table(trace: Trace, choice: Choice, expiries: Sequence[Tensor], recall: Recall | None) -> dict:
    """The table of a choice as the browser draws it: the runs and the full cache, over the chosen heads."""
    runs = [figures_of(trace, expiry, recall) for expiry in expiries]
    runs.append(full_cache(trace, runs[0]))
    columns = [{"side": side, "label": repr(policy)} for side, policy in zip("ab", choice.policies, strict=False)]
    rows = []
    for figure in FIGURES:
        if figure.column in runs[0]:
            chosen = [choice.heads_of(trace, run[figure.column]) for run in runs]
            values = [float(value.sum() if figure.total else value.mean()) for value in chosen]
            cells = [{"text": figure.text(v), "share": v if figure.share else None} for v in values]
        elif figure.column == "mass_recall":
            cells = [{"text": PENDING, "share": None} for _ in runs]
        else:
            continue
        for cell in cells[-1:]:
            cell["share"] = None  # the full cache is the measure, not a run
        rows.append({"name": figure.name, "help": figure.help, "cells": cells})
    caption = f"At the end of the text, budget {choice.budget}, {choice.where(trace)}"
    return {"caption": caption, "columns": [*columns, {"side": None, "label": "full cache"}], "rows": rows}


def as_text(figures: dict) -> str:
    """The table in plain text, for places where widgets do not run."""
    columns = [(column["side"] or "").upper() or column["label"] for column in figures["columns"]]
    names = [f"{column['side'].upper()}: {column['label']}" for column in figures["columns"] if column["side"]]
    lines = [[row["name"], *(cell["text"] for cell in row["cells"])] for row in figures["rows"]]
    grid = [["", *columns], *lines]
    widths = [max(len(line[k]) for line in grid) for k in range(len(grid[0]))]
    body = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in grid]
    return "\n".join([figures["caption"], *names, *body])
