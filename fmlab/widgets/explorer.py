"""The Explorer: choose policies and a budget, see what they keep of a recorded text, and ask the live model."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import traitlets
from IPython import get_ipython
from jaxtyping import Int
from torch import Tensor

import fmlab as fm

from ..replays import Replays
from ..trace import Trace
from .about import (
    QUESTION,
    TOUR_QUESTION,
    about,
    budget_grid,
    busy,
    ready,
    tour,
    trace_code,
)  # fmt: skip
from .ask import answer
from .assets import VIEW, script, style
from .choice import Choice, as_code
from .controls import alive, catalogue
from .desk import PATIENCE_SECONDS
from .picture import still
from .studio import Picture, Studio
from .table import as_text
from .takeaway import rows, view_page
from .worker import Ticket

if TYPE_CHECKING:
    import pandas

OPENING_PATIENCE_SECONDS = 0.6


def explore(
    trace: Trace | None = None, lm: "fm.LanguageModel | None" = None, replays: Replays | None = None
) -> "Explorer":
    """Open the Explorer on a trace; without one, on the text that the lab ships, recorded from its default model.

    `lm` answers questions; without it the trace's model is loaded at the first question. `replays` brings what has been
    replayed on this trace before. Raises ValueError where the replays belong to another trace.
    """
    return Explorer(trace, lm, replays)


class Explorer(Studio):
    """Policies, budget, map, text and figures of one recorded text, in a notebook.

    `show` sets what is on the screen, `choice`, `expiries` and `optimum` tell it; `explain` says why a token was evicted;
    `to_html`, `to_dataframe`, `code` take it away.
    """

    _esm = script(*VIEW, "controls", "figures", "heads", "reasons", "explorer", "entry_explorer")
    _css = style("fmlab", "insight")

    about = traitlets.Dict().tag(sync=True)
    catalogue = traitlets.List().tag(sync=True)
    answers = traitlets.Dict().tag(sync=True)

    _shell: Any = None  # close() is called on an Explorer, too, whose opening was refused

    def __init__(
        self, trace: Trace | None = None, lm: "fm.LanguageModel | None" = None, replays: Replays | None = None
    ):
        self._shipped = trace is None and replays is None
        if trace is None and replays is not None:
            trace = replays.trace
        elif trace is None:
            trace, replays = tour()
        if replays is not None and replays.trace is not trace:
            raise ValueError(f"these replays are of another trace, {replays.trace!r}; give Replays(trace) of {trace!r}")
        self.lm, self._full_answers, self._alive = lm, {}, alive()
        replays = Replays(trace) if replays is None else replays
        budgets = budget_grid(trace, replays)
        start = Choice(fm.policies.H2O(), min(budgets, key=lambda budget: abs(budget - len(trace) / 8)))
        super().__init__(
            trace,
            replays,
            start,
            about=about(trace, budgets, TOUR_QUESTION if self._shipped else QUESTION, lm is not None),
            catalogue=catalogue(),
            answers={"question": "", "rows": []},
        )
        self.on_msg(self._heard)
        self._shell = get_ipython()
        if self._shell is not None:
            self._shell.events.register("post_run_cell", self._after_cell)
        self._submit(lambda ticket: self._replay(ticket, start), OPENING_PATIENCE_SECONDS)

    def __repr__(self) -> str:
        shown = self.choice and f"{', '.join(map(repr, self.choice.policies))}, budget={self.choice.budget}, "
        return f"Explorer({shown or ''}{len(self.trace)} tokens of {self.trace.model})"

    # what is on the screen

    @property
    def choice(self) -> Choice | None:
        """What the picture shows; None until the first picture is ready."""
        return self._shown and self._shown.choice

    @property
    def expiries(self) -> tuple[Int[Tensor, "layers kv_heads tokens"], ...]:
        """The expiry of each policy shown; waits for the worker, and raises what it raised."""
        return self._settled().expiries

    @property
    def optimum(self) -> Int[Tensor, "layers kv_heads tokens"] | None:
        """The expiry of the exact optimum at this budget, where it is known; `show(oracle=True)` computes it."""
        return self._settled().optimum

    def show(self, policy: fm.Policy | None = None, *, step: int | None = None, **changes: Any) -> "Explorer":
        """Change what is on the screen and return the Explorer.

        `policy`, `against` (a second policy or None), `budget`, `layer` and `head` (None: the mean), `prefill`, `mode`
        ("pair" or "difference"), `oracle` (whether the exact optimum is shown, too), `step`. Raises ValueError for what
        this trace cannot show.
        """
        if policy is not None:
            changes["policy"] = policy
        choice = self._wanted.change(**changes).check(self.trace)
        if step is not None:
            self.step = step
        with self._lock:
            self._wanted, self._sent = choice, choice.sendable()
        self._submit(lambda ticket: self._replay(ticket, choice), PATIENCE_SECONDS)
        return self

    def explain(self, token: int | None) -> "Explorer":
        """Show why the token at this position was evicted under each policy shown; None clears it."""
        if token is not None and not 0 <= token < len(self.trace):
            raise ValueError(f"token {token} is outside the text; give 0 to {len(self.trace) - 1}")
        with self._lock:
            self._token, picture = token, self._shown
            if token is None or picture is None:
                self.reasons = {"token": None}
        self._explainer.submit(lambda ticket: self._reason(ticket, picture), PATIENCE_SECONDS)
        return self

    def refresh(self) -> None:
        """Look again which policies are alive; a shown policy whose class was defined anew is replayed anew."""
        with self._lock:
            before, self._alive = self._alive, alive()
            self.catalogue = catalogue()
            sent = self._sent
        keys = [sent[side]["key"] for side in "ab" if sent[side]]
        if any(before.get(key) is not self._alive.get(key) for key in keys):
            self._submit(lambda ticket: self._replay(ticket, Choice.read(sent)), PATIENCE_SECONDS)

    def ask(self, question: str) -> None:
        """Ask the live model under the policies shown and with the full cache; the answers grow in the widget."""
        choice = self.choice
        with self._lock:  # a replay that is under way gives way: what is asked about is what is shown
            self._sent = self._sent if choice is None else choice.sendable()
        self._submit(lambda ticket: self._answer(ticket, choice, question), 0.0, asking=True)

    # what the worker does

    def _answer(self, ticket: Ticket, choice: Choice | None, question: str) -> None:
        if choice is None:
            raise ValueError("no run is shown yet; wait for the first picture, then ask")
        if self.lm is None:
            self._tell(ticket, busy(f"Loading {self.trace.model} …", asking=True))
            self.lm = fm.load(self.trace.model)
        context = "".join(self.trace.tokens)
        lines = [
            {"side": side, "label": f"{policy!r}, budget {choice.budget} of {len(self.trace)} tokens", "text": ""}
            for side, policy in zip("ab", choice.policies, strict=False)
        ]
        lines.append({"side": None, "label": "full cache", "text": self._full_answers.get(question, "")})
        for line, policy in zip(lines, [*choice.policies, None], strict=True):
            if line["text"]:
                continue
            self._tell(ticket, busy(f"{self.trace.model} reads the text and answers: {line['label']} …", asking=True))
            for words in answer(self.lm, context, question, policy, choice.budget, ticket.check):
                line["text"] = words
                with self._lock:
                    ticket.check()
                    self.answers = {"question": question, "rows": [dict(line) for line in lines]}
        self._full_answers[question] = lines[-1]["text"]
        with self._lock, self.hold_sync():
            ticket.ended = True
            self.answers = {"question": question, "rows": lines}
            self.status = ready()

    # the way to the browser and back

    def _heard(self, _: "Explorer", message: dict, buffers: list) -> None:
        match message["kind"]:
            case "choose":
                sent = message["choice"]
                with self._lock:
                    self._sent, self._ack = sent, {"view": message["view"], "seq": message["seq"]}
                self._submit(lambda ticket: self._replay(ticket, Choice.read(sent)), PATIENCE_SECONDS)
            case "step":
                self.heard_step(message["step"])
                with self._lock:
                    self.code = self._code(self.choice) if self.choice else ""
            case "refresh":
                self.refresh()
            case "cancel":
                self.cancel()
            case "explain":
                self.explain(message["token"])
            case "ask":
                self.ask(message["question"])

    def _after_cell(self, result: object) -> None:
        self.refresh()

    def close(self) -> None:
        """Stop the workers and leave the notebook."""
        if self._shell is not None:
            self._shell.events.unregister("post_run_cell", self._after_cell)
            self._shell = None
        super().close()

    # taking it away

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row a run, layer and head: budget, prefill and the figures, at the end of the text.

        `regret` is empty where the optimum of this budget is not known; `attrs["regret"]` of the frame says so.
        """
        import pandas  # a third of a second that opening the Explorer need not wait for

        picture = self._settled()
        frame = pandas.DataFrame(rows(picture.choice, self.trace, *self._figured(picture, self._recall())))
        if picture.optimum is None:
            frame.attrs["regret"] = "regret is empty: the optimum is not known; show(oracle=True) computes it"
        return frame

    def to_html(self, path: str | Path) -> Path:
        """Write the present view, with map, text, figures and every budget at hand, as one file that opens offline."""
        choice = self._settled().choice
        path = Path(path)
        path.write_text(view_page(choice, self.step, self.replays, self._recall()), encoding="utf-8")
        return path

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**options)
        if self._shown:
            data["text/plain"] = f"{self!r}\n{as_text(self.figures)}"
            data["image/png"] = still(self._runs(self._shown), sides="".join(side for side, *_ in self._shown.sides))
        return data, metadata

    # helpers

    def _settled(self) -> Picture:
        self.wait()
        if self._error is not None:
            raise self._error
        if self._shown is None:
            raise ValueError("nothing is shown yet, since the first replay was cancelled; use show()")
        return self._shown

    def _code(self, choice: Choice) -> str:
        names = self._shell.user_ns if self._shell is not None else {}
        return as_code(choice, self.step, trace_code(self.trace, self._shipped, names))
