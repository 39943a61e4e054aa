import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmlab.conversation import dialogues
from fmlab.conversation.dialogue import check, load_dialogue
from fmlab.conversation.question import ABSTAINING, Question, Superseded, answered, parts, stands, words

SHIPPED = sorted((Path(__file__).resolve().parents[1] / "data" / "dialogues").glob("*.json"))
each_shipped = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)


def sound():
    """A dialogue of two sessions without a defect, as its file has it."""
    said = (
        ("We moved to Elm Road, and the cat is called Pickle.", "A good name. Give her 40 grams a day."),
        ("Not Elm Road, sorry: we live in Oak Road.", "Noted. The vet you want is Doctor Amsel."),
        ("She is on 55 grams now. My landlord is Otto.", "Otto it is. Good night."),
    )
    turns = [[{"role": "user", "content": one}, {"role": "assistant", "content": two}] for one, two in said]
    questions = [
        {"question": "Who is my pet?", "answer": "Pickle", "also": [], "kind": "fact", "evidence": [0]},
        {
            "question": "Where do I live?",
            "answer": "Oak Road",
            "also": ["in Oak Road 1"],
            "kind": "contradiction",
            "evidence": [2],
            "superseded": {"answer": "Elm Road", "evidence": [0]},
        },
        {
            "question": "How much does she eat?",
            "answer": "55 grams",
            "also": ["55 g"],
            "kind": "update",
            "evidence": [4],
            "superseded": {"answer": "40 grams", "evidence": [1]},
        },
        {
            "question": "Who looks after the cat's health, and who owns the flat?",
            "answer": "Doctor Amsel and Otto",
            "also": [],
            "kind": "several",
            "evidence": [3, 4],
        },
        {
            "question": "How old is the cat?",
            "answer": None,
            "also": [],
            "kind": "unanswerable",
            "evidence": [],
            "near": ["cat", "years"],
        },
    ]
    sessions = [{"when": "2024-03-02", "turns": turns[0] + turns[1]}, {"when": "2024-03-09", "turns": turns[2]}]
    return {"name": "cat", "about": "A cat and a flat.", "sessions": sessions, "questions": questions}


def load(folder, given):
    path = folder / "cat.json"
    path.write_text(given if isinstance(given, str) else json.dumps(given), "utf-8")
    return load_dialogue(path)


# The dialogues that the lab ships


def test_the_lab_ships_its_dialogues():
    assert {"allotment", "bakery", "rail-trip"} <= {path.stem for path in SHIPPED}
    assert [dialogue.name for dialogue in dialogues()] == [path.stem for path in SHIPPED]
    assert dialogues() is dialogues()


@each_shipped
def test_a_shipped_dialogue_is_sound_and_rich_enough(path):
    dialogue = load_dialogue(path)
    assert check(dialogue) == []
    assert 4 <= len(dialogue.sessions) <= 6
    kinds = [question.kind for question in dialogue.questions]
    fewest = {"fact": 10, "update": 3, "contradiction": 2, "several": 2, "unanswerable": 3}
    assert len(kinds) >= 22
    assert {kind: kinds.count(kind) for kind in fewest if kinds.count(kind) < fewest[kind]} == {}


@pytest.mark.real
@each_shipped
def test_a_shipped_dialogue_is_long_and_its_evidence_spread_by_tokens(path, lm):
    dialogue = load_dialogue(path)

    def count(text):
        return len(lm.ids(text))

    assert sum(count(message["content"]) for message in dialogue.messages) >= 3000
    assert check(dialogue, count) == []


@each_shipped
def test_the_evidence_itself_answers_and_what_was_superseded_does_not(path):
    dialogue = load_dialogue(path)
    texts = [message["content"] for message in dialogue.messages]
    for question in dialogue.questions:
        if question.kind == "unanswerable":
            assert answered("I am sorry, you never told me that.", question)
            assert not answered("It is blue.", question)
            continue
        assert answered(" ".join(texts[turn] for turn in question.evidence), question), question
        assert all(answered(wording, question) for wording in (question.answer, *question.also)), question
        assert not answered("I don't know.", question), question
        if question.superseded is not None:
            assert not answered(f"It is {question.superseded.answer}.", question), question


# Loading


