"""A text cut in two: a context to be read and evicted from, with or without planted facts, and a tail to be scored."""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from .language import LanguageModel
from .texts import PROSE_SOURCE, Planted, Sample, prose, recall

CONTEXT_TOKENS = 1024
SCORED_TOKENS = 96
FACTS = 3
LEAST_CONTEXT = 16


@dataclass(frozen=True, eq=False)
class Passage:
    """A text cut in two: a context that is read and then evicted from, and a tail that is scored token by token."""

    title: str
    context_ids: Int[Tensor, " context"]
    tail_ids: Int[Tensor, " tail"]
    """One token more than are scored: the first is only read, since the uncut context predicts it."""
    pieces: tuple[str, ...]
    """The text of every token of both."""
    sha256: str
    """Of the text of both."""
    sample: Sample | None
    """The facts planted in the context, if there are any."""
    seed: int

    @property
    def scored(self) -> int:
        """How many tokens of the tail are scored."""
        return len(self.tail_ids) - 1

    @property
    def read(self) -> tuple[str, ...]:
        """The text of every token that the model reads: all but the last, which is only predicted."""
        return self.pieces[:-1]

    @property
    def planted(self) -> tuple[Planted, ...]:
        return self.sample.planted if self.sample else ()


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises FileNotFoundError, and ValueError for an empty file or one of other bytes."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; give a text file, or none for the text that every Python ships")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no UTF-8 text: byte 0x{raw[error.start]:02x} at offset {error.start:,} ({error.reason}); "
            "save it as UTF-8"
        ) from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text.strip():
        raise ValueError(f"{path} is empty; give a file with text in it")
    return text


def passage(
    lm: LanguageModel,
    text: str | None = None,
    title: str | None = None,
    tokens: int | None = None,
    scored: int = SCORED_TOKENS,
    facts: int | None = None,
    seed: int = 0,
) -> Passage:
    """Cut a text: `tokens` of context (by default 1,024, or what a shorter text leaves), then `scored` tokens.

    Without a text it is prose that every Python ships, with 3 facts planted, one in each third. A text of your own is
    left as it is unless `facts` are asked for (3, 6, 9 or 12); then its white space becomes single blanks, and the
    context is the user's words in the chat template. Raises ValueError for a text that is too short and counts that are
    not positive.
    """
    for name, count in {"tokens": tokens, "scored": scored}.items():
        if count is not None and count < 1:
            raise ValueError(f"{name}={count}; give at least 1")
    facts = (FACTS if text is None else 0) if facts is None else facts
    title = title or (PROSE_SOURCE if text is None else "a text")
    whole = " ".join(prose(seed)) if text is None else " ".join(text.split()) if facts else text
    words, ids = _beginning(lm, whole, (tokens or CONTEXT_TOKENS) + scored + 1)
    room = len(ids) - scored - 1
    if room < LEAST_CONTEXT:
        raise ValueError(
            f"{title} has {len(ids):,} tokens, too few for {LEAST_CONTEXT} of context and {scored} + 1 after it; "
            "give a longer text or score fewer"
        )
    if tokens is not None and tokens > room:
        raise ValueError(
            f"{title} has {len(ids):,} tokens, too few for a context of {tokens:,} and {scored} + 1 after it; "
            f"give at most {room:,} tokens of context"
        )
    tokens = min(CONTEXT_TOKENS, room) if tokens is None else tokens
    sample = None
    if facts:
        sample = recall(lm, tokens, facts, seed, words)
        used = len(sample.context.split()) - sum(len(planted.fact.sentence.split()) for planted in sample.planted)
        context, rest = sample.context_ids, lm.ids(" " + " ".join(words.split()[used:]))
    else:
        context, rest = ids[:tokens], ids[tokens:]
    if len(rest) < scored + 1:
        raise ValueError(f"{title} leaves {len(rest)} tokens to score, not {scored} + 1; give fewer tokens of context")
    tail = rest[: scored + 1]
    pieces = lm.pieces(torch.cat([context, tail]))
    digest = sha256("".join(pieces).encode()).hexdigest()
    return Passage(title, context, tail, tuple(pieces), digest, sample, seed)


def _beginning(lm: LanguageModel, text: str, tokens: int) -> tuple[str, Int[Tensor, " tokens"]]:
    """As much of a text as surely holds so many tokens, and its ids: a tokenizer complains of what it will not need."""
    characters = 8 * tokens
    while True:
        start = text[:characters]
        ids = lm.ids(start)
        if len(start) == len(text) or len(ids) > tokens + 64:  # the last tokens before a cut might be others
            return start, ids
        characters *= 2


def default_budgets(passage: Passage) -> list[int]:
    """An eighth, a quarter and a half of the context."""
    return sorted({max(1, len(passage.context_ids) // share) for share in (8, 4, 2)})
