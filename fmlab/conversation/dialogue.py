"""Multi-session dialogues with questions whose evidence is known: the lab's own and yours, loaded and checked."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from .. import datafile
from ..lines import json_places
from ..texts import THIRDS, third_of
from .question import KINDS, Question, Superseded, answered, stands, words

__all__ = ["Dialogue", "Question", "Session", "Superseded", "Turn", "answered", "check", "dialogues", "load_dialogue"]

ROLES = ("user", "assistant")


@dataclass(frozen=True)
class Turn:
    role: str
    content: str


@dataclass(frozen=True)
class Session:
    """What was said in one sitting; `when` is its day, as in 2024-03-02."""

    when: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Dialogue:
    """A conversation of several sessions, and questions about it that come after its end."""

    name: str
    about: str
    sessions: tuple[Session, ...]
    questions: tuple[Question, ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The turns of all sessions, as a chat template takes them; a question's evidence are places in this list."""
        return [{"role": turn.role, "content": turn.content} for session in self.sessions for turn in session.turns]

    def thirds(self, count: Callable[[str], int] = len) -> list[str]:
        """For each turn whether it is early, middle or late: in which third of the dialogue its middle lies.

        Lengths are what `count` says of a content, characters by default; give a tokenizer's count for tokens.
        """
        lengths = [count(message["content"]) for message in self.messages]
        found, before, whole = [], 0, sum(lengths)
        for length in lengths:
            found.append(third_of((before + length / 2) / whole))
            before += length
        return found


@cache
def dialogues() -> tuple[Dialogue, ...]:
    """The dialogues that the lab ships in data/dialogues/, by name."""
    folder = datafile("dialogues/allotment.json").parent
    return tuple(load_dialogue(path) for path in sorted(folder.glob("*.json")))


def load_dialogue(path: str | os.PathLike[str]) -> Dialogue:
    """A dialogue from its JSON file, in which every answer is proved to stand in its evidence (`check`).

    Raises ValueError naming the file, the line on which it is no JSON or on which the wrong session, turn or question
    begins (all counted from 0; turns over all sessions) and the field; FileNotFoundError where there is no file.
    """
    raw = Path(path).read_bytes()
    try:
        dialogue = _dialogue(json.loads(raw.decode("utf-8")))
        if wrong := check(dialogue, each_third=0):
            raise ValueError(wrong[0] + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""))
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8 too
        raise ValueError(f"{path}{_line(raw, error)}: {error}") from error
    return dialogue


def _line(raw: bytes, error: Exception) -> str:
    """Where in a file an error is: ", line 7", or nothing where it is in no one place."""
    if isinstance(error, UnicodeDecodeError):
        before = raw.count(b"\n", 0, error.start)
        return f", line {before + 1}"
    if isinstance(error, json.JSONDecodeError):
        return f", line {error.lineno}"
    if not (place := re.match(r"(session|question) (\d+)(?:, turn (\d+))?", str(error))):
        return ""
    given, lines = json_places(raw.decode("utf-8"))
    kind, number, turn = place[1], int(place[2]), place[3]
    found = [given[f"{kind}s"][number]]
    if turn is not None:
        before = sum(len(session["turns"]) for session in given["sessions"][:number])
        found.append(found[0]["turns"][int(turn) - before])
    known = [lines[id(each)] for each in found if id(each) in lines]
    return f", line {known[-1]}" if known else ""


def check(dialogue: Dialogue, count: Callable[[str], int] = len, each_third: int = 5) -> list[str]:
    """Every defect of a dialogue, each with its place and field; none for a sound one.

    Sessions follow each other in time, user and assistant alternate through all of them, and the user begins. A question
    stands once and does not tell its answer. Its evidence turns exist, in order. The answer stands in one of them as
    whole words, for "several" each of its parts; there every evidence turn holds a part, or one holds the whole answer
    and the others lead to it. Another accepted wording (`also`) stands in the evidence too, or shares a word (or its
    beginning) with the answer, and is not the superseded one. Updates and contradictions have a superseded answer,
    another than the answer, which stands in its own evidence: before the answer's, or for a contradiction at the latest
    in the same turn. An unanswerable question has neither answer nor evidence, and no turn has all the words of `near`.
    At least `each_third` answerable questions have their oldest evidence in each third (`Dialogue.thirds`). What no
    check can see is whether the evidence is enough and whether another turn says the same.
    """
    texts = [message["content"] for message in dialogue.messages]
    found = list(_order(dialogue))
    seen: dict[tuple[str, ...], int] = {}
    for number, question in enumerate(dialogue.questions):
        found += [f"question {number}, {defect}" for defect in _question_defects(question, texts)]
        first = seen.setdefault(words(question.question), number)
        if first != number:
            found.append(f"question {number}, question: the same as question {first}")
    third = dialogue.thirds(count)
    covered = Counter(
        third[min(question.evidence)]
        for question in dialogue.questions
        if question.evidence and all(0 <= turn < len(third) for turn in question.evidence)
    )
    for name in THIRDS:
        if covered[name] < each_third:
            found.append(f"questions: {covered[name]} have their evidence in the {name} third; {each_third} should")
    return found


