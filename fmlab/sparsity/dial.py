"""Patterns by their density: which are alive, which of a pattern's settings turns its density, and how far."""

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from .dynamic import AntiDiagonal, BlockTopK, QuestTopK, VerticalSlash
from .oracle import Oracle
from .pattern import Pattern
from .static import BigBird, Dilated, LocalGlobal, SlidingBlocks, Streaming, Strided

OWN = (
    SlidingBlocks, Streaming, LocalGlobal, BigBird, Strided, Dilated,
    VerticalSlash, BlockTopK, QuestTopK, AntiDiagonal, Oracle,
)  # fmt: skip
"""The lab's own patterns: those by position, those by queries and keys, and the bound."""
DIALS = {Streaming: "window", BigBird: "random", VerticalSlash: "slash"}
"""The setting that turns the density, where it is not the first number."""
GAP = 0.03
"""Between two stops of a dial, in density; so the nearest is at most half as far from what is wanted."""
_LEAST = 0.002  # between two stops of a share, whatever the densities


class Stop(NamedTuple):
    """A value of the setting, and the density of the pattern with it."""

    value: int | float
    density: float


def living_patterns() -> list[type[Pattern]]:
    """The lab's own patterns, then every other one alive in this process that can be made without saying more, by name.

    A class defined again appears once, the newest. What joins patterns (`|`, `&`) is none of its own.
    """
    found, waiting = {}, [Pattern]
    while waiting:
        children = waiting.pop().__subclasses__()
        waiting += children
        found |= {(c.__module__, c.__qualname__): c for c in children if not inspect.isabstract(c) and _ready(c)}
    return [*OWN, *sorted((c for c in found.values() if c not in OWN), key=lambda c: c.__name__)]


def dial(kind: type[Pattern]) -> str | None:
    """The setting that turns the density of such patterns; None where there is no number to turn."""
    numbers = [field.name for field in settings(kind) if isinstance(_default(field), int | float)]
    return DIALS.get(kind, numbers[0] if numbers else None)


def stops(
    pattern: Pattern,
    density: Callable[[Pattern], float],
    tokens: int,
    check: Callable[[], None] = lambda: None,
) -> list[Stop]:
    """What the dial of a pattern can reach, the other settings as they are, in order of the value.

    A count goes up to `tokens`, a share of one from .01 to 1; between two stops more than GAP apart in density others
    are tried, but no nearer than a sixteenth of a count: blocks make the density jump. `density` is asked some forty
    times, and `check` before each, which may raise to stop.
    """
    name = dial(type(pattern))
    if name is None:
        return []
    whole = isinstance(getattr(pattern, name), int)

    def stop(value: int | float) -> Stop:
        check()
        return Stop(value, density(replace(pattern, **{name: value})))

    found, at = [], 0
    for value in _octaves(pattern, name, tokens) if whole else [0.01, 0.03, 0.1, 0.3, 0.6, 1.0]:
        found.append(stop(value))
        if len(found) > 1 and found[-2].density < found[-1].density == 1:
            break  # all there is to see is seen
    while at + 1 < len(found):
        (low, below), (high, above) = found[at : at + 2]
        middle = (low + high) // 2 if whole else round((low + high) / 2, 4)
        if abs(above - below) > GAP and high - low > (max(1, low // 16) if whole else _LEAST):
            found.insert(at + 1, stop(middle))
        else:
            at += 1
    return found


def at_density(pattern: Pattern, found: list[Stop], wanted: float) -> Pattern:
    """The pattern with its dial at the stop that comes nearest. Raises ValueError for a pattern without a dial."""
    name = dial(type(pattern))
    if name is None or not found:
        raise ValueError(f"{pattern!r} has no number that turns its density; give a pattern with one")
    return replace(pattern, **{name: min(found, key=lambda stop: abs(stop.density - wanted)).value})


def settings(kind: type[Pattern]) -> list[Field]:
    """The fields that a pattern is made of."""
    return [field for field in fields(kind) if field.init] if is_dataclass(kind) else []


def density_over(q: Float[Tensor, "batch heads n d"], k: Float[Tensor, "batch kv_heads m d"], block: int) -> Callable:
    """How dense a pattern is over these queries and keys, as `stops` asks it."""
    return lambda pattern: pattern.blocks(q, k, block).density


def _octaves(pattern: Pattern, name: str, tokens: int) -> list[int]:
    """0 where the pattern takes it, 1, 2, 4 … and all tokens."""
    values = [1 << power for power in range(tokens.bit_length()) if 1 << power < tokens] + [tokens]
    try:
        replace(pattern, **{name: 0})
    except ValueError:
        return values
    return [0, *values]


def _default(field: Field) -> object:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _ready(kind: type[Pattern]) -> bool:
    return all(field.default is not MISSING or field.default_factory is not MISSING for field in settings(kind))
