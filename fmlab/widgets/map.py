"""RetentionMap: the token x step map and the text of one or two runs, linked, as a widget of its own."""

from collections.abc import Mapping, Sequence

import anywidget
import traitlets
from jaxtyping import Int
from torch import Tensor

from .assets import VIEW, script, style
from .wire import Run, encode


class Stepped(anywidget.AnyWidget):
    """A widget with a selected step, which the reader moves in the browser and the caller by assigning it."""

    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    go = traitlets.Dict().tag(sync=True)

    @property
    def step(self) -> int:
        """The selected step: the last one that the browser has told, or that was assigned."""
        return self.go["step"]

    @step.setter
    def step(self, step: int) -> None:
        if not 0 <= step < len(self.tokens):
            raise ValueError(f"step {step} is outside the text; give 0 to {len(self.tokens) - 1}")
        self.go = {"step": int(step), "serial": self.go.get("serial", 0) + 1}

    def heard_step(self, step: int) -> None:
        """Take the step over from the browser, without telling it back: the reader may have moved on."""
        self.go["step"] = step


class RetentionMap(Stepped):
    """Draws any expiry, from a replay or from a live cache.

    `runs` names one run, or two to compare, each an expiry (..., tokens), as `fm.replay` and
    `cache.expiry` give it; all leading axes are heads. `tokens` are the texts of the tokens. Raises ValueError where
    they do not fit each other.
    """

    _esm = script(*VIEW, "entry_map")
    _css = style("fmlab")

    frame = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)

    def __init__(self, tokens: Sequence[str], runs: Mapping[str, Int[Tensor, "*heads tokens"]]):
        drawn = [Run.of(label, expiry) for label, expiry in runs.items()]
        check_runs(drawn, tokens)
        headers, data = encode(drawn)
        super().__init__(tokens=list(tokens), frame={"runs": headers}, data=data, go={"step": len(tokens) - 1})
        self.on_msg(lambda _, message, buffers: self.heard_step(message["step"]))

    def __repr__(self) -> str:
        return f"RetentionMap({', '.join(run['label'] for run in self.frame['runs'])}; {len(self.tokens)} tokens)"


def check_runs(runs: Sequence[Run], tokens: Sequence[str]) -> None:
    """Raise ValueError unless these are one or two runs over these tokens."""
    if not 1 <= len(runs) <= 2:
        raise ValueError(f"{len(runs)} runs; give one, or two to compare")
    for run in runs:
        if run.expiry.shape[1] != len(tokens):
            given = f"an expiry of {run.expiry.shape[1]} tokens for {len(tokens)} texts"
            raise ValueError(f"{run.label}: {given}; give one text a token")
