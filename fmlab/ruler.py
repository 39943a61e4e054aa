"""The families of RULER at the lengths a small model can answer: needles, chains of variables, counts of words.

The tasks are those of RULER (arXiv:2404.06654, section 3), the wording is our own and the lengths are 512 to 2,048
tokens. Every sample comes with the tokens its answers rest on, so that *held* and *answered* can be told apart.
"""

import random
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cache

from .language import LanguageModel
from .scoring import Sample, Score, converse, matches, score
from .texts import HOLDERS, PLACES, facts, haystack, paragraphs, spans, woven

__all__ = [
    "FAMILIES", "Sample", "Score", "common_words", "converse", "frequent_words", "matches", "multi_key", "multi_query",
    "multi_value", "score", "single", "turns", "variable_tracking",
]  # fmt: skip

LIST = "Here is a list of words:"
MOST = "Which {n} words stand most often in this list? Answer with the {n} words."
ZETA = 2.0  # the exponent of RULER's frequent words: the k-th most frequent comes k ** -ZETA as often as the first


def single(lm: LanguageModel, tokens: int = 1024, seed: int = 0, text: str | None = None) -> Sample:
    """One fact anywhere in a long text.

    As every family here: a context of at most `tokens` tokens, the chat template's opening included, filled with whole
    words of `text`, or of prose that the seed chooses. Raises ValueError where that does not fit or suffice.
    """
    return _needles(lm, "single", tokens, seed, text, count=1, asked=[0])


def multi_key(
    lm: LanguageModel, tokens: int = 1024, seed: int = 0, text: str | None = None, keys: int = 4, asked: int = 0
) -> Sample:
    """Several facts of one form, told apart by the place alone; the `asked`-th of them is asked for."""
    if not 0 <= asked < keys:
        raise ValueError(f"asked={asked} of {keys} keys; give 0 to {keys - 1}")
    return _needles(lm, "multi_key", tokens, seed, text, count=keys, asked=[asked], alike=True)


def multi_query(
    lm: LanguageModel, tokens: int = 1024, seed: int = 0, text: str | None = None, queries: int = 3
) -> Sample:
    """Several different facts, and one question that asks for all of them, in any order of the text."""
    return _needles(lm, "multi_query", tokens, seed, text, count=queries, asked=range(queries))


def multi_value(
    lm: LanguageModel, tokens: int = 1024, seed: int = 0, text: str | None = None, values: int = 3
) -> Sample:
    """Several values of one thing, each said in a place of its own; all are asked for, and stand as the text has them."""
    words, chance = haystack(tokens, seed, text), random.Random(seed)
    answers = [fact.answer for fact in facts(values, seed, avoid=" ".join(words))]
    holder, place = chance.choice(HOLDERS), chance.choice(PLACES)
    sentences = [f"One {holder} of the {place} is {number}." for number in answers]
    depths = sorted(chance.random() for _ in answers)
    context, context_ids, where = woven(lm, tokens, words, sentences, depths)
    return Sample(
        family="multi_value", tokens=tokens, seed=seed, context=context, context_ids=context_ids,
        question=f"What are all the {holder}s of the {place}? Answer with the {values} numbers.",
        opening=f"The {holder}s of the {place} are these {len(answers)}:",
        answers=tuple(answers), evidence=tuple((span,) for span in where),
    )  # fmt: skip


def variable_tracking(
    lm: LanguageModel,
    tokens: int = 1024,
    seed: int = 0,
    text: str | None = None,
    hops: int = 2,
    chains: int = 2,
) -> Sample:
    """Chains of names, each given the value of the one before; all names of one value are asked for.

    The evidence of a name is its own sentence and those before it in its chain.
    """
    if hops < 1 or chains < 1:
        raise ValueError(f"hops={hops}, chains={chains}; give at least 1 of each")
    words, chance = haystack(tokens, seed, text), random.Random(seed)
    values = [fact.answer for fact in facts(chains, seed, avoid=" ".join(words))]
    names = [name.upper() for name in _invented(chains * (hops + 1), chance)]
    sentences, depths = [], []
    for chain, value in enumerate(values):
        mine = names[chain * (hops + 1) :][: hops + 1]
        sentences += [f"Let {mine[0]} be {value}."]
        sentences += [f"Let {name} be the same as {before}." for before, name in zip(mine, mine[1:], strict=False)]
        depths += sorted(chance.random() for _ in mine)
    context, context_ids, where = woven(lm, tokens, words, sentences, depths)
    return Sample(
        family="variable_tracking", tokens=tokens, seed=seed, context=context, context_ids=context_ids,
        question=f"Which names are {values[0]}, by themselves or by being the same as another that is? "
        f"There are {hops + 1}. Answer with the names.",
        opening=f"The names that are {values[0]} are",
        answers=tuple(names[: hops + 1]),
        evidence=tuple(tuple(where[: link + 1]) for link in range(hops + 1)),
    )  # fmt: skip


