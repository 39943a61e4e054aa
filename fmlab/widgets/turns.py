"""Turns: which turns of a conversation survive under two memories and a budget, and what a model then answers."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import anywidget
import traitlets

import fmlab as fm

from .about import busy, failure, ready
from .assets import script, style
from .selections import STOPS, Kept, Memories, Selections
from .worker import Ticket, Worker

SIDES = "ab"
TOLD_EVERY_SECONDS = 0.3
SLOW_SECONDS = 0.5  # a memory that takes longer selects only where the slider stops
START = STOPS // 8


@dataclass(frozen=True)
class Shown:
    """What is asked for: two memories by their labels, the stop of the budget slider, a question ("": none), and whether
    the memories may read it."""

    a: str
    b: str
    stop: int
    question: str
    aware: bool

    @property
    def query(self) -> str | None:
        """What the memories are given to read."""
        return self.question if self.aware and self.question else None


class Turns(anywidget.AnyWidget):
    """The turns that two memories keep and drop, side by side, as the budget moves.

    `spans` are those of `fm.conversation.spans`; `memories` label functions from a budget to a memory, or memories of
    which the budget is changed. The budget is a share of the spans' tokens, in 32 equal steps, and what every prompt has
    `beside` them. `questions` are those of a dialogue (`fm.conversation.Question`), whose evidence is marked; a reader may
    type others. With `lm` it is asked on demand, by a prompt of what is kept and the question; the question comes on top
    of the budget.
    Raises ValueError for no spans or no memories.
    """

    _esm = script("dom", "controls", "turns", "entry_turns")
    _css = style("fmlab", "turns")

    about = traitlets.Dict().tag(sync=True)
    choice = traitlets.Dict().tag(sync=True)
    kept_a = traitlets.Dict().tag(sync=True)
    kept_b = traitlets.Dict().tag(sync=True)
    answers = traitlets.Dict().tag(sync=True)
    status = traitlets.Dict().tag(sync=True)

    _workers: dict[str, Worker] = {}  # close() is called on a widget, too, whose opening was refused

    def __init__(
        self,
        spans: Sequence["fm.conversation.Span"],
        memories: Memories,
        questions: Sequence["fm.conversation.Question"] = (),
        lm: "fm.LanguageModel | None" = None,
        max_new_tokens: int = 32,
    ):
        self.selections, self.lm, self.max_new_tokens = Selections(spans, memories), lm, max_new_tokens
        self.questions = {question.question: question for question in questions}
        self._errors: dict[str, BaseException] = {}
        self._lock = threading.RLock()  # the kernel's thread and the workers' all speak to the browser
        self._workers = {
            "a": Worker(lambda _, error: self._refused("a", error)),
            "b": Worker(lambda _, error: self._refused("b", error)),
            "answer": Worker(lambda _, error: self._unanswered(error)),
        }
        labels = list(memories)
        first = Shown(labels[0], labels[min(1, len(labels) - 1)], START, next(iter(self.questions), ""), True)
        super().__init__(about=self._about(), choice=vars(first), answers={}, status=ready())
        self.on_msg(self._heard)
        self._choose(first)

    def __repr__(self) -> str:
        shown = Shown(**self.choice)
        budget = self.selections.budget(shown.stop)
        return f"Turns({shown.a} | {shown.b}; budget {budget} of {self.selections.total} tokens)"

    # what is on the screen

    def show(self, **changes: Any) -> "Turns":
        """Change what is on the screen and return the widget: `a`, `b` (labels), `stop` (of 32), `question` (its text),
        `aware` (whether the memories may read it). Raises ValueError for a label or a stop that there is not."""
        shown = replace(Shown(**self.choice), **changes)
        self._check(shown)
        with self._lock:
            self.choice = vars(shown)
        self._choose(shown)
        return self

    @property
    def kept(self) -> tuple[list["fm.conversation.Span"], list["fm.conversation.Span"]]:
        """What A and B keep; waits for them, and raises what they raised."""
        self.wait()
        shown, found = Shown(**self.choice), []
        for side in SIDES:
            if side in self._errors:
                raise self._errors[side]
            found.append(list(self.selections.at(getattr(shown, side), shown.query, shown.stop).spans))
        return found[0], found[1]

    def ask(self) -> "Turns":
        """Ask the model the question with what A and what B keeps; the replies appear in the widget and in `answers`.

        Raises ValueError where there is no model or no question.
        """
        shown = Shown(**self.choice)
        if self.lm is None or not shown.question:
            raise ValueError("there is nobody to ask or nothing: give Turns(..., lm=lm) and show(question=...)")
        with self._lock:
            self.status = busy(f"{self.lm.name} reads what A and B keep, and answers …", asking=True)
        self._workers["answer"].submit(lambda ticket: self._answer(ticket, shown), 0.0, asking=True)
        return self

    def wait(self) -> "Turns":
        """Return once nothing is being computed."""
        for worker in self._workers.values():
            worker.join()
        return self

    def close(self) -> None:
        """Stop the workers and leave the notebook."""
        for worker in self._workers.values():
            worker.close()
        super().close()

    # what the workers do

    def _choose(self, shown: Shown) -> None:
        for side in SIDES:
            self._errors.pop(side, None)
            self._workers[side].submit(lambda ticket, side=side: self._select(ticket, side, shown), 0.0)

    def _select(self, ticket: Ticket, side: str, shown: Shown) -> None:
        """The stop that is on the screen, then the others from there outwards, so that the slider need not wait."""
        label, told = getattr(shown, side), 0.0
        for number, stop in enumerate(sorted(range(1, STOPS + 1), key=lambda stop: abs(stop - shown.stop))):
            start = time.perf_counter()
            self.selections.at(label, shown.query, stop)
            ticket.check()
            now = time.perf_counter()
            if number == 0 or now - told > TOLD_EVERY_SECONDS:
                self._tell(side, shown)
                told = now
            if number > 0 and now - start > SLOW_SECONDS:  # the first one may have had to read the conversation
                break
        self._tell(side, shown)

    def _tell(self, side: str, shown: Shown, error: dict | None = None) -> None:
        label = getattr(shown, side)
        known = self.selections.known(label, shown.query)
        stops = {str(stop): self._sent(kept) for stop, kept in known.items()}
        with self._lock:
            setattr(self, f"kept_{side}", {"label": label, "query": shown.query, "stops": stops, "error": error})

    def _sent(self, kept: Kept) -> dict:
        spans, there = self.selections.spans, set(kept.spans)
        own = set(spans)
        return {
            "places": [place for place, span in enumerate(spans) if span in there],
            "turns": sorted(fm.conversation.kept_turns(kept.spans, spans)),
            "added": [[span.role, span.text] for span in kept.spans if span not in own],  # a summary
            "tokens": kept.tokens,
            "budget": kept.budget,
            "aware": kept.query_aware,
        }

    def _refused(self, side: str, error: BaseException) -> None:
        shown = Shown(**self.choice)
        if shown.stop in self.selections.known(getattr(shown, side), shown.query):
            return  # another stop than the one on the screen; who moves there meets it
        self._errors[side] = error
        self._tell(side, shown, failure(error))

    def _answer(self, ticket: Ticket, shown: Shown) -> None:
        rows, prompts = [], []
        for side in SIDES:
            label = getattr(shown, side)
            kept = self.selections.at(label, shown.query, shown.stop)
            prompts.append(self._prompt(kept, shown.question))
            rows.append({"side": side, "label": label, "budget": kept.budget, "prompt": len(prompts[-1])})
        with self.selections.busy:
            said = fm.conversation.replies(self.lm, prompts, self.max_new_tokens)
        ticket.check()
        asked = self.questions.get(shown.question)
        for row, reply in zip(rows, said, strict=True):
            row["text"] = reply
            row["right"] = None if asked is None else fm.conversation.answered(reply, asked)
        expected = None if asked is None else asked.answer or "none: the conversation does not say"
        with self._lock, self.hold_sync():
            self.answers = {"question": shown.question, "expected": expected, "rows": rows}
            self.status = ready()

    def _prompt(self, kept: Kept, question: str) -> list[int]:
        tokenizer = self.lm.tokenizer
        asked = fm.conversation.spans([{"role": "user", "content": question}], tokenizer)[0]
        ids = fm.conversation.prompt([*kept.spans, asked], tokenizer)
        room = self.lm.model.config.max_position_embeddings - self.max_new_tokens
        if len(ids) > room:
            raise ValueError(f"a prompt of {len(ids)} tokens, and {self.lm.name} has room for {room}; lower the budget")
        return ids

    def _unanswered(self, error: BaseException) -> None:
        with self._lock:
            self.status = failure(error)

    # the way to the browser and back

    def _about(self) -> dict:
        return {
            "turns": [[span.role, span.text, list(span.sources)] for span in self.selections.spans],
            "memories": list(self.selections.memories),
            "questions": [
                {"text": text, "evidence": list(question.evidence), "kind": question.kind}
                for text, question in self.questions.items()
            ],
            "budgets": [self.selections.budget(stop) for stop in range(1, STOPS + 1)],
            "total": self.selections.total,
            "model": self.lm and self.lm.name,
        }

    def _heard(self, _: "Turns", message: dict, buffers: list) -> None:
        if message["kind"] == "choose":
            self.show(**message["choice"])
        elif message["kind"] == "ask":
            self.ask()

    def _check(self, shown: Shown) -> None:
        for label in (shown.a, shown.b):
            if label not in self.selections.memories:
                raise ValueError(f"no memory {label!r}; there are {', '.join(self.selections.memories)}")
        if not 1 <= shown.stop <= STOPS:
            raise ValueError(f"stop={shown.stop}; give 1 to {STOPS}: {STOPS} is all of the tokens")
