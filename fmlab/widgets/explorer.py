"""The Explorer: choose policies and a budget, see what they keep of a recorded text, and ask the live model."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import traitlets
from IPython import get_ipython
from jaxtyping import Int
from torch import Tensor

import fmlab as fm

from ..metrics import Received
from ..replays import Replays
from ..trace import Trace
from .about import QUESTION, TOUR_QUESTION, about, budget_grid, busy, failure, ready, tour, trace_code
from .ask import answer
from .assets import VIEW, script, style
from .choice import Choice, as_code
from .controls import alive, catalogue
from .map import Stepped
from .picture import still
from .table import Recall, as_text, recall_in_steps, table
from .takeaway import rows, view_page
from .wire import Run, encode
from .worker import Cancelled, Ticket, Worker

if TYPE_CHECKING:
    import pandas

PATIENCE_SECONDS = 0.1  # what takes longer goes on in the worker and shows that it is busy
OPENING_PATIENCE_SECONDS = 0.6
RESTING_SECONDS = 0.3


def explore(
    trace: Trace | None = None, lm: "fm.LanguageModel | None" = None, replays: Replays | None = None
) -> "Explorer":
    """Open the Explorer on a trace; without one, on the text that the lab ships, recorded from its default model.

    `lm` answers questions; without it the trace's model is loaded at the first question. `replays` brings what has been
    replayed on this trace before. Raises ValueError where the replays belong to another trace.
    """
    return Explorer(trace, lm, replays)


class Explorer(Stepped):
    """Policies, budget, map, text and figures of one recorded text, in a notebook.

    `show` sets what is on the screen, `choice` and `expiries` tell it; `to_html`, `to_dataframe`, `code` take it away.
    """

    _esm = script(*VIEW, "controls", "figures", "explorer", "entry_explorer")
    _css = style("fmlab")

    about = traitlets.Dict().tag(sync=True)
    catalogue = traitlets.List().tag(sync=True)
    asked = traitlets.Dict().tag(sync=True)
    acknowledged = traitlets.Dict().tag(sync=True)
    frame = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    figures = traitlets.Dict().tag(sync=True)
    code = traitlets.Unicode().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)
    answers = traitlets.Dict().tag(sync=True)

    _shell: Any = None  # close() is called on an Explorer, too, whose opening was refused
    _workers: tuple[Worker, ...] = ()

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
        self.trace, self.lm = trace, lm
        self.replays = Replays(trace) if replays is None else replays
        self._received: Received | None = None
        self._full_answers: dict[str, str] = {}
        self._shown: tuple[Choice, tuple[Tensor, ...]] | None = None
        self._lock = threading.RLock()  # the kernel's thread and the worker's both speak to the browser
        self._workers = self._worker, self._slow_worker = Worker(self._failed), Worker(self._failed)
        self._alive = alive()
        self._error: BaseException | None = None
        budgets = budget_grid(trace, self.replays)
        start = Choice(fm.policies.H2O(), min(budgets, key=lambda budget: abs(budget - len(trace) / 8)))
        self._wanted, self._sent, self._ack = start, start.sendable(), {}
        super().__init__(
            tokens=list(trace.tokens),
            go={"step": len(trace) - 1},
            about=about(trace, budgets, TOUR_QUESTION if self._shipped else QUESTION, lm is not None),
            catalogue=catalogue(),
            asked=self._sent,
            acknowledged=self._ack,
            status=ready(),
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
        return self._shown and self._shown[0]

    @property
    def expiries(self) -> tuple[Int[Tensor, "layers kv_heads tokens"], ...]:
        """The expiry of each policy shown; waits for the worker, and raises what it raised."""
        return self._settled()[1]

    def show(self, policy: fm.Policy | None = None, *, step: int | None = None, **changes: Any) -> "Explorer":
        """Change what is on the screen and return the Explorer.

        `policy`, `against` (a second policy or None), `budget`, `layer` and `head` (None: the mean), `prefill`, `mode`
        ("pair" or "difference"), `step`. Raises ValueError for what this trace cannot show.
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

    def wait(self) -> "Explorer":
        """Return once nothing is being computed."""
        for worker in self._workers:
            worker.join()
        return self

    def cancel(self) -> None:
        """Stop what is being computed."""
        with self._lock:
            if self._worker.cancel():
                self.status = self.status | {"text": "Stopping …", "share": None}

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

    def _replay(self, ticket: Ticket, choice: Choice) -> None:
        choice.check(self.trace)
        with self._lock:
            if self._sent == choice.sendable():  # nothing else has been asked for in the meantime
                self._wanted = choice
        start, told = time.perf_counter(), 0.0

        def progress(policy: fm.Policy) -> Callable[[int], None]:
            def heard(done: int) -> None:
                nonlocal told
                ticket.check()
                if (now := time.perf_counter()) - told > PATIENCE_SECONDS and now - start > 2 * PATIENCE_SECONDS:
                    told = now
                    total = len(self.trace)
                    self._tell(ticket, busy(f"Replaying {policy!r}: {done:,} of {total:,} tokens", done / total))

            return heard

        at_hand = all(self.replays.has(policy, choice.budget, choice.prefill) for policy in choice.policies)
        expiries = tuple(
            self.replays.expiry(policy, choice.budget, choice.prefill, progress(policy)) for policy in choice.policies
        )
        seconds = time.perf_counter() - start
        headers, data = encode(self._runs(choice, expiries))
        with self._lock, self.hold_sync():
            ticket.check()
            ticket.ended = True
            self._shown = choice, expiries
            self.frame, self.data = {"runs": headers}, data
            self._error = None
            self.code = self._code(choice)
            self._announce(ready("" if at_hand else f"Replayed in {seconds:.2f} s."))
        quick = self._recall() if self._received is not None and self._received.fast else None
        figures = table(self.trace, choice, expiries, quick)
        with self._lock:  # the picture does not wait for its figures
            self.figures = figures
        if quick is None:  # nor they for the one that may take seconds
            self._slow_worker.submit(lambda slow: self._recall_later(slow, choice, expiries), 0.0)

    def _recall_later(self, ticket: Ticket, choice: Choice, expiries: tuple[Tensor, ...]) -> None:
        if self._received is not None:  # a slider in motion: wait until it rests
            ticket.pause(RESTING_SECONDS)
        figures = table(self.trace, choice, expiries, self._recall(ticket.check, choice.layer))
        with self._lock:
            ticket.check()
            if self._shown is not None and self._shown[1] is expiries:
                self.figures = figures

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

    def _failed(self, ticket: Ticket, error: BaseException) -> None:
        with self._lock, self.hold_sync():
            ticket.ended = True
            self._wanted = self.choice or self._wanted
            if isinstance(error, Cancelled):
                self._sent = self.choice.sendable() if self.choice else self._sent
                self._announce(ready("Cancelled; the picture is the last one that was finished."))
            else:
                self._error = None if ticket.asking else error
                self._announce(failure(error))

    # the way to the browser and back

    def _submit(self, job: Callable[[Ticket], None], patience_seconds: float, asking: bool = False) -> None:
        ticket = self._worker.submit(job, patience_seconds, asking)
        with self._lock, self.hold_sync():
            if not ticket.ended:
                self._announce(busy("Working …", asking=asking))

    def _announce(self, status: dict) -> None:
        self.asked, self.acknowledged, self.status = self._sent, self._ack, status

    def _tell(self, ticket: Ticket, status: dict) -> None:
        with self._lock:
            ticket.check()
            self.status = status

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
            case "ask":
                self.ask(message["question"])

    def _after_cell(self, result: object) -> None:
        self.refresh()

    def close(self) -> None:
        """Stop the worker and leave the notebook."""
        if self._shell is not None:
            self._shell.events.unregister("post_run_cell", self._after_cell)
            self._shell = None
        for worker in self._workers:
            worker.close()
        super().close()

    # taking it away

    def to_dataframe(self) -> "pandas.DataFrame":
        """One row a policy, layer and head: budget, prefill and the figures, at the end of the text."""
        import pandas  # a third of a second that opening the Explorer need not wait for

        return pandas.DataFrame(rows(*self._settled(), self.trace, self._recall()))

    def to_html(self, path: str | Path) -> Path:
        """Write the present view, with map, text, figures and every budget at hand, as one file that opens offline."""
        choice, _ = self._settled()
        path = Path(path)
        path.write_text(view_page(choice, self.step, self.replays, self._recall()), encoding="utf-8")
        return path

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**options)
        if self._shown:
            data["text/plain"] = f"{self!r}\n{as_text(self.figures)}"
            data["image/png"] = still(self._runs(*self._shown))
        return data, metadata

    # helpers

    def _settled(self) -> tuple[Choice, tuple[Tensor, ...]]:
        self.wait()
        if self._error is not None:
            raise self._error
        if self._shown is None:
            raise ValueError("nothing is shown yet, since the first replay was cancelled; use show()")
        return self._shown

    def _recall(self, check: Callable[[], None] = lambda: None, layer: int | None = None) -> Recall:
        if self._received is None:
            self._received = Received(self.trace)
        return recall_in_steps(self._received, check, layer)

    def _runs(self, choice: Choice, expiries: tuple[Tensor, ...]) -> list[Run]:
        pairs = zip(choice.policies, expiries, strict=True)
        return [Run.of(f"{p!r}, budget {choice.budget}", choice.heads_of(self.trace, expiry)) for p, expiry in pairs]

    def _code(self, choice: Choice) -> str:
        names = self._shell.user_ns if self._shell is not None else {}
        return as_code(choice, self.step, trace_code(self.trace, self._shipped, names))
