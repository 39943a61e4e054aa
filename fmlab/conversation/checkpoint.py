"""Conversations on disk: versioned JSON, written whole or not at all, every field checked when it is read."""

import json
import os
import secrets
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .span import Span
from .state import State, Stats, Stretch

FORMAT = "fmlab chat"
VERSION = 2  # 1 had one model, source and memory for the whole conversation
UNKNOWN = {
    "prefilled",
    "reused",
    "said",
    "prefilled_in_all",
    "reused_in_all",
    "said_in_all",
}  # figures that may be None
MEND = "give a file that ChatSession.save wrote, as it wrote it"


class CheckpointError(ValueError):
    """A file is no conversation that this fmlab can go on with. Says what is wrong and what mends it."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    system: str | None
    max_new_tokens: int
    messages: tuple[dict[str, str], ...]
    kept: tuple[Span, ...]
    stats: Stats
    stretches: tuple[Stretch, ...]


def write(path: str | os.PathLike[str], state: State, system: str | None, max_new_tokens: int) -> None:
    """Write a conversation to `path` (its folder is made): a reader finds the old file or the new one, whole, even after
    the machine went down."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "system": system,
        "max_new_tokens": max_new_tokens,
        "messages": [{"role": span.role, "content": span.text} for span in state.spans],
        "kept": [{name: getattr(span, name) for name in ("text", "tokens", "role", "sources")} for span in state.kept],
        "stats": asdict(state.stats),
        "stretches": [asdict(stretch) for stretch in state.stretches],
    }
    _replace(Path(path).expanduser().resolve(), json.dumps(content, indent=1))


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a conversation, of version 1 too. Raises CheckpointError; FileNotFoundError where there is no file."""
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as reason:  # also of bytes that are no UTF-8, and of [[[[ without end
        raise CheckpointError(f"{path} is no whole JSON ({reason}): it is foreign or was cut short; {MEND}") from reason
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is JSON, but no conversation of fmlab; {MEND}")
    version = _count(path, content, "version", least=1)
    if version > VERSION:
        raise CheckpointError(f"{path} is of version {version}, this fmlab reads 1 to {VERSION}; update fmlab")
    return _checkpoint(path, _from_1(path, content) if version == 1 else content)


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with beside.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)  # nothing is left of it after os.replace
    if os.name == "posix":  # the new name is on the disk only when its folder is
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _from_1(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    messages = len(_take(path, content, "messages", list))
    one = {name: _take(path, content, name, str) for name in ("model", "source", "memory")}
    return content | {"stretches": [{"messages": messages} | one] if messages else []}


def _checkpoint(path: Path, content: dict[str, Any]) -> Checkpoint:
    found = Checkpoint(
        system=_take(path, content, "system", str | None),
        max_new_tokens=_count(path, content, "max_new_tokens", least=1),
        messages=tuple(
            {name: _take(path, message, f"messages[{i}].{name}", str) for name in ("role", "content")}
            for i, message in enumerate(_take(path, content, "messages", list))
        ),
        kept=tuple(_span(path, span, f"kept[{i}]") for i, span in enumerate(_take(path, content, "kept", list))),
        stats=_stats(path, _take(path, content, "stats", dict)),
        stretches=tuple(
            Stretch(
                _count(path, stretch, f"stretches[{i}].messages"),
                *(_take(path, stretch, f"stretches[{i}].{name}", str) for name in ("model", "source", "memory")),
            )
            for i, stretch in enumerate(_take(path, content, "stretches", list))
        ),
    )
    for i, message in enumerate(found.messages):
        if message["role"] != ("user", "assistant")[i % 2]:
            raise CheckpointError(f"{path}: messages[{i}].role is {message['role']!r:.40}, out of turn; {MEND}")
    if sum(stretch.messages for stretch in found.stretches) != len(found.messages) or len(found.messages) % 2:
        raise CheckpointError(f"{path}: stretches are not of the {len(found.messages)} messages; {MEND}")
    return found


def _span(path: Path, content: Any, at: str) -> Span:
    text, role = (_take(path, content, f"{at}.{name}", str) for name in ("text", "role"))
    sources = [{"turn": turn} for turn in _take(path, content, f"{at}.sources", list)]
    turns = tuple(_count(path, source, f"{at}.sources.turn") for source in sources)
    if not role:
        raise CheckpointError(f"{path}: {at}.role is empty; {MEND}")
    return Span(text, _count(path, content, f"{at}.tokens"), role, turns)


def _stats(path: Path, content: dict[str, Any]) -> Stats:
    names = [field.name for field in fields(Stats)]
    unknown = {name for name in names if name in UNKNOWN and content.get(name, 0) is None}
    return Stats(**{name: None if name in unknown else _count(path, content, f"stats.{name}") for name in names})


def _take(path: Path, content: Any, name: str, kind: Any) -> Any:
    """The field that the last part of `name` names, if it is of this kind."""
    field = name.rpartition(".")[2]
    if not isinstance(content, dict) or field not in content:
        raise CheckpointError(f"{path}: {name} is missing; {MEND}")
    if not isinstance(content[field], kind):
        raise CheckpointError(
            f"{path}: {name} is {content[field]!r:.40}, not {getattr(kind, '__name__', kind)}; {MEND}"
        )
    return content[field]


def _count(path: Path, content: Any, name: str, least: int = 0) -> int:
    value = _take(path, content, name, int)
    if isinstance(value, bool) or value < least:
        raise CheckpointError(f"{path}: {name} is {value!r}, not a number of {least} or more; {MEND}")
    return value
