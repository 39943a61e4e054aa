import re
from itertools import pairwise

import pytest

import fmlab as fm
from fmlab import texts
from fmlab.texts import HOLDERS, PLACES, facts, needle, paragraphs, prose, recall

OWN_TEXT = "Rain fell on the roof. " * 60


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


def test_the_prose_is_prose():
    assert sum(map(len, paragraphs())) > 100_000
    assert len(set(paragraphs())) == len(paragraphs())
    for text in paragraphs():
        assert text[0].isupper() and text.endswith(".") and len(text.split()) >= 20, text
        assert not re.search(r"\n|::=|>>>|\*|  |^\W", text), text
    assert "built-in" in " ".join(paragraphs())  # words broken at a line's end are whole again


@pytest.mark.parametrize(
    "block",
    [
        "Title\n*****",
        "   a = 1\n   b = 2",
        "   literal ::= string | bytes | " + "integer | " * 20 + ".",
        "* An item of a list that has quite enough words in it to be taken for a sentence of its own, but is not.",
        "Changed in version 3.9: " + "many words that tell only of versions " * 4 + ".",
        "Too short to be a paragraph.",
        "A paragraph of quite enough words that goes on\n   with another indent, as a definition does in a list, "
        "so that its first line is a title and no sentence.",
    ],
)
def test_what_is_not_prose_is_left_out(block):
    assert texts._prose(block) == ""


def test_a_paragraph_becomes_one_line():
    block = (
        "   This is a *good* paragraph of built-\n   in text,  with words enough to be kept by the rule that\n"
        "   counts them, twenty."
    )
    assert texts._prose(block) == (
        "This is a good paragraph of built-in text, with words enough to be kept by the rule that counts them, twenty."
    )


def test_the_seed_chooses_where_the_prose_begins():
    assert list(prose(1)) == list(prose(1)) != list(prose(2))
    assert sorted(prose(1)) == sorted(paragraphs())


def test_facts_share_no_telling_word():
    names = [*HOLDERS, *PLACES]
    words = [word for name in names for word in name.split()]
    assert len(set(words)) == len(words)
    assert len(HOLDERS) == len(PLACES)


def test_facts_are_told_by_their_seed():
    chosen = facts(12, seed=4)
    assert chosen == facts(12, seed=4) != facts(12, seed=5)
    assert len({fact.answer for fact in chosen}) == 12
    assert all(re.fullmatch(r"\d{4}", fact.answer) and fact.answer in fact.sentence for fact in chosen)
    assert not any(fact.answer in fact.question for fact in chosen)


def test_answers_keep_clear_of_the_text():
    everything_but = " ".join(str(number) for number in range(1000, 10_000) if number != 4321)
    assert facts(1, avoid=everything_but)[0].answer == "4321"
    with pytest.raises(ValueError, match="leaves 0 of 2 answers"):
        facts(2, avoid=everything_but + " 4321")


@pytest.mark.parametrize("count", [0, 13])
def test_there_are_twelve_facts(count):
    with pytest.raises(ValueError, match=f"{count} facts; there are different words for 1 to 12"):
        facts(count)


@pytest.mark.parametrize("depth", [0, 0.25, 0.5, 0.9, 1])
@pytest.mark.parametrize("tokens", [600, 2000])
def test_a_needle_stands_where_it_is_said_to(tiny, tokens, depth):
    sample = needle(tiny, tokens, depth, seed=3)
    (planted,) = sample.planted
    assert tokens - 20 <= len(sample.context_ids) <= tokens  # whole words; a token is a byte here
    assert "".join(tiny.pieces(sample.context_ids[planted.start : planted.stop])) == planted.fact.sentence
    assert sample.context.count(planted.fact.answer) == 1
    assert abs(planted.depth - depth) < 0.25 * 600 / tokens + 0.1  # the nearest end of a sentence
    if depth in (0, 1):
        assert sample.context.startswith(planted.fact.sentence) == (depth == 0)
        assert sample.context.endswith(planted.fact.sentence) == (depth == 1)


def test_a_needle_is_its_seed(tiny):
    assert needle(tiny, 600).context == needle(tiny, 600).context != needle(tiny, 600, seed=1).context


def test_a_needle_goes_between_sentences(tiny):
    sample = needle(tiny, 400, 0.5, text=OWN_TEXT)
    sentences = re.findall(r"[^.]+\.", sample.context)
    assert {s.strip() for s in sentences[:-1]} == {"Rain fell on the roof.", sample.planted[0].fact.sentence}


def test_places_are_found_among_characters_of_several_tokens(tiny):
    context = "Naïve 👩‍🚀 漢字 cat."
    ids, _ = tiny.prompt(context, "?")
    (cat, kanji) = texts.spans(
        tiny, ids, context, [(context.index(word), context.index(word) + n) for word, n in (("cat", 3), ("漢字", 2))]
    )
    assert tiny.tokenizer.decode(ids[slice(*cat)]) == "cat"
    assert "".join(tiny.pieces(ids[: kanji[1]])).endswith("漢字")
    with pytest.raises(ValueError, match="changes the text 'another"):
        texts.spans(tiny, ids, "another", [])


def test_recall_has_the_same_number_in_each_third(tiny):
    sample = recall(tiny, 3000, facts=6)
    assert [planted.third for planted in sample.planted] == ["early"] * 2 + ["middle"] * 2 + ["late"] * 2
    assert all(a.stop < b.start for a, b in pairwise(sample.planted))
    for planted in sample.planted:
        said = "".join(tiny.pieces(sample.context_ids[planted.start : planted.stop]))
        assert said == planted.fact.sentence


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"depth": 1.5}, "depth 1.5 is outside 0"),
        ({"depth": -0.1}, "depth -0.1 is outside 0"),
        ({"depth": float("nan")}, "depth nan is outside 0"),
        ({"text": " \n"}, "the text to plant in is empty"),
        ({"tokens": 20}, "20 tokens cannot hold 1 facts, which take"),
        ({"tokens": 5000, "text": OWN_TEXT}, r"gives 14\d\d tokens of the 5000 asked for; give a longer text"),
    ],
)
def test_what_cannot_be_planted_is_refused(tiny, settings, says):
    with pytest.raises(ValueError, match=says):
        needle(tiny, **{"tokens": 600, **settings})


@pytest.mark.parametrize("count", [0, 2, 4, 15])
def test_thirds_are_equal_or_refused(tiny, count):
    with pytest.raises(ValueError, match=f"{count} facts; give 3, 6, 9 or 12"):
        recall(tiny, 3000, facts=count)


@pytest.mark.real
@pytest.mark.parametrize("tokens", [128, 1024])
def test_a_needle_in_the_chat_template(lm, tokens):
    sample = needle(lm, tokens, 0.5)
    (planted,) = sample.planted
    assert tokens - 12 <= len(sample.context_ids) <= tokens
    said = lm.tokenizer.decode(sample.context_ids[planted.start : planted.stop])
    assert said.strip() == planted.fact.sentence
    assert lm.tokenizer.decode(sample.context_ids).endswith(f"<|im_start|>user\n{sample.context}")
