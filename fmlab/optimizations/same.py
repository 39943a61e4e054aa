"""Whether two results are the same, and if not, where they first differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from fractions import Fraction
from math import inf, isfinite

import numpy as np
import pandas as pd
import torch
from scipy import sparse

EXACT = 2**53  # beyond it a float does not hold every whole number


def first_difference(
    expected: object, found: object, tolerance: float | int = 0.0, where: str = "result"
) -> str | None:
    """The first place at which two results differ, and how; None where they are the same.

    Numbers may differ by `tolerance` (absolute; NaN equals NaN), everything else not at all. What holds the numbers does
    not matter (a list of any depth, an array, a tensor, sparse too, of any dtype), nor whether a sequence is a list or a
    tuple. Of pandas' tables the index and the names count. What a first look exhausts, such as a generator, is the same
    as nothing. Raises ValueError for a tolerance below 0 or without an end.
    """
    if not 0 <= tolerance < inf:
        raise ValueError(f"tolerance={tolerance}; give 0 (exactly equal) or a number above")
    for value in (expected, found):
        if isinstance(value, Iterator):
            return (
                f"{where}: a {type(value).__name__}, which is empty after the first look; give a list of what is in it"
            )
    if sparse.issparse(expected) and sparse.issparse(found) and expected.ndim == found.ndim == 2:
        return _of_sparse(expected, found, tolerance, where)
    if _words(expected) and _words(found) and expected.shape != found.shape:
        return f"{where}: shape {expected.shape}, then {found.shape}"
    expected, found = (_listed(value) if _words(value) else value for value in (expected, found))
    if _numbers(expected) or _numbers(found):
        if not (_nested(expected) or _nested(found)):
            return _of_arrays(_array(expected), _array(found), tolerance, where)
        expected, found = (value if _nested(value) else _rows(value) for value in (expected, found))
    if is_dataclass(expected) and type(expected) is type(found):
        expected, found = ({f.name: getattr(each, f.name) for f in fields(each)} for each in (expected, found))
    if isinstance(expected, pd.DataFrame | pd.Series) and type(expected) is type(found):
        parts = _of_table(expected, found, where)
    elif isinstance(expected, Mapping) and isinstance(found, Mapping):
        if missing := [key for key in (*expected, *found) if key not in expected or key not in found]:
            return f"{where}: key {missing[0]!r} is in one of the two only"
        parts = [(expected[key], found[key], f"{where}[{key!r}]") for key in expected]
    elif _sequence(expected) and _sequence(found):
        if len(expected) != len(found):
            return f"{where}: {len(expected)} items, then {len(found)}"
        plain = _array(expected), _array(found)
        if all(array is not None for array in plain):
            return _of_arrays(*plain, tolerance, where)
        parts = [(a, b, f"{where}[{place}]") for place, (a, b) in enumerate(zip(expected, found, strict=True))]
    elif isinstance(expected, set | frozenset) and isinstance(found, set | frozenset):
        only = sorted(map(repr, expected ^ found))
        return f"{where}: {only[0]} is in one of the two only" if only else None
    else:
        alike = expected is found or (type(expected) is type(found) and expected == found)
        return None if alike else f"{where}: {_short(expected, found)}"
    return next((gap for a, b, name in parts if (gap := first_difference(a, b, tolerance, name))), None)


def _numbers(value: object) -> bool:
    return sparse.issparse(value) or isinstance(
        value, torch.Tensor | np.ndarray | np.generic | bool | int | float | complex
    )


def _words(value: object) -> bool:
    """Whether this is NumPy's, and holds something other than numbers."""
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind not in "biufc"


def _listed(value: np.ndarray | np.generic) -> object:
    """What it holds as Python has it; of times, which Python has less finely, their count of units beside their kind."""
    return (str(value.dtype), value.view(np.int64).tolist()) if value.dtype.kind in "mM" else value.tolist()


def _sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _nested(value: object) -> bool:
    """Whether this is a list of something other than numbers."""
    return _sequence(value) and _array(value) is None


def _rows(value: object) -> object:
    """The items of an array along its first axis; what has none is left as it is."""
    array = _array(value)
    return value if array is None or not array.ndim else list(array)


def _array(value: object) -> np.ndarray | None:
    """The numbers of an array, a tensor or a flat list of numbers; None for anything else.

    Whole numbers that no dtype holds exactly stay Python's.
    """
    if isinstance(value, torch.Tensor):
        value = (value if value.layout is torch.strided else value.to_dense()).detach().cpu()
        known = not value.is_floating_point() or value.dtype in (torch.float32, torch.float64)
        value = (value if known else value.float()).resolve_conj().resolve_neg().numpy()
    elif sparse.issparse(value):
        value = value.toarray()
    elif _sequence(value):
        if not all(isinstance(item, bool | int | float | complex | np.number | np.bool_) for item in value):
            return None
        array = np.asarray(value)
        if array.dtype.kind in "fcO" and any(isinstance(v, int | np.integer) and abs(int(v)) > EXACT for v in value):
            return np.array([v.item() if isinstance(v, np.generic) else v for v in value], dtype=object)
        return array
    elif not _numbers(value):
        return None
    return np.asarray(value)


