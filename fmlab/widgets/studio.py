"""How the Explorer comes to its picture, to what follows it (figures, the optimum), and to why a token went."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import traitlets
from jaxtyping import Int
from torch import Tensor

import fmlab as fm

from ..metrics import Received
from ..replays import OPTIMUM, Recall, Replays
from ..trace import Trace
from ..why import Why, why
from .about import busy, failure, ready, solving
from .choice import Choice
from .desk import PATIENCE_SECONDS, Desk
from .reasons import COLUMNS, of_optimum, reason
from .table import Shown, head_table, recall_in_steps, table
from .wire import Run, encode
from .worker import Cancelled, Ticket

RESTING_SECONDS = 0.3


@dataclass(frozen=True, eq=False)
class Picture:
    """What is drawn: the expiry of each policy of a choice, and that of the optimum, or None where it is not known."""

    choice: Choice
    expiries: tuple[Int[Tensor, "layers kv_heads tokens"], ...]
    optimum: Int[Tensor, "layers kv_heads tokens"] | None

    @property
    def sides(self) -> list[tuple[str, str, fm.Policy | None, Tensor]]:
        """Of each run drawn its side, label, policy (None: the optimum) and expiry."""
        policies = self.choice.policies
        drawn = [(s, repr(p), p, e) for s, p, e in zip("ab", policies, self.expiries, strict=False)]
        best = self.choice.oracle and self.optimum is not None
        return drawn + [("o", OPTIMUM, None, self.optimum)] * best


class Studio(Desk):
    """What the Explorer's workers do."""

    frame = traitlets.Dict().tag(sync=True)
    data = traitlets.Bytes().tag(sync=True)
    figures = traitlets.Dict().tag(sync=True)
    heads = traitlets.Dict().tag(sync=True)
    reasons = traitlets.Dict().tag(sync=True)
    code = traitlets.Unicode().tag(sync=True)

    def __init__(self, trace: Trace, replays: Replays, start: Choice, **traits):
        self.trace, self.replays, self._wanted = trace, replays, start
        self._received: Received | None = None
        self._shown: Picture | None = None
        self._token: int | None = None  # the one that is to be explained
        self._whys: dict[tuple, Why] = {}
        self._error: BaseException | None = None
        super().__init__(start.sendable(), tokens=list(trace.tokens), go={"step": len(trace) - 1}, **traits)

    def _code(self, choice: Choice) -> str:
        raise NotImplementedError

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
        known = self.replays.has_oracle(choice.budget, choice.prefill)
        picture = Picture(choice, expiries, self.replays.oracle(choice.budget, choice.prefill) if known else None)
        self._draw(ticket, picture, "" if at_hand else f"Replayed in {seconds:.2f} s.")
        quick = self._received is not None and self._received.fast  # the picture does not wait for its figures,
        self._measure(ticket, picture, self._received.mass_recall if quick else None)  # nor they for slow ones
        self._follower.submit(lambda later: self._follow(later, picture), 0.0)
        self._explainer.submit(lambda later: self._reason(later, picture), 0.0)

    def _draw(self, ticket: Ticket, picture: Picture, words: str) -> None:
        choice = picture.choice
        headers, data = encode(self._runs(picture))
        policies = len(choice.policies)
        with self._lock, self.hold_sync():
            ticket.check()
            ticket.ended = True
            self._shown = picture
            best = headers[policies] if len(headers) > policies else None
            self.frame = {"runs": headers[:policies], "optimum": best, "solving": choice.oracle and best is None}
            self.data = data
            self._error = None
            self.code = self._code(choice)
            self._announce(ready(words))

    def _measure(self, ticket: Ticket, picture: Picture, measure: Recall | None) -> None:
        """Show the figures of a picture, as long as it is on the screen; without `measure` what is known without it."""
        runs, best = self._figured(picture, measure)
        figures, heads = table(self.trace, picture.choice, runs, best), head_table(self.trace, runs, best)
        with self._lock, self.hold_sync():
            ticket.check()
            if self._shown is picture:
                self.figures, self.heads = figures, heads

    def _figured(self, picture: Picture, measure: Recall | None) -> tuple[list[Shown], Tensor | None]:
        """The runs of a picture with their mass recall, and that of the optimum, if it is known."""
        choice, best = picture.choice, None
        runs = [Shown(side, label, expiry) for side, label, _, expiry in picture.sides]
        if measure is not None:
            at = choice.budget, choice.prefill
            policies = [policy for _, _, policy, _ in picture.sides]
            recalls = [self.replays.mass_recall(policy, *at, measure) for policy in policies]
            runs = [replace(run, recall=recall) for run, recall in zip(runs, recalls, strict=True)]
            best = None if picture.optimum is None else self.replays.mass_recall(None, *at, measure)
        return runs, best

    def _follow(self, ticket: Ticket, picture: Picture) -> None:
        """What follows a picture: its figures, where they take seconds, and the optimum, where it is to be computed."""
        choice = picture.choice
        if self._received is None or not self._received.fast:
            if self._received is not None:  # a slider in motion: wait until it rests
                ticket.pause(RESTING_SECONDS)
            self._measure(ticket, picture, self._recall(ticket.check))
        if not choice.oracle or picture.optimum is not None:
            return
        ticket.pause(RESTING_SECONDS)
        start, heads = time.perf_counter(), len(self.trace.layers) * self.trace.kv_heads

        def progress(done: int) -> None:
            words = f"Computing the optimum at budget {choice.budget}: {done} of {heads} heads"
            self._tell_aside(ticket, solving(words, done / heads))

        progress(0)
        best = self.replays.oracle(choice.budget, choice.prefill, progress)
        seconds = time.perf_counter() - start
        with self._lock:
            ticket.check()
            if self._shown is not picture:
                return
            status = self.status
            picture = replace(picture, optimum=best)
            self._draw(ticket, picture, f"The optimum was found and proved in {seconds:.1f} s.")
            if status["state"] != "solving":  # the reader is being told of something else
                self.status = status
        self._measure(ticket, picture, self._recall(ticket.check))
        self._explainer.submit(lambda later: self._reason(later, picture), 0.0)

    def _reason(self, ticket: Ticket, picture: Picture | None) -> None:
        """Why the token in hand was evicted under each policy of a picture."""
        token = self._token
        if token is None or picture is None:
            return
        choice, about = picture.choice, {"token": token, "columns": list(COLUMNS)}
        rows = []
        for side, label, policy, expiry in picture.sides:
            if policy is None:
                rows.append(of_optimum(self.trace, choice, expiry, token))
                continue

            def progress(done: int, label: str = label) -> None:
                words = f"Replaying {label}: {done:,} of {len(self.trace):,} tokens"
                with self._lock:
                    ticket.check()
                    self.reasons = about | {"rows": [], "busy": words}

            key = (type(policy), repr(policy), choice.budget, choice.prefill, token)
            if key not in self._whys:
                self._whys[key] = why(self.trace, policy, choice.budget, token, choice.prefill, progress)
            rows.append(reason(self.trace, choice, side, label, self._whys[key]))
        with self._lock:
            ticket.check()
            self.reasons = about | {"rows": rows, "busy": ""}

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

    def _follower_failed(self, ticket: Ticket, error: BaseException) -> None:
        if not isinstance(error, Cancelled):  # who cancelled has told it
            with self._lock:
                self._error = error
                self.status = failure(error)

    def _explainer_failed(self, ticket: Ticket, error: BaseException) -> None:
        with self._lock:
            self.reasons = {
                "token": self._token,
                "rows": [],
                "busy": "",
                "error": "" if isinstance(error, Cancelled) else str(error),
            }

    def _given_up(self) -> None:
        with self._lock, self.hold_sync():
            picture = self._shown = replace(self._shown, choice=self._shown.choice.change(oracle=False))
            self._wanted, self._sent = picture.choice, picture.choice.sendable()
            self.frame = self.frame | {"optimum": None, "solving": False}
            self.code = self._code(picture.choice)
            self._announce(ready("Cancelled; the optimum at this budget is not known."))

    def _recall(self, check: Callable[[], None] = lambda: None) -> Recall:
        if self._received is None:
            self._received = Received(self.trace)
        return recall_in_steps(self._received, check)

    def _runs(self, picture: Picture) -> list[Run]:
        budget = picture.choice.budget
        return [
            Run.of(f"{label}, budget {budget}", picture.choice.heads_of(self.trace, expiry))
            for _, label, _, expiry in picture.sides
        ]
