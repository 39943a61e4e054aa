"""Real meetings with the turns that answer each question, read from a file of QMSum (arXiv:2104.05938)."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

from ..lines import json_lines
from .template import Message


@dataclass(frozen=True)
class Asked:
    """A question about a meeting, its answer as people wrote it, and the turns that bear it out."""

    question: str
    answer: str
    evidence: tuple[int, ...]


@dataclass(frozen=True)
class Meeting:
    """A meeting: `messages` are its turns, each "Speaker: words" with the role "user"; `name` is its place in the file."""

    name: str
    messages: tuple[Message, ...]
    questions: tuple[Asked, ...]

    def __repr__(self) -> str:
        return f"Meeting({self.name}, {len(self.messages)} turns, {len(self.questions)} questions)"


def meetings(path: str | PathLike[str]) -> tuple[Meeting, ...]:
    """Every meeting of a file in QMSum's JSON lines, whose `specific_query_list` names turns as evidence.

    Questions without evidence are left out. Raises FileNotFoundError, and ValueError for what is malformed, naming the
    line and the field.
    """
    records = enumerate(json_lines(path, "a meeting"), start=1)
    found = tuple(_meeting(record, str(number), where) for number, (where, record) in records)
    if not found:
        raise ValueError(f"{path} is empty; give a file with a meeting a line")
    return found


def _meeting(record: Any, name: str, where: str) -> Meeting:
    turns = _field(record, "meeting_transcripts", list, where)
    messages = []
    for place, turn in enumerate(turns):
        at = f"{where}, meeting_transcripts[{place}]"
        speaker, said = (_field(turn, name, str, at) for name in ("speaker", "content"))
        messages.append({"role": "user", "content": f"{speaker}: {said}"})
    questions = []
    for place, query in enumerate(_field(record, "specific_query_list", list, where)):
        at = f"{where}, specific_query_list[{place}]"
        evidence = set()
        for span in _field(query, "relevant_text_span", list, at):
            evidence |= set(_turns(span, len(messages), f"{at}.relevant_text_span"))
        if evidence:
            asked = Asked(_field(query, "query", str, at), _field(query, "answer", str, at), tuple(sorted(evidence)))
            questions.append(asked)
    return Meeting(name, tuple(messages), tuple(questions))


def _field(record: Any, name: str, kind: type, where: str) -> Any:
    value = record.get(name) if isinstance(record, Mapping) else None
    if not isinstance(value, kind):
        raise ValueError(
            f"{where}: {name!r} is {value!r:.40}, not a {kind.__name__}; see the format of QMSum's jsonl files"
        )
    return value


def _turns(span: Any, turns: int, where: str) -> range:
    """The turns from first to last, both included, which the file gives as strings."""
    if not isinstance(span, list) or len(span) != 2 or not all(str(end).isdecimal() for end in span):
        raise ValueError(f"{where} is {span!r:.40}; give the first and the last turn")
    first, last = (int(end) for end in span)
    if not first <= last < turns:
        raise ValueError(f"{where} is {span!r:.40}, which are no turns of a meeting of {turns}")
    return range(first, last + 1)