def _order(dialogue: Dialogue) -> Iterator[str]:
    turn = 0
    for number, session in enumerate(dialogue.sessions):
        if number and session.when < dialogue.sessions[number - 1].when:
            yield f"session {number}, when: {session.when} is before the session that it follows"
        for place, said in enumerate(session.turns):
            if said.role != ROLES[place % 2]:
                yield f"session {number}, turn {turn}, role: {said.role}, where it is the {ROLES[place % 2]}'s turn"
            turn += 1
        if len(session.turns) % 2:
            yield f"session {number}, turn {turn - 1}: nobody answers it; end a session with the assistant"


def _question_defects(question: Question, texts: Sequence[str]) -> Iterator[str]:
    if question.kind not in KINDS:
        yield f"kind: {question.kind!r} is none of {', '.join(KINDS)}"
        return
    if (wrong := _places(question.evidence, len(texts))) is not None:
        yield f"evidence: {wrong}"
        return
    if question.kind == "unanswerable":
        yield from _unanswerable_defects(question, texts)
        return
    if question.near:
        yield "near: only an unanswerable question has it"
    if question.answer is None or not words(question.answer):
        yield f"answer: {question.answer!r} says nothing; only an unanswerable question has none"
        return
    evidence = [texts[turn] for turn in question.evidence]
    if not evidence:
        yield "evidence: none; name the turns that say the answer"
        return
    pieces = question.wordings[0]
    for piece in pieces:
        if not any(stands(piece, text) for text in evidence):
            yield f"answer: {piece!r} does not stand in turns {list(question.evidence)}"
    if all(stands(piece, question.question) for piece in pieces):
        yield f"question: it tells its answer, {question.answer!r}"
    if question.kind == "several":
        if len(evidence) < 2:
            yield f"evidence: {list(question.evidence)} is one turn; several means two or more"
        whole = any(all(stands(piece, text) for piece in pieces) for text in evidence)
        for turn, text in zip(question.evidence, evidence, strict=True):
            if not whole and not any(stands(piece, text) for piece in pieces):
                yield f"evidence: turn {turn} holds no part of {question.answer!r}"
    for number, wording in enumerate(question.also):
        if not (_alike(wording, question.answer) or any(stands(wording, text) for text in evidence)):
            yield f"also {number}: {wording!r} shares no word with {question.answer!r} and stands in no evidence"
        elif words(wording) in {words(question.answer), *map(words, question.also[:number])}:
            yield f"also {number}: {wording!r} is accepted anyway"
    yield from _superseded_defects(question, texts)


def _unanswerable_defects(question: Question, texts: Sequence[str]) -> Iterator[str]:
    for field in ("answer", "also", "evidence", "superseded"):
        if given := getattr(question, field):
            yield f"{field}: {given!r}, but the question is unanswerable"
    for turn, text in enumerate(texts):
        if question.near and all(stands(word, text) for word in question.near):
            yield f"near: turn {turn} has {', '.join(question.near)}; may it not answer the question?"


def _superseded_defects(question: Question, texts: Sequence[str]) -> Iterator[str]:
    old, changed = question.superseded, question.kind in ("update", "contradiction")
    if old is None or not changed:
        if changed or old is not None:
            yield f"superseded: {'missing' if changed else 'given'} for kind {question.kind!r}"
        return
    wrong = _places(old.evidence, len(texts))
    if wrong is None and not old.evidence:
        wrong = "none; name the turns that said it"
    if wrong is not None:
        yield f"superseded, evidence: {wrong}"
        return
    if words(old.answer) in {words(wording) for wording in (question.answer or "", *question.also)}:
        yield f"superseded, answer: {old.answer!r} is what is accepted now"
    if not any(stands(old.answer, texts[turn]) for turn in old.evidence):
        yield f"superseded, answer: {old.answer!r} does not stand in turns {list(old.evidence)}"
    last, first = max(old.evidence), min(question.evidence)
    if last > first or (last == first and question.kind == "update"):
        yield f"superseded, evidence: turn {last} is not before turn {first}, which says the new answer"


