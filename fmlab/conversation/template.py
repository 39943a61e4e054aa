"""What a tokenizer makes of messages: by its chat template, or a line "role: text" each where it has none."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

SYSTEM = "system"
HALF = re.compile(r"[\ud800-\udfff]")
GAP = "…"  # said by the user before an answer that nothing leads up to

Message = Mapping[str, str]


def ids_of(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, answering: bool = True) -> list[int]:
    """The token ids of a prompt; `answering` adds how an answer begins.

    Without a template every line is tokenised by itself, so that a message costs the same whatever stands around it.
    Raises ValueError where the template refuses, and for half a character.
    """
    if tokenizer.chat_template:
        return _ids(_rendered(messages, tokenizer, answering), tokenizer)
    lines = [f"{message['role']}: {message['content']}\n" for message in messages]
    return [id for line in [*lines, *["assistant:"] * answering] for id in _ids(line, tokenizer)]


def tokens_of(role: str, text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """By how many tokens a message lengthens a prompt, its marks included. Raises ValueError for a role that the template
    does not take."""
    after = ids_of([*_before(role), {"role": role, "content": text}], tokenizer, answering=False)
    return len(after) - _cost_before(role, tokenizer, str(tokenizer.chat_template))


def in_turns(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> list[Message]:
    """The messages as the template takes them: as they are, unless it demands that user and assistant take turns.

    Then neighbours of one role are one message, line under line, and the user says "…" before an answer that comes first.
    """
    if not _demands_turns(tokenizer, str(tokenizer.chat_template)):
        return list(messages)
    taken: list[Message] = []
    for message in messages:
        role, before = message["role"], taken[-1]["role"] if taken else SYSTEM
        if role == "assistant" and before == SYSTEM:
            taken.append({"role": "user", "content": GAP})
        if role == before != SYSTEM:
            taken[-1] = {"role": role, "content": f"{taken[-1]['content']}\n{message['content']}"}
        else:
            taken.append(message)
    return taken


def cost_of_turns(tokenizer: PreTrainedTokenizerBase) -> int:
    """What `in_turns` may add to a prompt: the tokens of "…" where the template demands turns, and nothing elsewhere.

    To join two messages saves the marks between them and costs the end of a line, which is taken to be no more.
    """
    return tokens_of("user", GAP, tokenizer) if _demands_turns(tokenizer, str(tokenizer.chat_template)) else 0


def half_character(text: str) -> int | None:
    """The first place at which a text has half a character, a surrogate, which is no text to a tokenizer."""
    found = HALF.search(text)
    return None if found is None else found.start()


def _rendered(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, answering: bool) -> str:
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=answering)
    except TemplateError as reason:
        roles = [message["role"] for message in messages][-4:]
        raise ValueError(f"the chat template does not take roles that end in {roles}: {reason}") from reason


def _before(role: str) -> list[Message]:
    """A conversation that every template lets go on with this role."""
    asked, said = {"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello."}
    return [asked, said] if role == "user" else [asked]


@lru_cache(maxsize=256)
def _cost_before(role: str, tokenizer: PreTrainedTokenizerBase, template: str) -> int:
    """Remembered for each template, since a tokenizer may be given another."""
    return len(ids_of(_before(role), tokenizer, answering=False))


@lru_cache(maxsize=256)
def _demands_turns(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    asked, said = _before("user")
    try:
        for messages in ([asked, asked], [said, asked], [asked, said, said]):
            ids_of(messages, tokenizer)
    except ValueError:
        return True
    return False


def _ids(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if (place := half_character(text)) is not None:
        near = text[max(0, place - 20) : place + 21]
        raise ValueError(f"{text[place]!r} in {near!r} is half a character; give whole ones")
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
