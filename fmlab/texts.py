"""Long texts with facts planted at known depths: English prose that every Python ships, and facts of our own."""

import platform
import random
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pydoc_data.topics import topics

from jaxtyping import Int
from torch import Tensor

from .language import LanguageModel

PROSE_SOURCE = f"pydoc_data.topics of Python {platform.python_version()}"  # the text differs between versions

THIRDS = ("early", "middle", "late")
HOLDERS = (
    "archive key", "locker code", "badge number", "gate password", "ticket price", "cargo weight",
    "phone extension", "invoice total", "room temperature", "visitor count", "shelf label", "account balance",
)  # fmt: skip
PLACES = (
    "harbour office", "glass museum", "northern orchard", "windmill", "railway kitchen", "city aquarium",
    "mountain school", "paper factory", "winter garden", "island clinic", "clock tower", "puppet theatre",
)  # fmt: skip


def third_of(depth: float) -> str:
    """The third of a text in which a depth (0 its beginning, 1 its end) lies."""
    return THIRDS[min(2, int(3 * depth))]


@dataclass(frozen=True)
class Fact:
    """A sentence to plant, the question that it answers, and the answer: four digits that no other fact has."""

    sentence: str
    question: str
    answer: str


@dataclass(frozen=True)
class Planted:
    """A fact and where it stands: its tokens are `start` to `stop` of the context."""

    fact: Fact
    start: int
    stop: int
    depth: float
    """Where its middle stands in the context, 0 the beginning, 1 the end."""

    @property
    def third(self) -> str:
        """`early`, `middle` or `late`."""
        return third_of(self.depth)


@dataclass(frozen=True, eq=False)
class Sample:
    """A text with planted facts, as the user's words of a prompt that asks for them afterwards."""

    context: str
    context_ids: Int[Tensor, " context"]
    planted: tuple[Planted, ...]


def needle(
    lm: LanguageModel, tokens: int = 1024, depth: float | int = 0.5, seed: int = 0, text: str | None = None
) -> Sample:
    """One fact in a long text, at `depth` (0 the beginning, 1 the end), in a context of `tokens` tokens at most.

    The context begins with the chat template's opening; it is filled with whole words of `text`, or of prose that the
    seed chooses, and the fact goes to the nearest end of a sentence. Raises ValueError for a depth outside 0 to 1, a
    text that is empty or shorter than the context, and a context that the fact does not fit in.
    """
    return _plant(lm, tokens, [depth], seed, text)


def recall(lm: LanguageModel, tokens: int = 1024, facts: int = 6, seed: int = 0, text: str | None = None) -> Sample:
    """As `needle`, with several facts at even depths, so that every third of the context has its share of them.

    Raises ValueError for a number of facts that is not 3, 6, 9 or 12.
    """
    if facts not in (3, 6, 9, 12):
        raise ValueError(f"{facts} facts; give 3, 6, 9 or 12, the same number for each third")
    return _plant(lm, tokens, [(i + 0.5) / facts for i in range(facts)], seed, text)


@cache
def paragraphs() -> tuple[str, ...]:
    """The readable paragraphs of Python's own language reference, each once, in order of topic.

    The same for every run of one Python version (see PROSE_SOURCE); about 140,000 characters.
    """
    blocks = (block for name in sorted(topics) for block in re.split(r"\n\s*\n", topics[name]))
    return tuple(dict.fromkeys(text for block in blocks if (text := _prose(block))))


def prose(seed: int = 0) -> Iterator[str]:
    """The paragraphs from one that the seed chooses, round to the one before it."""
    start = random.Random(seed).randrange(len(paragraphs()))
    yield from paragraphs()[start:]
    yield from paragraphs()[:start]


def facts(count: int, seed: int = 0, avoid: str = "") -> tuple[Fact, ...]:
    """Facts about different things in different places, which share no word that tells them apart.

    No answer occurs in `avoid`. Raises ValueError for a count outside 1 to 12, or where no answer is left.
    """
    if not 1 <= count <= len(HOLDERS):
        raise ValueError(f"{count} facts; there are different words for 1 to {len(HOLDERS)}")
    chance = random.Random(seed)
    holders, places = chance.sample(HOLDERS, count), chance.sample(PLACES, count)
    free = [number for number in chance.sample(range(1000, 10_000), 9000) if str(number) not in avoid]
    if len(free) < count:
        raise ValueError(
            f"the text leaves {len(free)} of {count} answers that it does not hold itself; give another text"
        )
    return tuple(
        Fact(
            f"The {holder} of the {place} is {number}.",
            f"What is the {holder} of the {place}? Answer with the number.",
            str(number),
        )
        for holder, place, number in zip(holders, places, free, strict=False)
    )


