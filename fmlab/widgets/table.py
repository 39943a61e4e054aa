"""The figures beside the map: retention by third, mass recall, regret, entries held and bytes; and those of each head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from ..metrics import Received, mass_recall, present, thirds
from ..replays import Recall
from ..trace import Trace
from .choice import Choice

PENDING, UNKNOWN = "…", "–"


@dataclass(frozen=True)
class Figure:
    """One row of the table: its name, what it says, how values become text; a share of one, a mean or a total."""

    column: str
    name: str
    help: str
    text: Callable[[float], str]
    share: bool = False
    total: bool = False
    worst: bool = False  # the worst head, not the mean


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _regret(value: float) -> str:
    return f"{round(value, 3) + 0:.3f}"  # rounding may leave it a little below 0


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
    Figure(
        "regret", "Regret", "Mass recall of the exact optimum at this budget minus that of the run", "{:.3f}".format
    ),
    Figure("regret", "Regret, worst head", "The largest regret among the chosen heads", _regret, worst=True),
    Figure("held_entries", "Entries held a head", "Held by a KV head after the last step, mean", "{:,.0f}".format),
    Figure("held_nbytes", "KV bytes held", "By the chosen heads, in the precision of the trace", _nbytes, total=True),
)
COLUMNS = tuple(dict.fromkeys(figure.column for figure in FIGURES))
HOW_TO_REGRET = "switch on “Optimum”"


def recall_in_steps(received: Received, check: Callable[[], None] = lambda: None) -> Recall:
    """Mass recall that a reader need not wait for: from the look-up where there is one, else layer by layer.

    `check` is called between layers and may raise to stop.
    """

    def one_layer(expiry: Tensor, at: int) -> Tensor:
        trace = received.trace
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


@dataclass(frozen=True, eq=False)
class Shown:
    """A run as the figures take it: the side it is drawn on (a, b, o), its label, its expiry, and its mass recall, or
    None until that is measured."""

    side: str
    label: str
    expiry: Int[Tensor, "layers kv_heads tokens"]
    recall: Float[Tensor, "layers kv_heads"] | None = None


def figures_of(
    trace: Trace, run: Shown, best: Float[Tensor, "layers kv_heads"] | None = None
) -> dict[str, Float[Tensor, "layers kv_heads"]]:
    """Every figure of a run that is known, by column. `best` is the mass recall of the optimum, if that is known."""
    held = present(run.expiry, 0, len(trace)) * len(trace)
    figures = {"held_entries": held, "held_nbytes": held * _entry_nbytes(trace)}
    if len(trace) >= 3:
        figures |= dict(zip(("early_held", "middle_held", "late_held"), thirds(run.expiry), strict=True))
    if run.recall is not None:
        figures["mass_recall"] = run.recall
        if best is not None:
            figures["regret"] = best - run.recall
    return figures


def full_cache(trace: Trace, like: dict[str, Tensor]) -> dict[str, Float[Tensor, "layers kv_heads"]]:
    """The same figures of a run that forgets nothing: every share is one. It keeps no budget, so it has no regret."""
    ones = {column: values.new_ones(values.shape) for column, values in like.items() if column != "regret"}
    held, nbytes = (ones[name] * len(trace) for name in ("held_entries", "held_nbytes"))
    return ones | {"held_entries": held, "held_nbytes": nbytes * _entry_nbytes(trace)}


def _entry_nbytes(trace: Trace) -> int:
    return (trace.keys.shape[-1] + trace.values.shape[-1]) * trace.keys.element_size()


def table(trace: Trace, choice: Choice, runs: Sequence[Shown], best: Float[Tensor, "layers kv_heads"] | None) -> dict:
    """The table of a choice as the browser draws it: the runs and the full cache, over the chosen heads."""
    known = [figures_of(trace, run, best) for run in runs]
    known.append(full_cache(trace, known[0]))
    columns = [{"side": run.side, "label": run.label} for run in runs] + [{"side": None, "label": "full cache"}]
    rows = []
    for figure in FIGURES:
        cells = [_cell(trace, choice, figure, figures, best) for figures in known]
        cells[-1]["share"] = None  # the full cache is the measure, not a run
        name = figure.name
        if figure.column == "regret":
            if figure.worst and (best is None or choice.heads_of(trace, best).numel() == 1):
                continue
            if best is None:
                name = f"{name} ({HOW_TO_REGRET})"
            cells[-1]["text"] = UNKNOWN
        if len(trace) >= 3 or not figure.column.endswith("_held"):
            rows.append({"name": name, "help": figure.help, "cells": cells})
    caption = f"At the end of the text, budget {choice.budget}, {choice.where(trace)}"
    return {"caption": caption, "columns": columns, "rows": rows}


def _cell(trace: Trace, choice: Choice, figure: Figure, figures: dict[str, Tensor], best: Tensor | None) -> dict:
    if figure.column not in figures:
        pending = figure.column == "mass_recall" or best is not None
        return {"text": PENDING if pending else UNKNOWN, "share": None}
    chosen = choice.heads_of(trace, figures[figure.column])
    value = float(chosen.sum() if figure.total else chosen.max() if figure.worst else chosen.mean())
    return {"text": figure.text(value), "share": value if figure.share else None}


def head_table(trace: Trace, runs: Sequence[Shown], best: Float[Tensor, "layers kv_heads"] | None) -> dict:
    """Mass recall and, where it is known, regret of every head, for the map of heads."""

    def plain(values: Tensor | None) -> list | None:
        return None if values is None else [[round(v, 4) for v in line] for line in values.tolist()]

    found = [
        {
            "side": run.side,
            "label": run.label,
            "mass_recall": plain(run.recall),
            "regret": plain(None if best is None or run.recall is None else best - run.recall),
        }
        for run in runs
    ]
    return {"layers": list(trace.layers), "kv_heads": trace.kv_heads, "runs": found, "how": HOW_TO_REGRET}


def as_text(figures: dict) -> str:
    """The table in plain text, for places where widgets do not run."""
    columns = [(column["side"] or "").upper() or column["label"] for column in figures["columns"]]
    names = [f"{column['side'].upper()}: {column['label']}" for column in figures["columns"] if column["side"]]
    lines = [[row["name"], *(cell["text"] for cell in row["cells"])] for row in figures["rows"]]
    grid = [["", *columns], *lines]
    widths = [max(len(line[k]) for line in grid) for k in range(len(grid[0]))]
    body = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in grid]
    return "\n".join([figures["caption"], *names, *body])
