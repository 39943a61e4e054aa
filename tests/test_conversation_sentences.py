"""Where sentences end: tables over tokens against a regular expression over the whole decoded text."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import fmlab as fm
from fmlab.conversation.sentences import marking_ids, sentence_ends, sentence_marks
from fmlab.conversation.summary import whole_sentences

END = re.compile(r"[.!?][\"'”’»)\]}]*(?=\s|\Z)")


@pytest.fixture(scope="module")
def tiny():
    return fm.tiny()


def by_text(pieces: list[str]) -> list[int]:
    """The places of the pieces in which a sentence of the joined text has its last character."""
    owner = [place for place, piece in enumerate(pieces) for _ in piece]
    return [owner[match.end() - 1] for match in END.finditer("".join(pieces))]


def by_detector(text: str, lm) -> list[str]:
    """The text up to the end of each sentence."""
    ids = lm.ids(text)
    return ["".join(lm.pieces(ids[: end + 1])) for end in sentence_ends(ids, lm.tokenizer).tolist()]


@settings(max_examples=300, deadline=None)
@given(st.text("aB3.!?)\"' \n,", min_size=1, max_size=40))
def test_the_tables_say_what_the_text_says(tiny, text):
    ids = tiny.ids(text)
    found = sentence_ends(ids, tiny.tokenizer)
    assert found.dtype == torch.int64 and found.tolist() == by_text(tiny.pieces(ids))


@pytest.mark.real
def test_the_same_with_tokens_of_several_characters(lm):
    parts = st.sampled_from(
        ["He", " said", ".", "!", "?", "...", '"', "”", "’", ")", "]", " ", "\n\n", " 3", "5", ", a"]
    )

    @settings(max_examples=300, deadline=None)
    @given(st.lists(parts, min_size=1, max_size=15).map("".join))
    def check(text):
        ids = lm.ids(text)
        assert sentence_ends(ids, lm.tokenizer).tolist() == by_text(lm.pieces(ids))

    check()
    turns = "\n\n".join(message["content"] for one in fm.conversation.dialogues() for message in one.messages)
    ids = lm.ids(turns)
    found = sentence_ends(ids, lm.tokenizer).tolist()
    assert len(found) > 1_000 and found == by_text(lm.pieces(ids))


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("It is 3.5 percent. And", ["It is 3.5 percent."]),
        ("See fmlab.org now", []),
        ("Wait... what? No", ["Wait...", "Wait... what?"]),
        ('He said "stop." Then', ['He said "stop."']),
        ("(Yes.) no", ["(Yes.)"]),
        ("One.\n\nTwo.", ["One.", "One.\n\nTwo."]),
        ("No stop", []),
        ("Dr. Hale", ["Dr."]),  # what no table can know
        ("It costs 3.", ["It costs 3."]),
    ],
)
def test_examples(tiny, text, ends):
    assert by_detector(text, tiny) == ends


@pytest.mark.real
def test_examples_with_the_real_tokens(lm):
    assert by_detector("“Go!” she said at 3.5. Then", lm) == ["“Go!”", "“Go!” she said at 3.5."]
    assert by_detector("One.\n\nTwo", lm) == ["One."]
    texts = {lm.tokenizer.decode([id]) for id in marking_ids(lm.tokenizer)}
    assert {".", "!", "?", "...", '."', "?”", " ."} <= texts and not texts & {",", "a", '"', ".com"}
    ids = torch.cat([lm.ids("Done."), torch.tensor([lm.tokenizer.convert_tokens_to_ids("<|im_end|>")]), lm.ids("more")])
    assert sentence_ends(ids, lm.tokenizer).tolist() == [1]


@pytest.mark.parametrize("count", [0, 1])
def test_no_token_and_one(tiny, count):
    ids = tiny.ids(".")[:count]
    assert sentence_ends(ids, tiny.tokenizer).tolist() == sentence_marks(ids, tiny.tokenizer).tolist() == [0] * count


@pytest.mark.parametrize("wrong", [-1, 256])
def test_ids_of_another_tokenizer_are_refused(tiny, wrong):
    with pytest.raises(ValueError, match=f"ids run from {min(wrong, 3)} to {max(wrong, 3)}.*0 to 255"):
        sentence_ends(torch.tensor([3, wrong]), tiny.tokenizer)


def test_tokens_that_are_added_later_are_known(tiny):
    own = fm.tiny().tokenizer
    assert len(own) == 256 and sentence_ends(tiny.ids("a."), own).tolist() == [1]
    own.add_tokens(["stop!"])
    assert sentence_ends(torch.tensor([256, *tiny.ids(" a").tolist()]), own).tolist() == [0]


def test_a_token_that_holds_the_blank_too(tiny):
    own = fm.tiny().tokenizer
    own.add_tokens(["end.\n", ")\n"])
    after = tiny.ids("b) c").tolist()
    assert sentence_ends(torch.tensor([256, *after]), own).tolist() == [0]
    assert sentence_ends(torch.tensor([256, *after[1:]]), own).tolist() == [0]  # nothing closes behind a blank
    assert sentence_ends(torch.tensor([*tiny.ids("a.").tolist(), 257, *after]), own).tolist() == [2]


def test_marks_are_the_tokens_that_may_end(tiny):
    ids = tiny.ids("3.5. a!b? ")
    assert_close(sentence_marks(ids, tiny.tokenizer), torch.tensor([1, 3, 6, 8]))
    assert sentence_ends(ids, tiny.tokenizer).tolist() == [3, 8]
    assert sorted(map(tiny.tokenizer.decode, marking_ids(tiny.tokenizer))) == ["!", ".", "?"]


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("All is well. It was 3.", "All is well. It was 3."),
        ("All is well. It was 3.5 an", "All is well."),
        ('He said "yes." She', 'He said "yes."'),
        ("nothing whole", "nothing whole"),
    ],
)
def test_a_summary_is_cut_at_its_last_whole_sentence(tiny, said, kept):
    assert "".join(tiny.pieces(whole_sentences(tiny.ids(said), tiny))) == kept