def test_a_sound_dialogue_loads(tmp_path):
    dialogue = load(tmp_path, sound())
    assert [session.when for session in dialogue.sessions] == ["2024-03-02", "2024-03-09"]
    assert [message["role"] for message in dialogue.messages] == ["user", "assistant"] * 3
    assert dialogue.messages[4]["content"].startswith("She is on 55")
    assert dialogue.questions[1].superseded == Superseded("Elm Road", (0,))
    assert dialogue.questions[4].near == ("cat", "years")
    assert dialogue.thirds(lambda text: 1) == ["early"] * 2 + ["middle"] * 2 + ["late"] * 2
    assert check(dialogue, lambda text: 1, each_third=1) == []


def test_thirds_are_counted_by_the_evidence_that_is_oldest(tmp_path):
    dialogue = load(tmp_path, sound())
    assert check(dialogue, lambda text: 1, each_third=2) == [
        "questions: 1 have their evidence in the early third; 2 should",
        "questions: 1 have their evidence in the late third; 2 should",
    ]
    assert dialogue.thirds(lambda text: 8 if text.startswith("We moved") else 1)[:2] == ["early", "middle"]
    assert dialogue.thirds(lambda text: 8 if text.startswith("A good") else 1)[:2] == [
        "early",
        "middle",
    ]  # it begins early


PLANTED = [  # the defect, and what is said of it
    (lambda d: d.pop("about"), "the file, about: missing"),
    (lambda d: d["sessions"][0]["turns"][2].update(rôle="x"), "session 0, turn 2, rôle: unknown"),
    (lambda d: d["sessions"][1].update(when="last week"), "session 1, when: 'last week' is no day"),
    (lambda d: d["sessions"][1].update(when="2023-03-09"), "session 1, when: 2023-03-09 is before"),
    (lambda d: d["sessions"][1].update(turns={}), "session 1, turns: {} is no list"),
    (lambda d: d["sessions"][1]["turns"][0].update(content=" "), "session 1, turn 4, content: ' '"),
    (lambda d: d["sessions"][1]["turns"][1].update(role="system"), "session 1, turn 5, role: 'system'"),
    (lambda d: d["sessions"][1]["turns"][1].update(role="user"), "session 1, turn 5, role: user, where it is the ass"),
    (lambda d: d["sessions"][1]["turns"].append({"role": "user", "content": "x"}), "session 1, turn 6: nobody answers"),
    (lambda d: d["sessions"][0]["turns"].__setitem__(1, "hello"), "session 0, turn 1 is 'hello'"),
    (lambda d: d.update(sessions=[]), "sessions: no turn"),
    (lambda d: d["questions"][0].update(kind="guess"), "question 0, kind: 'guess' is none of"),
    (lambda d: d["questions"][0].update(evidence=[True]), "question 0, evidence: True is no int"),
    (lambda d: d["questions"][0].update(evidence=["0"]), "question 0, evidence: '0' is no int"),
    (lambda d: d["questions"][0].update(evidence=[6]), "question 0, evidence: there is no turn 6.*0 to 5"),
    (lambda d: d["questions"][0].update(evidence=[-1]), "question 0, evidence: there is no turn -1"),
    (lambda d: d["questions"][0].update(evidence=[0, 0]), "question 0, evidence: .*once, in order"),
    (lambda d: d["questions"][0].update(evidence=[]), "question 0, evidence: none"),
    (lambda d: d["questions"][0].update(evidence=[1]), "question 0, answer: 'Pickle' does not stand in turns .1"),
    (lambda d: d["questions"][0].update(answer="Pick"), "question 0, answer: 'Pick' does not stand"),
    (lambda d: d["questions"][0].update(answer=None), "question 0, answer: None says nothing"),
    (lambda d: d["questions"][0].update(answer="…"), "question 0, answer: '…' says nothing"),
    (lambda d: d["questions"][0].update(answer=5), "question 0, answer: 5 is no str"),
    (lambda d: d["questions"][0].update(question="Is Pickle my cat?"), "question 0, question: it tells its answer"),
    (lambda d: d["questions"][0].update(near=["cat"]), "question 0, near: only an unanswerable"),
    (lambda d: d["questions"][0].update(also=["Gherkin"]), "question 0, also 0: 'Gherkin' shares no word"),
    (lambda d: d["questions"][0].update(also=["…"]), "question 0, also 0: '…' shares no word"),
    (lambda d: d["questions"][0].update(also=["Pick les"]), None),
    (lambda d: d["questions"][0].update(also=["pickle!"]), "question 0, also 0: 'pickle!' is accepted anyway"),
    (
        lambda d: d["questions"][0].update(superseded={"answer": "Elm", "evidence": [0]}),
        "question 0, superseded: given",
    ),
    (lambda d: d["questions"][2].pop("superseded"), "question 2, superseded: missing for kind 'update'"),
    (lambda d: d["questions"][2]["superseded"].pop("evidence"), "question 2, superseded, evidence: missing"),
    (lambda d: d["questions"][2]["superseded"].update(evidence=[]), "question 2, superseded, evidence: none"),
    (lambda d: d["questions"][2]["superseded"].update(evidence=[9]), "question 2, superseded, evidence: there is no"),
    (lambda d: d["questions"][2]["superseded"].update(evidence=[0]), "superseded, answer: '40 grams' does not stand"),
    (lambda d: d["questions"][2]["superseded"].update(answer="55 grams", evidence=[4]), "is what is accepted now"),
    (
        lambda d: d["questions"][2].update(evidence=[1], answer="40", also=[]),
        "turn 1 is not before turn 1, which says the new",
    ),
    (
        lambda d: d["questions"][1].update(evidence=[0], answer="Pickle", also=[]),
        None,
    ),  # a speaker may correct himself at once
    (lambda d: d["questions"][3].update(evidence=[4], answer="Otto"), "question 3, evidence: .4. is one turn"),
    (lambda d: d["questions"][3].update(evidence=[4, 5]), "question 3, answer: 'Doctor Amsel' does not stand"),
    (lambda d: d["questions"][3].update(evidence=[1, 3, 4]), "question 3, evidence: turn 1 holds no part"),
    (lambda d: d["questions"][3].update(evidence=[0, 4], answer="Otto"), None),  # turn 0 leads to it
    (lambda d: d["questions"][4].update(answer="3"), "question 4, answer: '3', but the question is unanswerable"),
    (lambda d: d["questions"][4].update(evidence=[0]), "question 4, evidence: .0,., but the question is unanswerable"),
    (lambda d: d["questions"][4].update(near=["cat", "called"]), "question 4, near: turn 0 has cat, called"),
    (lambda d: d["questions"].append(d["questions"][0]), "question 5, question: the same as question 0"),
]