def _alike(one: str, other: str) -> bool:
    """Whether two wordings share a word or one begins as the other, blanks apart: leek and leeks, flower pot and flowerpot."""
    first, second = "".join(words(one)), "".join(words(other))
    begins = first.startswith(second) or second.startswith(first)
    return bool(set(words(one)) & set(words(other)) or (first and begins))


def _places(evidence: Sequence[int], turns: int) -> str | None:
    """What is wrong with a list of turns."""
    for turn in evidence:
        if not 0 <= turn < turns:
            return f"there is no turn {turn}; the dialogue has turns 0 to {turns - 1}"
    if list(evidence) != sorted(set(evidence)):
        return f"{list(evidence)}; name every turn once, in order"
    return None


# From JSON, field by field


def _dialogue(given: Any) -> Dialogue:
    fields = _fields(given, "the file", {"name": str, "about": str, "sessions": list, "questions": list})
    sessions, turn = [], 0
    for number, session in enumerate(fields["sessions"]):
        sessions.append(_session(session, f"session {number}", turn))
        turn += len(sessions[-1].turns)
    if not turn:
        raise ValueError("sessions: no turn in any of them")
    questions = [_question(question, f"question {number}") for number, question in enumerate(fields["questions"])]
    return Dialogue(fields["name"], fields["about"], tuple(sessions), tuple(questions))


def _session(given: Any, place: str, turn: int) -> Session:
    fields = _fields(given, place, {"when": str, "turns": list})
    try:
        when = date.fromisoformat(fields["when"]).isoformat()
    except ValueError as error:
        raise ValueError(f"{place}, when: {fields['when']!r} is no day; write it as 2024-03-02") from error
    turns = []
    for number, said in enumerate(fields["turns"], start=turn):
        said = _fields(said, f"{place}, turn {number}", {"role": str, "content": str})
        if said["role"] not in ROLES or not said["content"].strip():
            field, value = ("content", said["content"]) if said["role"] in ROLES else ("role", said["role"])
            raise ValueError(f"{place}, turn {number}, {field}: {value!r:.40}; a user or an assistant says something")
        turns.append(Turn(said["role"], said["content"]))
    return Session(when, tuple(turns))


def _question(given: Any, place: str) -> Question:
    required = {"question": str, "answer": str | None, "kind": str, "evidence": list}
    fields = _fields(given, place, required, {"also": list, "superseded": dict | None, "near": list})
    superseded = None
    if fields.get("superseded") is not None:
        old = _fields(fields["superseded"], f"{place}, superseded", {"answer": str, "evidence": list})
        superseded = Superseded(old["answer"], _all(old["evidence"], int, f"{place}, superseded, evidence"))
    return Question(
        fields["question"],
        fields["answer"],
        _all(fields.get("also", []), str, f"{place}, also"),
        fields["kind"],
        _all(fields["evidence"], int, f"{place}, evidence"),
        superseded,
        _all(fields.get("near", []), str, f"{place}, near"),
    )


def _fields(given: Any, place: str, required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> dict:
    """A JSON object whose fields are known and of their kind."""
    if not isinstance(given, dict):
        raise ValueError(f"{place} is {given!r:.40}; give an object with {', '.join(required)}")
    kinds = {**required, **(optional or {})}
    for field in required:
        if field not in given:
            raise ValueError(f"{place}, {field}: missing")
    for field, value in given.items():
        if field not in kinds:
            raise ValueError(f"{place}, {field}: unknown; the fields are {', '.join(kinds)}")
        if not isinstance(value, kinds[field]):
            kind = getattr(kinds[field], "__name__", str(kinds[field]))
            raise ValueError(f"{place}, {field}: {value!r:.40} is no {kind}")
    return given


def _all(values: list, kind: type, place: str) -> tuple:
    for value in values:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{place}: {value!r:.40} is no {kind.__name__}")
    return tuple(values)
