"""A conversation as spans, each with what it costs in the prompt, and the prompt that spans make."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import index
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

SYSTEM = "system"
HALF = re.compile(r"[\ud800-\udfff]")
Message = Mapping[str, str]


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

    A system message costs also what every prompt costs whatever is in it (how it begins, how it asks for an answer), so
    that the tokens of a selection are those of its prompt; for a conversation without one see `opening`. Raises
    ValueError for a message without `role` and `content` as strings, with its place, and for a role that the template
    does not take.
    """
    made = []
    for turn, message in enumerate(messages):
        role, text = _checked(turn, message)
        if role == SYSTEM:
            made.append(opening(tokenizer, text, (turn,)))
        else:
            made.append(Span(text, tokens_of(role, text, tokenizer), role, (turn,)))
    return made


def opening(tokenizer: PreTrainedTokenizerBase, system: str | None = None, sources: tuple[int, ...] = ()) -> Span:
    """The system prompt as a span that costs what every prompt of it costs, its marks and the call for an answer included.

    With `system=None` the text is empty: the cost of a prompt without a system message, where some templates say one of
    their own.
    """
    said = {"role": "user", "content": "Hello."}
    messages = [said] if system is None else [{"role": SYSTEM, "content": system}, said]
    fixed = _count(rendered(messages, tokenizer), tokenizer) - tokens_of("user", "Hello.", tokenizer)
    return Span(system or "", fixed, SYSTEM, sources)


def tokens_of(role: str, text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """By how many tokens a message lengthens a prompt, its marks included. Raises ValueError for a role that the template
    does not take."""
    before = _before(role)
    after = rendered([*before, {"role": role, "content": text}], tokenizer, answering=False)
    return _count(after, tokenizer) - _cost_before(role, tokenizer, str(tokenizer.chat_template))


def prompt(selected: Sequence[Span], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The token ids of the prompt that says these spans in order and asks for the assistant's answer.

    An opening without a text is not said. Their number is the sum of the spans' tokens, an opening among them, wherever
    the template writes each message by itself. Raises ValueError for no spans, and for an order of roles that the
    template refuses.
    """
    messages = [{"role": span.role, "content": span.text} for span in selected if span.role != SYSTEM or span.text]
    if not messages:
        raise ValueError("nothing is selected, so there is no prompt; give at least one span with a text")
    return tokenizer(rendered(messages, tokenizer), add_special_tokens=False, verbose=False)["input_ids"]


def rendered(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, answering: bool = True) -> str:
    """The text of a prompt; `answering` adds how an answer begins. Raises ValueError where the template refuses."""
    if not tokenizer.chat_template:
        lines = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return lines + "assistant:" * answering
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answering)
    except TemplateError as reason:
        roles = [message["role"] for message in messages][-4:]
        raise ValueError(f"the chat template does not take roles that end in {roles}: {reason}") from reason


def _checked(turn: int, message: Any) -> tuple[str, str]:
    for field in ("role", "content"):
        value = message.get(field) if isinstance(message, Mapping) else None
        if not isinstance(value, str) or (field == "role" and not value):
            raise ValueError(
                f"message {turn} is {message!r:.80}: its {field!r} is no text; give a dict with role and content"
            )
    return message["role"], message["content"]


def _before(role: str) -> list[Message]:
    """A conversation that every template lets go on with this role."""
    asked, said = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}
    return [asked, said] if role == "user" else [asked]


@lru_cache(maxsize=256)
def _cost_before(role: str, tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """Remembered for each template, since a tokenizer may be given another."""
    return _count(rendered(_before(role), tokenizer, answering=False), tokenizer)


def half_character(text: str) -> int | None:
    """The first place at which a text has half a character, a surrogate, which is no text to a tokenizer."""
    found = HALF.search(text)
    return None if found is None else found.start()


def _count(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    if (place := half_character(text)) is not None:
        near = text[max(0, place - 20) : place + 21]
        raise ValueError(f"{text[place]!r} in {near!r} is half a character; give whole ones")
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
