import pytest

from fmlab.conversation.facts import names, numbers, unsupported


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It costs 1,200 pounds, or 1200.50 with a bow.", {"1200", "1200.5"}),
        ("Twenty-five of the three, at 2 or at two; ninety", {"25", "3", "2", "90"}),
        ("thirty one, thirty-one, fourteen", {"31", "14"}),
        ("the one on 2024-03-05 at 14:30, the 3rd, 5%", {"2024-03-05", "14:30", "3", "5"}),
        ("No one knows; someone often tends the weightone.", set()),
        ("007 and 7.0, 0.10", {"7", "0.1"}),
        ("", set()),
    ],
)
def test_numbers_are_found_and_normalised(text, found):
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Odile teaches Noor's baby in Leeds. Later, she and I'm off.", {"noor", "leeds"}),
        ("On Mon we met; Monday came. May said: In March or Sept.", {"monday", "march", "september", "may"}),
        ("- Rent\n* Buy it\n“Ask Zoë O’Brien”", {"zoë", "o'brien"}),
        ("we march on, as I may; 🙂 <script>alert(1)</script>", set()),
        ("the bass of Jean-Luc", {"jean-luc"}),
    ],
)
def test_names_are_capitalised_words_within_a_sentence(text, found):
    assert names(text) == found


def test_what_the_source_does_not_have_is_found():
    source = "user: odile's lesson is on Thursday at five, £26 a month, at Marks-Spencer."
    assert unsupported("The lesson with Odile is on Thursday at 5 for 26 pounds near Spencer.", source) == set()
    assert unsupported("A lesson with Odette on Tuesday at 6, 2,600 pounds", source) == {
        "odette",
        "tuesday",
        "6",
        "2600",
    }
    assert unsupported("A lesson with Odile, 12-14 years", source) == {"12-14"}
    assert unsupported("", source) == unsupported("", "") == set()
