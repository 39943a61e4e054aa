"""What the Explorer tells about a trace, and the words of its status line."""

import concurrent.futures
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fmlab as fm

from ..replays import Replays
from ..trace import Trace

CAPTION = (
    "Each row of the map is a token of the text, each column a step of reading. A row is coloured while the memory "
    "holds the token and turns grey once the policy has evicted it. Drag across the map or press play to move in time."
)
TOUR, TOUR_REPLAYS = "tour.safetensors", "tour.replays.safetensors"
HINT = "It answers under each policy at this budget, and with the full cache beside it."
TOUR_QUESTION, QUESTION = "What is the code of the cold store?", "What is this text about?"


def tour() -> tuple[Trace, Replays]:
    """The trace that the lab ships, and its replays."""
    trace = Trace.load(fm.datafile(TOUR))
    return trace, Replays.load(fm.datafile(TOUR_REPLAYS), trace)


def budget_grid(trace: Trace, replays: Replays) -> list[int]:
    """The stops of the budget slider: what is at hand of the library's policies, or two an octave; and all tokens."""
    tokens = len(trace)
    own = [kind() for kind in fm.core.living_policies() if kind.__module__.startswith("fmlab.policies.")]
    known = {budget for policy in own for budget in replays.budgets(policy) if budget < tokens}
    octaves = {b for power in range(3, tokens.bit_length()) for b in (1 << power, 3 << (power - 1)) if b < tokens}
    return sorted((known or octaves) | {tokens})


def about(trace: Trace, budgets: list[int], question: str, loaded: bool) -> dict:
    """What the controls offer for this trace."""
    half = len(trace) // 2
    layers = [["", f"mean of {len(trace.layers)}"], *([str(layer), f"layer {layer}"] for layer in trace.layers)]
    heads = [["", f"mean of {trace.kv_heads}"], *([str(head), f"KV head {head}"] for head in range(trace.kv_heads))]
    prefills = [["1", "token by token"], *([[str(half), f"first {half} tokens as one call"]] if half > 1 else [])]
    return {
        "caption": CAPTION,
        "source": source(trace),
        "tokens": len(trace),
        "budgets": budgets,
        "layers": layers,
        "heads": heads,
        "prefills": prefills,
        "question": question,
        "hint": HINT if loaded else f"{HINT} The first question loads {trace.model}.",
    }


def source(trace: Trace) -> str:
    """Model, length and layers in two lines."""
    return f"{trace.model}\n{len(trace):,} tokens, layers {', '.join(map(str, trace.layers))}"


def trace_code(trace: Trace, shipped: bool, names: Mapping[str, Any]) -> str:
    """The line of code after which `trace` is this trace; `names` are those of the notebook."""
    if shipped:
        return f'trace = fm.Trace.load(fm.datafile("{TOUR}"))'
    known = [name for name, value in names.items() if value is trace and not name.startswith("_")]
    if not known:
        return f"# `trace` is the one given to fm.explore: {trace!r}"
    return "# `trace` is the one of this notebook" if "trace" in known else f"trace = {known[0]}"


def ready(text: str = "") -> dict:
    """Nothing is being computed."""
    return {"state": "ready", "text": text, "detail": "", "share": None}


def busy(text: str, share: float | None = None, asking: bool = False) -> dict:
    """Something is: the picture is out of date, or, where the model is being asked, it is not."""
    return {"state": "asking" if asking else "busy", "text": text, "detail": "", "share": share}


def solving(text: str, share: float) -> dict:
    """The optimum is being computed: the picture of the policies is up to date."""
    return {"state": "solving", "text": text, "detail": "", "share": share}


def failure(error: BaseException) -> dict:
    """An error as the reader sees it: its class and message, and the traceback for who asks."""
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    frame = shown = error.__traceback__
    while frame is not None:
        if _is_plumbing(frame.tb_frame.f_code.co_filename) and frame.tb_next is not None:
            shown = frame.tb_next
        frame = frame.tb_next
    detail = "".join(traceback.format_exception(type(error), error, shown))
    return {"state": "error", "text": text, "detail": detail, "share": None}


def _is_plumbing(file: str) -> bool:
    """Whether a frame is the widget's own or its thread pool's, of which a policy's author need not know."""
    return Path(file).parent in (Path(__file__).parent, Path(concurrent.futures.__file__).parent)
