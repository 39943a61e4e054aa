"""The numbers, dates and names that a text states, normalised, so that a summary can be held against its source."""

import re
from collections.abc import Iterable, Iterator
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from transformers import PreTrainedTokenizerBase

from .sentences import BEFORE

UNITS = "one two three four five six seven eight nine".split()
TEENS = "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SCALES = {"hundred": 100, "thousand": 1_000, "million": 1_000_000, "billion": 1_000_000_000}
VALUES = {word: value for value, word in enumerate(("zero", *UNITS, *TEENS))} | SCALES
VALUES |= {word: 10 * value for value, word in enumerate(TENS, start=2)}
UNEVEN = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth"}
UNEVEN |= {"twelve": "twelfth"}
ORDINALS = {UNEVEN.get(word, re.sub("y$", "ie", word) + "th"): value for word, value in VALUES.items()}
MONTHS = "january february march april may june july august september october november december".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
SHORT = {name[:length]: name for name in (*MONTHS, *DAYS) for length in (3, 4)} | {
    "thurs": "thursday",
    "tues": "tuesday",
}
# begin sentences and are no names; "ca" and "wo" are of can't and won't
OPENERS = ENGLISH_STOP_WORDS | {*VALUES, *ORDINALS, "minus", "yes", "oh", "mr", "mrs", "ca", "wo"}


def _one_of(words: Iterable[str]) -> str:
    return f"(?:{'|'.join(sorted(words, key=len, reverse=True))})"


MINUS = r"(?:(?<![^\s(\[\"'“‘])[-−]|\bminus )"  # a hyphen that follows a character, as in 3-5, is none
IN_DIGITS = re.compile(rf"({MINUS}?)(\d+(?:[.,:/-]\d+)*)(?:(st|nd|rd|th)\b|[- ]({_one_of(SCALES)})s?\b)?", re.I)
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
DECIMAL = re.compile(r"\d+\.\d+|\d+")
SPELLED = _one_of([*VALUES, *ORDINALS, *(f"{scale}s" for scale in SCALES)])
IN_WORDS = re.compile(rf"(\bminus )?\b({SPELLED}(?:(?:[- ]| and ){SPELLED})*)\b", re.I)

_AS_VERBS = {"may", "march", "mar", "marc"}  # in small letters
MONTH = (
    rf"\b({_one_of({*MONTHS, *(short for short in SHORT if SHORT[short] in MONTHS)} - _AS_VERBS)}"
    r"|(?-i:M(?:ay|ar(?:ch)?|AY|ARCH)))\b"
)
DAY = rf"(?:\d{{1,2}}(?:st|nd|rd|th)?(?![\w%]|[.,:/]\d)|(?:{_one_of(TENS)}[- ])?{_one_of(ORDINALS)}\b)"
RUN = rf"({DAY}(?:(?: ?[-–/] ?| (?:and|or|to) (?:the )?){DAY})*)"
DATE = re.compile(rf"(?<![\w.,:/-]){RUN}(?: of)? {MONTH}|{MONTH}\.? (?:the )?{RUN}", re.I)

WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
OPENING = " \t\"'“‘(*_•–-"  # may stand before the first word of a sentence, and before any other


def numbers(text: str) -> set[str]:
    """Every number of a text, in digits or in words: `1,200`, `1200.0` and "twelve hundred" are `1200`, "third" is `3rd`.

    What digits make with `:`, `/` or `-`, a time or a date such as 2024-03-05, is one number, and stays as it is written.
    By themselves "one" is a pronoun more often than a number, "first" an adverb and "second" a time: they are left out.
    """
    found = set()
    for match in IN_DIGITS.finditer(text):
        minus, digits, ordinal, scale = match.groups()
        found.add(_written(digits, "-" if minus else "", bool(ordinal), SCALES[scale.lower()] if scale else 1))
    for match in IN_WORDS.finditer(IN_DIGITS.sub(";", text)):
        for word, value, ordinal in _counted(match[2].lower()):
            if value > 2 or word in ("zero", "zeroth", "two"):
                found.add(_written(str(value), "-" if match[1] else "", ordinal))
    return found


def dates(text: str) -> set[str]:
    """Every day of a month, "5 May", "May the 5th" or "fifth of May", as `5 may`; of "3 to 5 May" both."""
    return {f"{day} {month}" for day, month in _dates(text)}


def names(text: str, tokenizer: PreTrainedTokenizerBase | None = None) -> set[str]:
    """Every word with a capital, in small letters and without 's, and every month and weekday; but no ordinary word
    (`ordinary`) where it may begin a sentence or line: where neither a word nor a comma is right before it.

    A name in a script without capitals is not told from another word.
    """
    found = set()
    for match in WORD.finditer(text):
        word = _full(_bare(match[0]))
        if not match[0][0].isupper() or word in ("i", "i'm", "i'd", "i'll", "i've"):
            continue
        before = text[: match.start()].rstrip(OPENING)[-1:]
        if word in (*MONTHS, *DAYS) or before.isalnum() or before == "," or not ordinary(word, tokenizer):
            found.add(word)
    return found


