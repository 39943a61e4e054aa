"""A conversation as spans, each with what it costs in the prompt, and the prompt that spans make."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any

from transformers import PreTrainedTokenizerBase

from .template import SYSTEM, Message, cost_of_turns, ids_of, in_turns, tokens_of


@dataclass(frozen=True)
class Span:
    """A piece of a conversation: what it says, what it costs, who said it, and in which turns.

    `tokens` is what the prompt grows by when the span is in it, the marks of the chat template around it included;
    `sources` are the turns (places in the list of messages) that it stands for, several for a summary. A span whose role
    is "system" is pinned by every memory.
    """

    text: str
    tokens: int
    role: str
    sources: tuple[int, ...]
    beside: int = field(default=0, compare=False, repr=False)
    """Tokens that the prompt has besides its spans, whichever are kept: how it begins where no system message says it.
    Memories leave room for the greatest of their spans' once."""

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not isinstance(self.role, str) or not self.role:
            raise TypeError(
                f"text={self.text!r:.40}, role={self.role!r:.40}; a span has a text and the role of who said it"
            )
        if isinstance(self.tokens, bool) or not hasattr(self.tokens, "__index__") or self.tokens < 0:
            raise ValueError(
                f"tokens={self.tokens!r:.40} of the span {self.text!r:.40}; give its number of tokens, 0 or more"
            )
        if not isinstance(self.sources, tuple) or not all(hasattr(turn, "__index__") for turn in self.sources):
            raise TypeError(
                f"sources={self.sources!r:.40} of the span {self.text!r:.40}; give a tuple of turns, such as (3,)"
            )
        object.__setattr__(self, "tokens", index(self.tokens))  # NumPy's integers too
        object.__setattr__(self, "sources", tuple(map(index, self.sources)))


def spans(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[Span]:
    """One span a message, in order: what each costs in the tokenizer's chat template, or as a line "role: text" without one.

    What every prompt costs whatever is in it (how it begins, how it asks for an answer) a system message costs too; in a
    conversation without one it is `beside` every span, and `prompt` says it with no span for it. So the prompt of what a
    memory selects is no longer than the memory's budget. Raises ValueError for a message without `role` and `content` as
    strings, with its place, and for a role that the template does not take.
    """
    checked = [_checked(turn, message) for turn, message in enumerate(messages)]
    beside = cost_of_turns(tokenizer)
    if all(role != SYSTEM for role, _ in checked):
        beside += opening(tokenizer).tokens
    made = []
    for turn, (role, text) in enumerate(checked):
        tokens = opening(tokenizer, text).tokens if role == SYSTEM else tokens_of(role, text, tokenizer)
        made.append(Span(text, tokens, role, (turn,), beside))
    return made


def opening(tokenizer: PreTrainedTokenizerBase, system: str | None = None, sources: tuple[int, ...] = ()) -> Span:
    """The system prompt as a span that costs what every prompt of it costs, its marks and the call for an answer included.

    With `system=None` the text is empty: the cost of a prompt without a system message, where some templates say one of
    their own.
    """
    asked = {"role": "user", "content": "Hello."}
    messages = [asked] if system is None else [{"role": SYSTEM, "content": system}, asked]
    fixed = len(ids_of(messages, tokenizer)) - tokens_of("user", "Hello.", tokenizer)
    return Span(system or "", fixed, SYSTEM, sources)


def said(selected: Sequence[Span], tokenizer: PreTrainedTokenizerBase) -> list[Message]:
    """The messages of the prompt that says these spans in order: one a span, but for an opening without a text.

    Where the template demands that user and assistant take turns, neighbours of one role are joined, and "…" of the user
    stands before an answer that comes first.
    """
    messages = [{"role": span.role, "content": span.text} for span in selected if span.role != SYSTEM or span.text]
    return in_turns(messages, tokenizer)


def prompt(selected: Sequence[Span], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of the prompt of the messages that are `said`, up to where the assistant's answer begins.

    Their number is the sum of the spans' tokens, an opening among them, wherever the template writes each message by
    itself. Raises ValueError for no spans, and for an order of roles that the template refuses.
    """
    messages = said(selected, tokenizer)
    if not messages:
        raise ValueError("nothing is selected, so there is no prompt; give at least one span with a text")
    return ids_of(messages, tokenizer)


def _checked(turn: int, message: Any) -> tuple[str, str]:
    for name in ("role", "content"):
        value = message.get(name) if isinstance(message, Mapping) else None
        if not isinstance(value, str) or (name == "role" and not value):
            raise ValueError(
                f"message {turn} is {message!r:.80}: its {name!r} is no text; give a dict with role and content"
            )
    return message["role"], message["content"]