@pytest.mark.parametrize(("plant", "said"), PLANTED, ids=[str(said) for _, said in PLANTED])
def test_a_defect_is_named_with_the_file_its_place_and_field(tmp_path, plant, said):
    given = sound()
    plant(given)
    if said is None:
        assert len(load(tmp_path, given).questions) == 5
    else:
        with pytest.raises(ValueError, match=rf"cat\.json(, line \d+)?: .*{said}"):
            load(tmp_path, given)


def test_what_is_no_dialogue_is_refused_with_the_file(tmp_path):
    for text, said in (
        ("{", "Expecting property name"),
        ("[]", r"the file is \[\]"),
        ('{"name": 1}', "about: missing"),
    ):
        with pytest.raises(ValueError, match=rf"cat\.json(, line \d+)?: .*{said}"):
            load(tmp_path, text)
    (tmp_path / "cat.json").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(ValueError, match=r"cat\.json, line 1: .*utf-8"):
        load_dialogue(tmp_path / "cat.json")
    with pytest.raises(FileNotFoundError):
        load_dialogue(tmp_path / "dog.json")


@pytest.mark.parametrize(
    ("plant", "marked", "said"),
    [
        (lambda d: d["sessions"][1]["turns"][1].update(content=" "), ("sessions", 1, "turns", 1), "turn 5, content"),
        (lambda d: d["sessions"][1].pop("when"), ("sessions", 1), "session 1, when: missing"),
        (lambda d: d["questions"][2].update(evidence=[99]), ("questions", 2), "question 2, evidence"),
        (lambda d: d["questions"][2].update(kind=5), ("questions", 2), "question 2, kind: 5 is no str"),
        (lambda d: d["questions"][2]["superseded"].update(answer=5), ("questions", 2), "superseded, answer: 5"),
    ],
)
def test_a_defect_is_named_with_the_line_where_its_session_turn_or_question_begins(tmp_path, plant, marked, said):
    given = sound()
    plant(given)
    text = json.dumps(given, indent=1)
    place = given
    for step in marked:
        place = place[step]
    place["mark"] = "HERE"
    lines = json.dumps(given, indent=1).splitlines()
    marks = next(number for number, line in enumerate(lines, start=1) if "HERE" in line)
    depth = len(lines[marks - 1]) - len(lines[marks - 1].lstrip())
    begins = max(n for n, line in enumerate(lines[:marks], start=1) if line == " " * (depth - 1) + "{")
    with pytest.raises(ValueError, match=rf"cat\.json, line {begins}: .*{said}"):
        load(tmp_path, text)


