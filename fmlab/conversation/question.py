"""A question about a conversation: what answers it, where that is said, and whether a reply says it."""

import re
import unicodedata
from dataclasses import dataclass

KINDS = ("fact", "update", "contradiction", "several", "unanswerable")

ABSTAINING = (
    "don't know", "do not know", "not know", "don't recall", "do not recall", "don't remember", "do not remember",
    "not mentioned", "no mention", "never mentioned", "didn't mention", "did not mention", "doesn't mention",
    "does not mention", "haven't mentioned", "have not mentioned", "not said", "never said", "didn't say",
    "did not say", "haven't said", "have not said", "didn't tell", "did not tell", "never told", "haven't told",
    "have not told", "not stated", "not specified", "not provided", "not given", "not discussed", "not clear",
    "unclear", "unknown", "not sure", "unsure", "uncertain", "can't tell", "cannot tell", "can't say", "cannot say",
    "can't find", "cannot find", "can't determine", "cannot determine", "no information", "no record",
    "don't have", "do not have", "doesn't say", "does not say", "isn't mentioned", "wasn't mentioned",
    "isn't stated", "wasn't stated", "unable to",
)  # fmt: skip
"""What a reply to an unanswerable question must say one of."""

_ARTICLES = frozenset(("a", "an", "the"))
_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBERS = {word: n for n, word in enumerate(_SMALL)} | {word: 10 * n for n, word in enumerate(_TENS, start=2)}


@dataclass(frozen=True)
class Superseded:
    """What was said before it changed or was corrected, and in which turns."""

    answer: str
    evidence: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """A question with its answer and the turns (places in `Dialogue.messages`) that say it.

    `kind` is one of KINDS. An update's answer is the latest value, a contradiction's the corrected one, and `superseded`
    what was said before. The answer to "several" rests on two turns or more: its parts (between commas or "and") may
    stand in different ones. An unanswerable question has no answer and no evidence; no turn has all the words of `near`.
    """

    question: str
    answer: str | None
    also: tuple[str, ...]
    kind: str
    evidence: tuple[int, ...]
    superseded: Superseded | None = None
    near: tuple[str, ...] = ()

    @property
    def wordings(self) -> tuple[tuple[str, ...], ...]:
        """Every accepted wording, each as the parts that must all be said."""
        accepted = () if self.answer is None else (self.answer, *self.also)
        return tuple(parts(wording) if self.kind == "several" else (wording,) for wording in accepted)


def parts(answer: str) -> tuple[str, ...]:
    """A joined answer in its parts: "Ines, Bruno and Tom" is three."""
    return tuple(part for part in re.split(r"\s*[,;]\s+(?:and\s+)?|\s+and\s+", answer.strip()) if part)


def words(text: str) -> tuple[str, ...]:
    """The words of a text as answers are compared: small letters without accents, punctuation and articles.

    Numbers up to 99 are digits ("forty-two" is 42), so is 1,200 (1200), and a number stands apart from its unit ("20cm"
    is two words); 7:30 and 2.5 are one word each; metres are meters. One surprise: "one" is a number wherever it stands.
    """
    plain = unicodedata.normalize("NFKD", text.casefold().replace("&", " and "))
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    plain = re.sub(r"(?<=[^\W\d_])’(?=[^\W\d_])", "'", plain)
    found: list[str] = []
    tens = False  # whether the word before was twenty, thirty, ... and may take a unit
    for word in re.findall(r"\d+(?:[.:]\d+)*|[^\W\d_]+(?:'[^\W\d_]+)?", plain):
        word = re.sub(r"(met|lit)re(s?)$", r"\1er\2", word.removesuffix("'s"))
        if word in _ARTICLES:
            continue
        number = _NUMBERS.get(word)
        if number is None:
            found.append(word)
        elif tens and 1 <= number <= 9:
            found[-1] = str(int(found[-1]) + number)
        else:
            found.append(str(number))
        tens = word in _TENS
    return tuple(found)


def stands(wanted: str, text: str) -> bool:
    """Whether a text says this, as whole words one after another."""
    return bool(_places(words(wanted), words(text)))


def answered(reply: str, question: Question) -> bool:
    """Whether a reply answers the question, by exact match: it says an accepted wording as whole words.

    What stands only inside the superseded answer does not count ("12" in "12 June" where the 12 June was given up). An
    unanswerable question is answered by abstaining: the reply says one of ABSTAINING. The limits: a reply that names
    both the old and the new value is right, whatever it says of them, and so is one that denies the answer, names ten
    candidates, or abstains and then guesses; bound the length of replies. A wording that nobody foresaw is wrong.
    """
    said = words(reply)
    if question.kind == "unanswerable":
        return any(_places(words(phrase), said) for phrase in ABSTAINING)
    return any(all(_says(said, part, question.superseded) for part in wording) for wording in question.wordings)


def _says(said: tuple[str, ...], wanted: str, superseded: Superseded | None) -> bool:
    wording, old = words(wanted), () if superseded is None else words(superseded.answer)
    covered = [range(at, at + len(old)) for at in _places(old, said)] if _places(wording, old) else []
    return any(all(at not in span for span in covered) for at in _places(wording, said))


def _places(wanted: tuple[str, ...], said: tuple[str, ...]) -> list[int]:
    """Where a run of words begins in a text."""
    size = len(wanted)
    return [at for at in range(len(said) - size + 1) if said[at : at + size] == wanted] if size else []