def _of_arrays(expected: np.ndarray | None, found: np.ndarray | None, tolerance: float | int, where: str) -> str | None:
    if expected is None or found is None:
        kinds = ["numbers" if array is not None else "something else" for array in (expected, found)]
        return f"{where}: {kinds[0]}, then {kinds[1]}"
    if expected.shape != found.shape:
        return f"{where}: shape {expected.shape}, then {found.shape}"
    same = _near(expected, found, tolerance)
    if same.all():
        return None
    place = tuple(int(axis[0]) for axis in np.nonzero(~np.atleast_1d(same)))
    at = where + (f"[{', '.join(map(str, place))}]" if expected.ndim else "")
    first, second = np.atleast_1d(expected).item(*place), np.atleast_1d(found).item(*place)
    others = f"; {int((~same).sum()):,} of {same.size:,} differ" if same.size > 1 else ""
    return f"{at}: {first!r}, then {second!r}{others}"


def _of_sparse(
    expected: sparse.sparray | sparse.spmatrix,
    found: sparse.sparray | sparse.spmatrix,
    tolerance: float | int,
    where: str,
) -> str | None:
    """Without making either dense: at every place where one of the two has something."""
    if expected.shape != found.shape:
        return f"{where}: shape {expected.shape}, then {found.shape}"
    rows, columns = np.unique(np.concatenate([np.stack(each.nonzero()) for each in (expected, found)], 1), axis=1)
    picked = (each.tocsr()[rows, columns] for each in (expected, found))
    first, second = (np.ravel(each.toarray() if sparse.issparse(each) else each) for each in picked)
    same = _near(first, second, tolerance)
    if same.all():
        return None
    at = int(same.argmin())
    return f"{where}[{rows[at]}, {columns[at]}]: {first.item(at)!r}, then {second.item(at)!r}; {int((~same).sum()):,} differ"


def _of_table(
    expected: pd.DataFrame | pd.Series, found: pd.DataFrame | pd.Series, where: str
) -> list[tuple[object, object, str]]:
    """What is to be the same, the names first; columns by their place, since two may have one name."""
    index = [
        (list(expected.index.names), list(found.index.names), f"{where}.index.names"),
        (expected.index.tolist(), found.index.tolist(), f"{where}.index"),
    ]
    if isinstance(expected, pd.Series):
        return [(expected.name, found.name, f"{where}.name"), *index, (expected.tolist(), found.tolist(), where)]
    columns = [
        (expected.iloc[:, at].tolist(), found.iloc[:, at].tolist(), f"{where}[{name!r}]")
        for at, name in enumerate(expected.columns[: found.shape[1]])
    ]
    return [(expected.columns.tolist(), found.columns.tolist(), f"{where}.columns"), *index, *columns]


def _near(expected: np.ndarray, found: np.ndarray, tolerance: float | int) -> np.ndarray:
    """Where two arrays of one shape are the same."""
    mixed = expected.dtype != found.dtype or tolerance
    if any(_beyond_floats(array) for array in (expected, found)) and mixed or expected.dtype.kind == "O":
        pairs = zip(expected.ravel().tolist(), found.ravel().tolist(), strict=True)
        return np.array([_close(a, b, tolerance) for a, b in pairs], dtype=bool).reshape(expected.shape)
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    if tolerance and not same.all():
        wide = np.result_type(np.float64, expected.dtype, found.dtype)
        with np.errstate(invalid="ignore", over="ignore"):  # inf - inf
            same = same | (np.abs(expected.astype(wide) - found.astype(wide)) <= tolerance)
    return np.asarray(same)


def _beyond_floats(array: np.ndarray) -> bool:
    """Whether it holds a whole number that is another as a float."""
    if array.dtype.kind not in "iu" or not array.size:
        return array.dtype.kind == "O"
    return int(array.max()) > EXACT or int(array.min()) < -EXACT


def _close(expected: int | float | complex, found: int | float | complex, tolerance: float | int) -> bool:
    """Exactly, whatever the size of the numbers."""
    if expected == found or (expected != expected and found != found):
        return True
    if isinstance(expected, complex) or isinstance(found, complex):
        return abs(expected - found) <= tolerance
    if not all(isinstance(number, int) or isfinite(number) for number in (expected, found)):
        return False
    return abs(Fraction(expected) - Fraction(found)) <= tolerance


def _short(expected: object, found: object) -> str:
    kinds = "" if type(expected) is type(found) else f" ({type(expected).__name__}, then {type(found).__name__})"
    return f"{expected!r:.60}, then {found!r:.60}{kinds}"