def common_words(
    lm: LanguageModel, tokens: int = 1024, seed: int = 0, common: int = 3, often: int = 12, seldom: int = 1
) -> Sample:
    """A list of words in which a few stand `often` times and all others `seldom`; the few are asked for.

    A longer list has more of the others, as in RULER. The evidence of a word is every place where it stands.
    """
    if common < 1 or not 0 < seldom < often:
        raise ValueError(f"common={common}, often={often}, seldom={seldom}; give common >= 1 and often > seldom >= 1")
    chance = random.Random(seed)
    drawn = chance.sample(_vocabulary(), len(_vocabulary()))
    few, others = drawn[:common], drawn[common:]

    def listed(count: int) -> list[str]:
        return few * often + others[:count] * seldom

    return _counted(lm, "common_words", tokens, seed, few, listed, len(others))


def frequent_words(lm: LanguageModel, tokens: int = 1024, seed: int = 0, frequent: int = 3) -> Sample:
    """A list of made-up words whose counts fall as 1, 1/4, 1/9 … (Zeta, 2); the most frequent are asked for.

    The evidence of a word is every place where it stands.
    """
    if frequent < 1:
        raise ValueError(f"frequent={frequent}; give at least 1")
    names = _invented(200, random.Random(seed))

    def listed(count: int) -> list[str]:
        return [name for rank, name in enumerate(names, start=1) for _ in range(int(count * rank**-ZETA))]

    return _counted(lm, "frequent_words", tokens, seed, names[:frequent], listed, tokens)


FAMILIES: tuple[Callable[..., Sample], ...] = (
    single, multi_key, multi_value, multi_query, variable_tracking, common_words, frequent_words
)  # fmt: skip


def turns(
    lm: LanguageModel, tokens: int = 1024, seed: int = 0, text: str | None = None, questions: int = 3
) -> tuple[Sample, ...]:
    """One context of different facts with a question for each of them, for a conversation of several turns."""
    return tuple(
        _needles(lm, "turns", tokens, seed, text, count=questions, asked=[which]) for which in range(questions)
    )


def _needles(
    lm: LanguageModel,
    family: str,
    tokens: int,
    seed: int,
    text: str | None,
    count: int,
    asked: Sequence[int],
    alike: bool = False,
) -> Sample:
    """Facts about different things, or of one thing in different places, of which the `asked` are asked for."""
    words, chance = haystack(tokens, seed, text), random.Random(seed)
    numbers = [fact.answer for fact in facts(count, seed, avoid=" ".join(words))]
    holders, places = chance.sample(HOLDERS, count), chance.sample(PLACES, count)
    holders = holders[:1] * count if alike else holders
    things = [f"{holder} of the {place}" for holder, place in zip(holders, places, strict=True)]
    sentences = [f"The {thing} is {number}." for thing, number in zip(things, numbers, strict=True)]
    context, context_ids, where = woven(lm, tokens, words, sentences, [chance.random() for _ in things])
    wanted = [things[which] for which in asked]
    if len(wanted) == 1:
        question, opening = f"What is the {wanted[0]}? Answer with the number.", f"The {wanted[0]} is"
    else:
        *first, last = (f"the {thing}" for thing in wanted)
        question = f"What are {', '.join(first)} and {last}? Answer with the numbers, in this order."
        opening = "The numbers are"
    return Sample(
        family, tokens, seed, context, context_ids, question, opening,
        answers=tuple(numbers[which] for which in asked), evidence=tuple((where[which],) for which in asked),
    )  # fmt: skip


def _counted(
    lm: LanguageModel,
    family: str,
    tokens: int,
    seed: int,
    wanted: Sequence[str],
    listed: Callable[[int], list[str]],
    most: int,
) -> Sample:
    """A shuffled list of words, as long as fits, of which those that stand most often are asked for."""

    def context_of(count: int) -> str:
        words = listed(count)
        random.Random(seed).shuffle(words)
        return f"{LIST} {', '.join(words)}."

    def length(count: int) -> int:
        return len(lm.prompt(context_of(count), "?")[0])

    count = bisect_right(range(1, most + 1), tokens, key=length)
    while count and length(count) > tokens:  # another shuffle may take a token more
        count -= 1
    found = listed(count)
    counts = sorted((found.count(word) for word in dict.fromkeys(found)), reverse=True)
    if len(counts) <= len(wanted) or counts[len(wanted) - 1] <= counts[len(wanted)]:
        raise ValueError(
            f"{tokens} tokens cannot hold a list in which {len(wanted)} words stand most often; give more tokens"
        )
    context = context_of(count)
    context_ids, _ = lm.prompt(context, "?")
    places = [[match.span() for match in re.finditer(rf"\b{word}\b", context)] for word in wanted]
    return Sample(
        family, tokens, seed, context, context_ids,
        question=MOST.format(n=len(wanted)),
        opening="The words that stand most often are",
        answers=tuple(wanted), evidence=tuple(tuple(spans(lm, context_ids, context, each)) for each in places),
    )  # fmt: skip


@cache
def _vocabulary() -> tuple[str, ...]:
    """Words of four to eight letters from the lab's prose, in order of the alphabet."""
    found = {word for text in paragraphs() for word in re.findall(r"\b[a-z]{4,8}\b", text)}
    return tuple(sorted(found - set(re.findall(r"\w+", f"{LIST} {MOST}".lower()))))


def _invented(count: int, chance: random.Random) -> list[str]:
    """Different words of two syllables, of which few mean anything."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    return chance.sample([first + second for first in syllables for second in syllables], count)
