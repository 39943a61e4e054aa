"""A chat whose prompts are what a memory selects; a turn happens as a whole or not at all."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

from transformers import PreTrainedTokenizerBase

from ..core import BudgetError
from ..language import LanguageModel
from . import checkpoint
from .carry import Carried
from .memory import check_selects
from .span import Span, opening, prompt
from .state import Cost, State, Stats, Stretch
from .template import cost_of_turns, tokens_of


@runtime_checkable
class Voice(Protocol):
    """What can answer in a chat: `Carried` for a local model, `Hosted` for a server."""

    name: str
    source: str
    tokenizer: PreTrainedTokenizerBase

    def answer(self, selected: Sequence[Span], ids: list[int], max_new_tokens: int) -> Generator[str, None, Cost]:
        """The pieces of the answer to a prompt, given as its spans and as its ids, and at the end what it cost."""


class ChatSession:
    """A conversation with a model, of which each prompt holds what the memory keeps; greedy answers.

    `lm` is a LanguageModel, whose KV cache is carried from turn to turn, or `Hosted`. `memory` is anything with the
    `select` of a Memory. `system` is in every prompt, and so is the message to be answered: to the memory it is not a
    span but part of what every prompt of this turn costs, and it is the query. So prompt and budget are of one measure,
    and what the memory chooses from are the earlier messages alone.

    A turn that fails, is interrupted, or whose stream is not read to its end has not taken place: messages, figures and
    `kept` are as before. Only work already done stays done, and may be reused (and counted as such) later. The session is
    not for several threads at once.
    """

    def __init__(self, lm: LanguageModel | Voice, memory: Any, system: str | None = None, max_new_tokens: int = 256):
        check_selects("memory", memory)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens!r:.40}; give a number of tokens, 1 or more")
        self.memory, self.max_new_tokens = memory, max_new_tokens
        self._lm, self._system = lm, system
        self._voice = Carried(lm) if isinstance(lm, LanguageModel) else lm
        self._opening = opening(lm.tokenizer, system)
        self._state = State()
        self._turn: object = None

    @property
    def lm(self) -> LanguageModel | Voice:
        """The model that answers."""
        return self._lm

    @property
    def system(self) -> str | None:
        """The system prompt."""
        return self._system

    @property
    def messages(self) -> list[dict[str, str]]:
        """All that was ever said, kept or not; the system prompt is `system`."""
        return [{"role": span.role, "content": span.text} for span in self._state.spans]

    @property
    def stats(self) -> Stats:
        """The tokens of the last turn and of all."""
        return self._state.stats

    @property
    def kept(self) -> tuple[Span, ...]:
        """The last prompt as spans: its opening (without a text where there is no system prompt), what the memory
        selected, the message that was answered. Their `sources` are places in `messages`."""
        return self._state.kept

    @property
    def stretches(self) -> tuple[Stretch, ...]:
        """Which messages were said with which model and memory, for a session may go on with others."""
        return self._state.stretches

    def send(self, text: str) -> str:
        """The answer to a message. Errors as in `stream`; the session is then as it was."""
        return "".join(self.stream(text))

    def stream(self, text: str) -> Iterator[str]:
        """The pieces of the answer to a message, whole characters each.

        The turn takes place when the last piece has been read; a stream left before has not happened. A later turn begun
        meanwhile wins: this stream then raises RuntimeError.

        Raises ValueError for an empty message; BudgetError where it does not fit the budget, the prompt not the model's
        context, or the memory breaks its own budget; and whatever the memory or the model raises.
        """
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"text={text!r:.40}; a message must say something")
        question = self._span("user", text, len(self._state.spans))
        kept = self._select(question)
        ids = prompt(kept, self.lm.tokenizer)
        self._check(len(ids), "the prompt of what it selected")
        pieces = self._voice.answer(kept, ids, self.max_new_tokens)
        self._turn = turn = object()
        return self._answer(turn, question, kept, pieces)

    def _answer(
        self, turn: object, question: Span, kept: tuple[Span, ...], pieces: Generator[str, None, Cost]
    ) -> Iterator[str]:
        said: list[str] = []
        with closing(pieces):
            while True:
                if self._turn is not turn:
                    raise RuntimeError("a later turn of this session has begun; this stream cannot go on")
                try:
                    said.append(next(pieces))
                except StopIteration as end:
                    cost = end.value
                    break
                yield said[-1]
        answer = self._span("assistant", "".join(said), len(self._state.spans) + 1)
        said_with = Stretch(2, self.lm.name, self.lm.source, repr(self.memory))
        self._state = self._state.after(question, answer, kept, cost, said_with)

    def _select(self, question: Span) -> tuple[Span, ...]:
        """The spans of the prompt that asks this."""
        certain = self._opening.tokens + question.tokens + cost_of_turns(self.lm.tokenizer)
        self._check(certain, f"the new message of {question.tokens} tokens and the opening of {self._opening.tokens}")
        # One pinned span stands for all that is in this prompt for certain, so every memory leaves room for it.
        pinned = replace(self._opening, tokens=certain)
        selected = self.memory.select([pinned, *self._state.spans], query=question.text)
        if pinned not in selected:
            raise ValueError(f"{type(self.memory).__name__} dropped the system prompt; a memory must keep that span")
        return (*(self._opening if span == pinned else span for span in selected), question)

    def _check(self, tokens: int, what: str) -> None:
        budget = getattr(self.memory, "budget", None)
        if budget is not None and tokens > budget:
            raise BudgetError(
                f"{what}: {tokens} tokens > budget {budget} of {type(self.memory).__name__}; shorten the message or give "
                f"the memory a budget of {tokens} or more"
            )

    def _span(self, role: str, text: str, turn: int) -> Span:
        return Span(text, tokens_of(role, text, self.lm.tokenizer), role, (turn,))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to a file, as JSON: whole or not at all, in place of what was there.

        It holds the messages, the last prompt, the figures, and with which model and memory what was said; neither the
        model, nor the memory, nor the KV cache.
        """
        checkpoint.write(path, self._state, self.system, self.max_new_tokens)

    @classmethod
    def load(cls, path: str | os.PathLike[str], lm: LanguageModel | Voice, memory: Any) -> "ChatSession":
        """Go on with a conversation that was saved: what it says is what it would have said without. Its KV cache is empty,
        so its next prompt is computed as a whole.

        Model and memory may be others than before: spans are counted anew, and `stretches` tell what was said with which.
        Raises CheckpointError for a file that is cut short, foreign, or of a version that this fmlab does not read.
        """
        saved = checkpoint.read(path)
        session = cls(lm, memory, saved.system, saved.max_new_tokens)
        spans = (session._span(message["role"], message["content"], i) for i, message in enumerate(saved.messages))
        session._state = State(tuple(spans), saved.kept, saved.stats, saved.stretches)
        return session

    def __repr__(self) -> str:
        return f"ChatSession({self.lm.name!r}, {self.memory!r}, {len(self._state.spans)} messages)"
