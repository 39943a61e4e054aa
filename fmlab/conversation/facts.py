"""The numbers, dates and names that a text states, normalised, so that a summary can be held against its source."""

import re
from decimal import Decimal

UNITS = (
    "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
VALUES = {word: value for value, word in enumerate(UNITS, start=2)} | {
    word: 10 * value for value, word in enumerate(TENS, start=2)
}
MONTHS = "january february march april may june july august september october november december".split()
DAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
SHORT = {name[:length]: name for name in (*MONTHS, *DAYS) for length in (3, 4)} | {
    "thurs": "thursday",
    "tues": "tuesday",
}

DIGITS = re.compile(r"\d+(?:[.,:/-]\d+)*")
THOUSANDS = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?")
DECIMAL = re.compile(r"\d+\.\d+|\d+")
SPELLED = re.compile(
    rf"\b(?:({'|'.join(TENS)})[- ])?({'|'.join((*UNITS[:8], 'one'))})\b|\b({'|'.join((*UNITS[8:], *TENS))})\b", re.I
)
WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
OPENING = " \t\"'“‘(*_•–-"  # may stand between the end of one sentence and the first word of the next
ENDS = ".!?:;…\n"


def numbers(text: str) -> set[str]:
    """Every number of a text, in digits or in words from two to ninety-nine: `1,200` and `1200.0` are `1200`.

    What digits make with `:`, `/` or `-`, a time or a date such as 2024-03-05, is one number, and stays as it is written.
    """
    found = {_plain(match[0]) for match in DIGITS.finditer(text)}
    for match in SPELLED.finditer(text):
        tens, unit, whole = (word and word.lower() for word in match.groups())
        if whole or unit != "one" or tens:  # `one` alone is a pronoun more often than a number
            found.add(str(VALUES.get(whole, 0) + VALUES.get(tens, 0) + (1 if unit == "one" else VALUES.get(unit, 0))))
    return found


def names(text: str) -> set[str]:
    """Every word that begins with a capital and no sentence, and every month and weekday; in small letters, without 's.

    A name at the beginning of a sentence, or in a script without capitals, is not told from another word.
    """
    found = set()
    for match in WORD.finditer(text):
        word = _bare(match[0])
        if not match[0][0].isupper() or word in ("i", "i'm", "i'd", "i'll", "i've"):
            continue
        before = text[: match.start()].rstrip(OPENING)
        if (before and before[-1] not in ENDS) or _full(word) in (*MONTHS, *DAYS):
            found.add(_full(word))
    return found


def unsupported(summary: str, source: str) -> set[str]:
    """The numbers, dates and names of a summary that its source does not have, as `numbers` and `names` write them.

    A name is there if the source has the word anywhere, also in small letters.
    """
    words = {_full(_bare(match[0])) for match in WORD.finditer(source)}
    parts = {part for word in words for part in re.split("[-']", word)}
    return (numbers(summary) - numbers(source)) | (names(summary) - words - parts)


def _plain(digits: str) -> str:
    bare = digits.replace(",", "") if THOUSANDS.fullmatch(digits) else digits
    return f"{Decimal(bare).normalize():f}" if DECIMAL.fullmatch(bare) else bare


def _bare(word: str) -> str:
    return re.sub(r"'s?$", "", word.lower().replace("’", "'"))


def _full(word: str) -> str:
    return SHORT.get(word, word)
