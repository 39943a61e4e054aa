"""Conversations on disk: versioned JSON, written whole or not at all, every field checked when it is read."""

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .span import Span
from .state import State, Stats

FORMAT = "fmlab chat"
VERSION = 1


class CheckpointError(ValueError):
    """A file is no conversation that this fmlab can go on with. Says what is wrong and what mends it."""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds."""

    system: str | None
    max_new_tokens: int
    model: str
    source: str
    memory: str
    """The repr of the memory."""
    messages: tuple[dict[str, str], ...]
    kept: tuple[Span, ...]
    stats: Stats


def write(
    path: str | os.PathLike[str], state: State, system: str | None, max_new_tokens: int, lm: Any, memory: Any
) -> None:
    """Write a conversation to `path` (its folder is made): a reader finds the old file or the new one, whole, even after
    the machine went down."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "system": system,
        "max_new_tokens": max_new_tokens,
        "model": lm.name,
        "source": lm.source,
        "memory": repr(memory),
        "messages": [{"role": span.role, "content": span.text} for span in state.spans],
        "kept": [asdict(span) for span in state.kept],
        "stats": asdict(state.stats),
    }
    _replace(Path(path).expanduser().resolve(), json.dumps(content, indent=1))


def read(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a conversation. Raises CheckpointError; FileNotFoundError where there is no file."""
    path = Path(path).expanduser()
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as reason:  # also of bytes that are no UTF-8
        raise CheckpointError(
            f"{path} is no whole JSON ({reason}); it is foreign or was cut short: give another file, or the copy you have"
        ) from reason
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} is JSON, but no conversation of fmlab; give a file that ChatSession.save wrote")
    version = content.get("version")
    if isinstance(version, bool) or not isinstance(version, int):
        raise CheckpointError(f"{path}: version is {version!r:.40}, no number; give a file that ChatSession.save wrote")
    if version > VERSION:
        raise CheckpointError(f"{path} is of version {version}, this fmlab reads {VERSION}; update fmlab")
    if version < VERSION:
        raise CheckpointError(f"{path} is of version {version}, which no fmlab wrote; give another file")
    return _Fields(path, content).checkpoint()


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


class _Fields:
    """Takes the fields out of a file's content and names the one that is wrong."""

    def __init__(self, path: Path, content: dict[str, Any]):
        self.path, self.content = path, content

    def checkpoint(self) -> Checkpoint:
        text = (str,)
        return Checkpoint(
            system=self.take(self.content, "system", (str, type(None))),
            max_new_tokens=self.count(self.content, "max_new_tokens", least=1),
            model=self.take(self.content, "model", text),
            source=self.take(self.content, "source", text),
            memory=self.take(self.content, "memory", text),
            messages=tuple(
                {name: self.take(message, f"messages[{i}].{name}", text) for name in ("role", "content")}
                for i, message in enumerate(self.take(self.content, "messages", (list,)))
            ),
            kept=tuple(
                self.span(span, f"kept[{i}]") for i, span in enumerate(self.take(self.content, "kept", (list,)))
            ),
            stats=self.stats(self.take(self.content, "stats", (dict,))),
        )

    def span(self, content: Any, at: str) -> Span:
        sources = self.take(content, f"{at}.sources", (list,))
        return Span(
            self.take(content, f"{at}.text", (str,)),
            self.count(content, f"{at}.tokens"),
            self.take(content, f"{at}.role", (str,)),
            tuple(self.number(source, f"{at}.sources") for source in sources),
        )

    def stats(self, content: dict[str, Any]) -> Stats:
        unknown = {name for name, value in content.items() if value is None and hasattr(Stats, name)}
        may = {"prefilled", "reused", "said", "prefilled_in_all", "reused_in_all", "said_in_all"}
        return Stats(
            **{
                name: None if name in unknown & may else self.count(content, f"stats.{name}")
                for name in Stats.__dataclass_fields__
            }
        )

    def take(self, content: Any, name: str, kinds: tuple[type, ...]) -> Any:
        field = name.rpartition(".")[2]
        if not isinstance(content, dict) or field not in content:
            raise CheckpointError(f"{self.path}: {name} is missing; give a file that ChatSession.save wrote")
        if not isinstance(content[field], kinds):
            raise CheckpointError(
                f"{self.path}: {name} is {content[field]!r:.40}, no {' or '.join(kind.__name__ for kind in kinds)}; "
                "give a file that ChatSession.save wrote"
            )
        return content[field]

    def count(self, content: Any, name: str, least: int = 0) -> int:
        return self.number(self.take(content, name, (int,)), name, least)

    def number(self, value: Any, name: str, least: int = 0) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise CheckpointError(
                f"{self.path}: {name} is {value!r:.40}, no count; give a file that ChatSession.save wrote"
            )
        return value
