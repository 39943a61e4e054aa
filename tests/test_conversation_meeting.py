import json

import pytest

from fmlab.conversation import Span, evidence_recall, kept_turns, meetings
from fmlab.conversation.evidence import third

MEETING = {
    "meeting_transcripts": [
        {"speaker": "Ann", "content": "The lid is red."},
        {"speaker": "Bo", "content": "No, blue 🙂"},
    ],
    "specific_query_list": [
        {"query": "Which colour?", "answer": "Blue.", "relevant_text_span": [["0", "0"], ["0", "1"]]},
        {"query": "What else?", "answer": "Nothing.", "relevant_text_span": []},
    ],
}


def written(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")
    return path


def test_a_meeting_is_read(tmp_path):
    (meeting,) = meetings(written(tmp_path / "m.jsonl", MEETING, ""))
    assert meeting.messages[1] == {"role": "user", "content": "Bo: No, blue 🙂"}
    (asked,) = meeting.questions
    assert (asked.question, asked.answer, asked.evidence) == ("Which colour?", "Blue.", (0, 1))
    assert repr(meeting) == "Meeting(1, 2 turns, 1 questions)"


def change(path, value):
    meeting = json.loads(json.dumps(MEETING))
    *way, last = path
    part = meeting
    for step in way:
        part = part[step]
    part[last] = value
    return meeting


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no JSON"),
        ([], "line 2: 'meeting_transcripts' is None, not a list"),
        (
            change(["meeting_transcripts", 1, "content"], 3),
            r"line 2, meeting_transcripts\[1\]: 'content' is 3, not a str",
        ),
        (change(["meeting_transcripts", 0], "Ann"), r"meeting_transcripts\[0\]: 'speaker' is None"),
        (change(["specific_query_list", 0, "answer"], None), r"specific_query_list\[0\]: 'answer' is None"),
        (change(["specific_query_list", 0, "relevant_text_span", 1], ["0", "2"]), "no turns of a meeting of 2"),
        (change(["specific_query_list", 0, "relevant_text_span", 1], ["x", "1"]), "give the first and the last turn"),
    ],
)
def test_what_is_malformed_is_named_by_line_and_field(tmp_path, line, said):
    with pytest.raises(ValueError, match=said):
        meetings(written(tmp_path / "m.jsonl", MEETING, line))


def test_lines_are_counted_and_cut_as_an_editor_does(tmp_path):
    path = written(tmp_path / "m.jsonl", "", change(["meeting_transcripts", 0, "content"], "a\u2028b\x85c"), "", "{")
    with pytest.raises(ValueError, match="line 4 is no JSON"):
        meetings(path)
    text = path.read_text("utf-8").removesuffix("{")
    path.write_text(text.replace("\\u2028", "\u2028").replace("\\u0085", "\x85"), encoding="utf-8")
    (meeting,) = meetings(path)
    assert (meeting.name, meeting.messages[0]["content"]) == ("1", "Ann: a\u2028b\x85c")
    path.write_bytes(b"\n" + b"\xff")
    with pytest.raises(ValueError, match="line 2 is no JSON .*utf-8"):
        meetings(path)


def test_an_empty_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        meetings(written(tmp_path / "m.jsonl"))


def test_the_real_meetings_are_read(data):
    read = meetings(data / "qmsum" / "meetings.jsonl")
    assert len(read) == 18 and sum(len(meeting.questions) for meeting in read) > 100
    assert all(asked.evidence for meeting in read for asked in meeting.questions)


TALK = [
    Span("a", 10, "user", (0,)),
    Span("b", 10, "user", (1,)),
    Span("c", 10, "user", (1,)),
    Span("d", 10, "user", (2,)),
]


def test_evidence_is_kept_where_it_is_said_word_for_word_and_whole():
    summary = Span("a and b", 5, "user", (0, 1))
    assert kept_turns([TALK[0], TALK[1], TALK[3]], TALK) == {0, 2} and kept_turns([summary, TALK[3]], TALK) == {2}
    assert evidence_recall(TALK[:1], TALK, (0, 2)) == (0.5, False, True)
    assert evidence_recall(TALK, TALK, (0, 1)) == (1.0, True, True)
    assert evidence_recall([summary], TALK, [0]) == (0.0, False, False)
    with pytest.raises(ValueError, match="no evidence"):
        evidence_recall(TALK, TALK, ())
    with pytest.raises(ValueError, match="turn 7"):
        evidence_recall(TALK, TALK, (0, 7))


def test_the_third_of_the_evidence_goes_by_its_tokens():
    assert [third(TALK, turns) for turns in ((0,), (1,), (2,), (0, 2))] == ["early", "middle", "late", "middle"]