def haystack(tokens: int, seed: int = 0, text: str | None = None) -> list[str]:
    """Words enough for `tokens` tokens: of `text`, or of the prose that the seed chooses. Raises ValueError for no text."""
    if text is not None and not text.strip():
        raise ValueError("the text to plant in is empty; give some words, or None for the lab's prose")
    return (" ".join(prose(seed)) if text is None else text).split()[: tokens + 1]  # no word is less than a token


def woven(
    lm: LanguageModel, tokens: int, words: Sequence[str], sentences: Sequence[str], depths: Sequence[float | int]
) -> tuple[str, Int[Tensor, " context"], list[tuple[int, int]]]:
    """As many of the words as fit a context of `tokens` tokens with the sentences, each at the end of a sentence that is
    nearest to its depth; the context, its ids (with the chat template's opening), and each sentence's first token and
    the one after its last. Raises ValueError where the sentences do not fit, or the words do not suffice.
    """

    def length(count: int) -> int:
        return len(lm.prompt(_woven(words[:count], sentences, depths)[0], "?")[0])

    if length(0) > tokens:
        what = f"{len(sentences)} facts, which take {length(0)}"
        raise ValueError(f"{tokens} tokens cannot hold {what}; give more tokens")
    if length(len(words)) < tokens:
        raise ValueError(f"the text gives {length(len(words))} tokens of the {tokens} asked for; give a longer text")
    count = bisect_right(range(1, len(words) + 1), tokens, key=length)
    context, places = _woven(words[:count], sentences, depths)
    context_ids, _ = lm.prompt(context, "?")
    return context, context_ids, spans(lm, context_ids, context, places)


def spans(
    lm: LanguageModel, context_ids: Int[Tensor, " context"], context: str, places: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """The tokens of pieces of a context, given by their characters; a token that holds only the blank before a piece is
    left out. Raises ValueError for ids that do not decode to the context."""
    ends, text = [], ""
    for piece in lm.pieces(context_ids):
        text += piece
        ends.append(len(text))
    shift = text.find(context)
    if shift < 0:
        raise ValueError(
            f"the tokenizer of {lm.name} changes the text {context[:40]!r} …; give a text that it leaves be"
        )
    return [
        (bisect_right(ends, shift + begin), bisect_right(ends, shift + end - 1) + 1) for begin, end in places
    ]  # fmt: skip


def _plant(lm: LanguageModel, tokens: int, depths: Sequence[float | int], seed: int, text: str | None) -> Sample:
    if not all(0 <= depth <= 1 for depth in depths):
        raise ValueError(f"depth {depths[0]} is outside 0 (the beginning) to 1 (the end)")
    words = haystack(tokens, seed, text)
    chosen = facts(len(depths), seed, avoid=" ".join(words))
    context, context_ids, where = woven(lm, tokens, words, [fact.sentence for fact in chosen], depths)
    planted = (
        Planted(fact, start, stop, (start + stop) / 2 / len(context_ids))
        for fact, (start, stop) in zip(chosen, where, strict=True)
    )
    return Sample(context, context_ids, tuple(planted))


def _woven(
    words: Sequence[str], sentences: Sequence[str], depths: Sequence[float | int]
) -> tuple[str, list[tuple[int, int]]]:
    """The words as sentences with the others among them, and where the characters of each of these stand."""
    words = [*words[:-1], words[-1].rstrip(".,;:") + "."] if words else []
    ends = [0, *(i for i, word in enumerate(words, start=1) if word.endswith((".", "!", "?")))]
    context, places, last = "", {}, 0
    for which, depth in sorted(enumerate(depths), key=lambda pair: pair[1]):
        end = min(ends, key=lambda place: abs(place - depth * len(words)))
        context += "".join(f"{word} " for word in words[last:end])
        places[which] = len(context), len(context) + len(sentences[which])
        context += f"{sentences[which]} "
        last = end
    context += " ".join(words[last:])
    return context.rstrip(), [places[which] for which in range(len(sentences))]


def _prose(block: str) -> str:
    """One paragraph as a line of plain text, or nothing where it is code, grammar, a table, a list or a title."""
    lines = block.strip("\n").split("\n")
    indents = {len(line) - len(line.lstrip()) for line in lines}
    text = re.sub(r"\s+", " ", re.sub(r"(?<=[a-z])-\n\s*", "-", "\n".join(lines))).strip()  # "built-\nin"
    text = text.replace("*", "")
    wordy = len(re.findall(r"[A-Za-z ]", text)) >= 0.9 * len(text)
    whole = re.match(r"[A-Z]", text) and text.endswith(".") and len(text.split()) >= 20
    about_versions = re.match(r"(Changed|New|Added|Deprecated) (in|since) ", text)
    return text if len(indents) == 1 and wordy and whole and not about_versions and "::=" not in text else ""
