"""Files with one JSON value a line, read so that whatever is wrong with one is said with its line."""

import json
import json.scanner
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any


def json_lines(path: str | PathLike[str], what: str) -> Iterator[tuple[str, Any]]:
    """Each value with where it stands ("FILE, line N"); lines without text are counted and left out.

    A line ends at a line feed alone: U+2028 and its like may stand in a JSON string. Raises FileNotFoundError, and
    ValueError, which says that `what` ("a request") is one line, for one that is not UTF-8 or not JSON.
    """
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                value = json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as reason:  # UTF-8, JSON, a number or a nesting beyond all measure
                raise ValueError(f"{where} is no JSON ({reason}); {what} is one line") from reason
            yield where, value


def json_places(text: str) -> tuple[Any, dict[int, int]]:
    """One JSON value over many lines, and the line on which each object in it begins, by the object's id. Raises
    ValueError for what is no JSON."""
    decoder, lines = json.JSONDecoder(), {}

    def placed(state: tuple[str, int], *rest: Any) -> tuple[Any, int]:
        value, end = json.decoder.JSONObject(state, *rest)
        lines[id(value)] = text.count("\n", 0, state[1]) + 1
        return value, end

    decoder.parse_object = placed
    decoder.scan_once = json.scanner.py_make_scanner(decoder)  # the one in C knows no place
    return decoder.decode(text), lines