def ordinary(word: str, tokenizer: PreTrainedTokenizerBase | None = None) -> bool:
    """Whether a word, in small letters, is none that only names have: a number or one of scikit-learn's stop words, or one
    that the tokenizer has as one token, and with a capital has not or later in its vocabulary, which begins with what is
    frequent. So SmolLM2's knows "discussed" and not "maria"; it takes "rose" and "mark" for no names."""
    parts = re.sub("(?:n't|'(?:m|d|ll|re|ve))$", "", word).split("-")
    return all(part in OPENERS or (tokenizer is not None and _commoner(part, tokenizer)) for part in parts)


def unsupported(summary: str, source: str, tokenizer: PreTrainedTokenizerBase | None = None) -> set[str]:
    """The numbers, dates and names of a summary that its source does not have, as `numbers`, `dates`, `names` write them.

    A name is there if the source has the word anywhere, also in small letters. The number of a day counts with its month
    alone; of the source also by itself. The tokenizer tells which words at the beginning of a sentence are ordinary.
    """
    given = {number for day, _ in _dates(source) for number in (str(day), _written(str(day), ordinal=True))}
    stated = numbers(DATE.sub(";", summary)) - numbers(source) - given
    words = {_full(_bare(match[0])) for match in WORD.finditer(source)}
    parts = {part for word in words for part in re.split("[-']", word)}
    return stated | (dates(summary) - dates(source)) | (names(summary, tokenizer) - words - parts)


def _written(digits: str, sign: str = "", ordinal: bool = False, times: int = 1) -> str:
    bare = digits.replace(",", "") if THOUSANDS.fullmatch(digits) else digits
    if not DECIMAL.fullmatch(bare):
        return sign + bare
    value = f"{(Decimal(bare) * times).normalize():f}"
    if not ordinal:
        return sign + value
    return sign + value + ("th" if value[-2:-1] == "1" else {"1": "st", "2": "nd", "3": "rd"}.get(value[-1], "th"))


def _counted(spelled: str) -> Iterator[tuple[str, int, bool]]:
    """The numbers of words in a row: the last word of each, its value, and whether it is an ordinal.

    Behind "and" a number goes on only after a scale, and where the same scale does not follow: "one hundred and two
    hundred" are two.
    """
    groups = [re.split("[- ]", group) for group in spelled.split(" and ")]
    rows = groups[:1]
    for before, group in pairwise(groups):
        if before[-1] in SCALES and before[-1] not in group:
            rows[-1] = rows[-1] + group
        else:
            rows.append(group)
    for row in rows:
        yield from _values(row)


def _values(words: list[str]) -> Iterator[tuple[str, int, bool]]:
    """As `_counted`. A word goes on with the number before it where its digits are still free: "thirty one" is one number,
    "five six" two."""
    before, whole, part, scale = "", 0, 0, 10**12
    for word in words:
        value = ORDINALS[word] if word in ORDINALS else VALUES[word if word in VALUES else word.removesuffix("s")]
        if value >= 1_000:
            free = 0 < part and value < scale
        elif value == 100:
            free = part < 100
        else:
            free = (
                0 < value
                and bool(part or whole)
                and (part % 100 == 0 or (value < 10 and part % 100 in range(20, 100, 10)))
            )
        if before and (before in ORDINALS or not free):
            yield before, whole + part, before in ORDINALS
            whole, part, scale = 0, 0, 10**12
        if value >= 1_000:
            whole, part, scale = whole + (part or 1) * value, 0, value
        else:
            part = (part or 1) * value if value == 100 else part + value
        before = word
    yield before, whole + part, before in ORDINALS


def _dates(text: str) -> set[tuple[int, str]]:
    found = set()
    for match in DATE.finditer(text):
        run, month, other, others = match.groups()
        for day in re.finditer(DAY, run or others, re.I):
            digits = re.match(r"\d+", day[0])
            value = int(digits[0]) if digits else next(_values(re.split("[- ]", day[0].lower())))[1]
            if value <= 31:
                found.add((value, _full((month or other).lower())))
    return found


def _bare(word: str) -> str:
    return re.sub(r"'s?$", "", word.lower().replace("’", "'"))


def _full(word: str) -> str:
    return SHORT.get(word, word)


@lru_cache(maxsize=4096)
def _commoner(word: str, tokenizer: PreTrainedTokenizerBase) -> bool:
    before = len(tokenizer.encode(BEFORE, add_special_tokens=False))
    small, large = (
        tokenizer.encode(f"{BEFORE} {written}", add_special_tokens=False)[before:]
        for written in (word, word.capitalize())
    )
    return len(small) == 1 and (len(large) > 1 or small < large)
