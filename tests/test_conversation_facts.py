import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fmlab.conversation.facts import dates, names, numbers, unsupported

# as a vocabulary is made: the frequent first, names with a capital
FREQUENT = "a later discussed ask buy rent rose Maria Berlin Rose Later maria ? Zoë".split()


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(FREQUENT)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It costs 1,200 pounds, or 1200.50 with a bow.", {"1200", "1200.5"}),
        ("Twenty-five of the three, at 2 or at two; ninety", {"25", "3", "2", "90"}),
        ("thirty one, thirty-one, fourteen", {"31", "14"}),
        ("the one on 2024-03-05 at 14:30, the 3rd, 5%", {"2024-03-05", "14:30", "3rd", "5"}),
        ("No one knows; someone often tends the weightone.", set()),
        ("007 and 7.0, 0.10", {"7", "0.1"}),
        ("", set()),
        ("A hundred, twelve hundred and a million; hundreds of thousands", {"100", "1200", "1000000", "1000"}),
        ("two hundred and fifty thousand, between one hundred and two hundred", {"250000", "100", "200"}),
        ("two thousand and twenty-four or nineteen ninety; five six and seven", {"2024", "19", "90", "5", "6", "7"}),
        ("1.5 thousand, 2 million, zero", {"1500", "2000000", "0"}),
        ("the third, the 22nd, a twenty-first, one hundred and first", {"3rd", "22nd", "21st", "101st"}),
        ("the 12th, the fortieth, the " + 40 * "1" + "th", {"12th", "40th", 28 * "1" + 12 * "0" + "th"}),
        ("First, wait a second for the first one.", set()),
        ("-5 and (−6.5), minus 7, minus eight, 3-5, A-9, 10 - 11", {"-5", "-6.5", "-7", "-8", "3-5", "9", "10", "11"}),
    ],
)
def test_numbers_are_found_and_normalised(text, found):
    assert numbers(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("On 5 May, the 6th of June and on March the 7th", {"5 may", "6 june", "7 march"}),
        ("the twenty-first of March, first Apr, Sept. 3", {"21 march", "1 april", "3 september"}),
        ("3 to 5 July, 8-9 august, Dec 3 and 4", {"3 july", "5 july", "8 august", "9 august", "3 december", "4 december"}),
        ("May 2024, May 5, 2024", {"5 may"}),
        ("we 5 may march 6 miles; at June 5:30, June 5% and 1.5 June, 45 May, 2024-03-05", set()),
    ],
)  # fmt: skip
def test_days_of_a_month_are_pairs(text, found):
    assert dates(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Odile teaches Noor's baby in Leeds. Later, she and I'm off.", {"odile", "noor", "leeds"}),
        ("On Mon we met; Monday came. May said: In March or Sept.", {"monday", "march", "september", "may"}),
        ("- Rent\n* Buy it\n“Ask Zoë O’Brien”", {"zoë", "o'brien"}),
        ("we march on, as I may; 🙂 <script>alert(1)</script>", set()),
        ("the bass of Jean-Luc", {"jean-luc"}),
        ("Maria came. Berlin is far: Later, they left.\nDiscussed it. Don't they? Well, I'm off.", {"maria", "berlin"}),
        ("Rose came. Here is Rose, Rose and “Rose”", {"rose"}),
        ("Yes, can't we? Can't! Won't they? Oh! Mr Zoë", {"zoë"}),
        ("Rose came. Two came. The 3rd came. It's done. He'd go.", set()),
    ],
)
def test_names_are_capitalised_words_that_are_not_ordinary_at_a_beginning(text, found, tokenizer):
    assert names(text, tokenizer) == found


def test_without_a_vocabulary_only_stop_words_are_ordinary():
    assert names("They met Maria. However, Berlin is far. Discussed.") == {"maria", "berlin", "discussed"}


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


@pytest.mark.parametrize(
    ("summary", "source", "wrong"),
    [
        ("Due on 5 May.", "Due on 5 June, or on 9 May.", {"5 may"}),
        ("Due on May 5th.", "Due on the fifth of May.", set()),
        ("Due on the 5th, 3 May to 4 May", "Due on 5 May, 3-4 May", set()),
        ("Due on 5 May, for 5", "5 May", set()),
        ("The 3rd lesson", "3 lessons", {"3rd"}),
        ("Minus 5 at night", "5 at night, 3-5 by day", {"-5"}),
        ("3-5", "-5 and -3", {"3-5"}),
        ("Over a thousand came.", "100 came, or ten.", {"1000"}),
        ("1,500 came.", "Fifteen hundred came.", set()),
        ("Maria came.", "user: maria came", set()),
        ("Maria came. Berlin!", "user: who came?", {"maria", "berlin"}),
    ],
)
def test_each_kind_of_fact_is_held_against_the_source(summary, source, wrong):
    assert unsupported(summary, source) == wrong


@pytest.mark.real
def test_the_real_vocabulary_knows_names_from_words(lm):
    said = "Discussed bread. Later, they met. Reminded him. Agreed. Planned it. {} came."
    for name in ("Maria", "Berlin", "Odile", "Noor", "Leeds", "Emily", "Fred", "Amsterdam", "Jean-Luc"):
        assert unsupported(said.format(name), "bread", lm.tokenizer) == {name.lower()}