def test_what_is_no_json_is_named_with_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"cat\.json, line 3: Expecting value"):
        load(tmp_path, '{\n"name":\n, 5}')
    (tmp_path / "cat.json").write_bytes(b'{\n\n"name": "\xff"}')
    with pytest.raises(ValueError, match=r"cat\.json, line 3: .*utf-8"):
        load_dialogue(tmp_path / "cat.json")
    with pytest.raises(ValueError, match=r"cat\.json: "):
        load(tmp_path, "[" * 100_000)


def test_every_defect_is_counted(tmp_path):
    given = sound()
    given["questions"][0]["evidence"] = [1]
    given["questions"][3]["evidence"] = [4]
    with pytest.raises(ValueError, match=r"question 0, answer.*\(and 2 more\)"):
        load(tmp_path, given)


# Words, and whether a reply answers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Copper-Whisk's door!", "copper whisk door"),
        ("forty-two, forty two, forty and twenty thirty", "42 42 40 and 20 30"),
        ("1,200 pounds; £3,060; 12,34", "1200 pounds 3060 12 34"),
        ("at 7:30 it's 2.5 m. 20cm", "at 7:30 it 2.5 m 20 cm"),
        ("Café, Kraków — “yes”", "cafe krakow yes"),
        ("I don’t; I don't", "i don't i don't"),
        ("two litres, 60 centimetres, Metres Road", "2 liters 60 centimeters meters road"),
        ("Hobbs & Daughter", "hobbs and daughter"),
        ("seven a.m., 3rd", "7 m 3 rd"),
        ("", ""),
    ],
)
def test_words(text, expected):
    assert " ".join(words(text)) == expected


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_what_a_text_is_made_of_stands_in_it(before, wanted, after):
    assert stands(wanted, f"{before} . {wanted} . {after}") == bool(words(wanted))


@given(st.integers(0, 99))
def test_numbers_in_words_are_numbers(n):
    tens = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()
    small = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
    small = f"{small} seventeen eighteen nineteen".split()
    said = small[n] if n < 20 else tens[n // 10] + (f"-{small[n % 10]}" if n % 10 else "")
    assert words(said) == (str(n),)


def test_whole_words_only():
    assert stands("oak road", "We live in the Oak-Road.") and not stands("oak road", "Oak Roads")
    assert not stands("12", "at 12.50") and not stands("12", "12:30") and not stands("3", "300")
    assert parts("Ines, Bruno and Tom") == ("Ines", "Bruno", "Tom") and parts("1,200") == ("1,200",)


FACT = Question("How many?", "12", (), "fact", (0,))
UPDATE = Question("When?", "12", ("noon",), "update", (4,), Superseded("12 June", (1,)))
SEVERAL = Question("Who?", "Ines and Bruno", ("the Galls",), "several", (0, 2))
NEVER = Question("Who?", None, (), "unanswerable", ())


@pytest.mark.parametrize(
    ("question", "reply", "right"),
    [
        (FACT, "There were twelve of them.", True),
        (FACT, "There were 120.", False),
        (FACT, "", False),
        (UPDATE, "On 12 June.", False),
        (UPDATE, "It was 12 June, now it is 12.", True),
        (UPDATE, "At NOON!", True),
        (replace(UPDATE, answer="12 June 2024", superseded=Superseded("12 June", (1,))), "On 12 June 2024.", True),
        (replace(UPDATE, answer="12 June 2024", superseded=Superseded("12 June", (1,))), "On 12 June.", False),
        (SEVERAL, "Bruno came with Ines.", True),
        (SEVERAL, "Ines came.", False),
        (SEVERAL, "The Galls came.", True),
        (replace(SEVERAL, kind="fact"), "Bruno came with Ines.", False),
        (NEVER, "I’m not sure about that.", True),
        (NEVER, "You haven't mentioned it.", True),
        (NEVER, "It was Ines.", False),
        (NEVER, "", False),
        (FACT, "I don't know.", False),
    ],
)
def test_answered(question, reply, right):
    assert answered(reply, question) is right


def test_every_phrase_of_abstaining_abstains():
    assert all(answered(f"Well, {phrase}, sorry.", NEVER) for phrase in ABSTAINING)
    assert len({words(phrase) for phrase in ABSTAINING}) == len(ABSTAINING)
