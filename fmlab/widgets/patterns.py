"""Attention patterns as controls: which are alive, their settings and the stops of their sliders, and back to a pattern."""

import inspect
from collections.abc import Mapping
from typing import Any

from ..sparsity.dial import dial, living_patterns
from ..sparsity.pattern import Pattern
from .controls import read, settings_of, shown


def catalogue(tokens: int) -> list[dict]:
    """Every pattern alive, as the picker shows it: key, name, first line of its docstring, settings, its dial."""
    kinds = living_patterns()
    names = [kind.__name__ for kind in kinds]
    return [
        {
            "key": key_of(kind),
            "name": kind.__name__ if names.count(kind.__name__) == 1 else f"{kind.__name__} ({kind.__module__})",
            "summary": (inspect.getdoc(kind) or "").split("\n")[0],
            "fields": [field | {"stops": _stops(kind, field, tokens)} for field in settings_of(kind)],
            "dial": dial(kind),
        }
        for kind in kinds
    ]


def key_of(kind: type[Pattern]) -> str:
    """What names a pattern class for as long as the kernel lives; a class run again keeps it."""
    return f"{kind.__module__}.{kind.__qualname__}"


def build(key: str, values: Mapping[str, Any]) -> Pattern:
    """The pattern of these settings. Raises ValueError or TypeError, naming the setting, or what the class raises."""
    known = {key_of(kind): kind for kind in living_patterns()}
    if key not in known:
        raise ValueError(f"no pattern {key} is alive in this kernel; run the cell that defines it, or choose another")
    kind = known[key]
    controls = {field["name"]: field["kind"] for field in settings_of(kind)}
    if unknown := sorted(set(values) - set(controls)):
        raise ValueError(f"{kind.__name__} has no setting {', '.join(unknown)}; it has {', '.join(controls) or 'none'}")
    return kind(**{name: read(kind, name, controls[name], value) for name, value in values.items()})


def values_of(pattern: Pattern) -> dict[str, Any]:
    """The settings of a pattern as the controls hold them."""
    return {f["name"]: shown(getattr(pattern, f["name"]), f["kind"]) for f in settings_of(type(pattern))}


def _stops(kind: type[Pattern], field: dict, tokens: int) -> list[int | float] | None:
    """Of a slider: two counts an octave up to all tokens; a share in hundredths; None for what has no slider."""
    if field["kind"] == "int":
        octaves = {value for power in range(tokens.bit_length()) for value in (1 << power, 3 << power >> 1)}
        return [0] * _takes_none(kind, field["name"]) + sorted({v for v in octaves if v < tokens} | {tokens})
    if field["kind"] == "float" and field["max"] == 1:
        return [round(step / 100, 2) for step in range(1, 101)]
    return None


def _takes_none(kind: type[Pattern], name: str) -> bool:
    try:
        kind(**{name: 0})
    except ValueError:
        return False
    return True
