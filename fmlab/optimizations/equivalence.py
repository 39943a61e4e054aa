"""The proof before a speed-up: both ways of a pair give the same, and neither changes what it is given."""

import random
from collections.abc import Callable
from functools import partial

from .held import held
from .pair import Pair
from .same import first_difference

FRESH = (1_000, 1_001)  # seeds of inputs on which both must give the same; a third one is drawn each time
DRAWN = range(10_000, 2**31)
TIMED = 0  # the seed of what is timed
SIDES = ("baseline", "optimised")


class NotEquivalent(ValueError):
    """The optimised way gives something else, or a way changes its inputs, so that there is no speed-up to speak of."""


class SideFailed(RuntimeError):
    """One of the two ways, or what gives them their inputs, raised an error, so that there is no speed-up to speak of."""


def check(pair: Pair, size: int) -> None:
    """Prove both ways on three fresh inputs of a size. Raises as `prove` does, and SideFailed where the floor raises."""
    if pair.floor:
        called(f"{pair.name} at {size} {pair.unit}: the floor", partial(pair.floor, size))
    for seed in (*FRESH, random.SystemRandom().choice(DRAWN)):
        prove(pair, size, seed)


def prove(pair: Pair, size: int, seed: int) -> tuple:
    """Inputs on which both ways have given the same, each on its own copy, and which neither has changed.

    Raises NotEquivalent with the first difference; SideFailed where one of the two or the inputs raise.
    """
    at = place(pair, size, seed)
    given = [_inputs(pair, size, seed) for _ in SIDES]
    before = looked_into(at, "inputs", held, given[0])
    if gap := looked_into(at, "inputs", first_difference, before, held(given[1]), 0.0, "inputs"):
        raise NotEquivalent(f"{at}: made again, {gap}; let the seed say all that is drawn")
    results = []
    for name, own in zip(SIDES, given, strict=True):
        result = called(f"{at}: the {name} way", partial(getattr(pair, name), *own))
        results.append(looked_into(at, "result", held, result, _itself))  # the next call may write over it
        unchanged(f"{at}: the {name} way", before, own)
    if gap := looked_into(at, "result", first_difference, *results, pair.tolerance):
        raise NotEquivalent(
            f"{at}: {gap} (tolerance {pair.tolerance:g}); the optimised way gives something else, so there is no speed-up"
        )
    if seed == FRESH[0]:
        again = called(f"{at}: the baseline way", partial(pair.baseline, *given[0]))
        if gap := looked_into(at, "result", first_difference, results[0], again, pair.tolerance):
            raise NotEquivalent(f"{at}: the baseline once more gives {gap}; it is not the same twice")
    return given[0]


def unchanged(way: str, before: object, given: tuple) -> None:
    """Raises NotEquivalent, which names the way, where what it was given is no longer what it was `before`."""
    if gap := looked_into(way, "inputs", first_difference, before, held(given), 0.0, "inputs"):
        raise NotEquivalent(f"{way} changes its inputs: {gap}; let it work on a copy")


def called(what: str, run: Callable[[], object]) -> object:
    """What a call gives. Raises SideFailed, which names what was called, for whatever it raises."""
    try:
        return run()
    except Exception as error:  # whatever it is, it is the pair's, and is raised on with the name
        raise failed(what, error) from error


def failed(what: str, error: BaseException) -> SideFailed:
    """In the words of the tables."""
    return SideFailed(f"{what} raised {type(error).__name__}: {error}")


def looked_into(at: str, what: str, look: Callable[..., object], *given: object) -> object:
    """What a look into the pair's own objects gives. Raises NotEquivalent where they cannot be copied or compared."""
    try:
        return look(*given)
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        kinds = " and ".join(dict.fromkeys(type(value).__name__ for value in given[:2] if value is not _itself))
        raise NotEquivalent(
            f"{at}: {what} cannot be compared ({kinds}), {type(error).__name__}: {error}; give numbers, words or "
            "collections of them"
        ) from error


def place(pair: Pair, size: int, seed: int) -> str:
    """Where in the proof something came to light, so that it can be done again."""
    why = " (timed)" if seed == TIMED else " (drawn)" if seed in DRAWN else ""
    return f"{pair.name} at {size} {pair.unit}, seed {seed}{why}"


def _inputs(pair: Pair, size: int, seed: int) -> tuple:
    at = place(pair, size, seed)
    given = called(f"{at}: the inputs", partial(pair.inputs, size, seed))
    if not isinstance(given, tuple):
        kind = type(given).__name__
        raise SideFailed(f"{at}: the inputs are a {kind}; give a tuple of arguments, (x,) of a single one")
    return given


def _itself(part: object) -> object:
    return part
