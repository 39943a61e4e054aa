"""Whether two results are the same, and if not, where they first differ."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass

import numpy as np
import pandas as pd
import torch


def first_difference(
    expected: object, found: object, tolerance: float | int = 0.0, where: str = "result"
) -> str | None:
    """The first place at which two results differ, and how; None where they are the same.

    Numbers may differ by `tolerance` (absolute; NaN equals NaN), everything else not at all. What holds the numbers does
    not matter (a list, an array, a tensor, sparse too, of any dtype), nor whether a sequence is a list or a tuple.
    """
    if _numbers(expected) or _numbers(found):
        return _of_arrays(_array(expected), _array(found), tolerance, where)
    if isinstance(expected, pd.DataFrame) and isinstance(found, pd.DataFrame):
        expected, found = expected.to_dict("list"), found.to_dict("list")
    if is_dataclass(expected) and type(expected) is type(found):
        expected, found = ({f.name: getattr(each, f.name) for f in fields(each)} for each in (expected, found))
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
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
        return None if type(expected) is type(found) and expected == found else f"{where}: {_short(expected, found)}"
    return next((gap for a, b, name in parts if (gap := first_difference(a, b, tolerance, name))), None)


def _numbers(value: object) -> bool:
    return isinstance(value, torch.Tensor | np.ndarray | np.generic | bool | int | float | complex)


def _sequence(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _array(value: object) -> np.ndarray | None:
    """The numbers of an array, a tensor or a list of numbers, of any depth; None for anything else."""
    if isinstance(value, torch.Tensor):
        value = (value if value.layout is torch.strided else value.to_dense()).detach().cpu()
        value = (value.float() if value.dtype in (torch.bfloat16, torch.float16) else value).resolve_conj().numpy()
    elif _sequence(value) and not all(isinstance(item, bool | int | float | np.generic) for item in value):
        return None
    elif not (_numbers(value) or _sequence(value)):
        return None
    array = np.asarray(value)
    return array if array.dtype.kind in "biufc" else None


def _of_arrays(expected: np.ndarray | None, found: np.ndarray | None, tolerance: float | int, where: str) -> str | None:
    if expected is None or found is None:
        kinds = ["numbers" if array is not None else "something else" for array in (expected, found)]
        return f"{where}: {kinds[0]}, then {kinds[1]}"
    if expected.shape != found.shape:
        return f"{where}: shape {expected.shape}, then {found.shape}"
    same = expected == found
    if (expected.dtype.kind in "fc" or found.dtype.kind in "fc") and not same.all():
        with np.errstate(invalid="ignore"):  # inf - inf
            near = np.abs(expected.astype(np.complex128) - found.astype(np.complex128)) <= tolerance
        same = same | near | (np.isnan(expected) & np.isnan(found))
    elif tolerance and not same.all():
        same = np.abs(expected.astype(np.float64) - found.astype(np.float64)) <= tolerance
    if same.all():
        return None
    place = tuple(int(axis[0]) for axis in np.nonzero(~np.atleast_1d(same)))
    at = where + (f"[{', '.join(map(str, place))}]" if expected.ndim else "")
    first, second = np.atleast_1d(expected)[place].item(), np.atleast_1d(found)[place].item()
    others = f"; {int((~same).sum()):,} of {same.size:,} differ" if same.size > 1 else ""
    return f"{at}: {first!r}, then {second!r}{others}"


def _short(expected: object, found: object) -> str:
    kinds = "" if type(expected) is type(found) else f" ({type(expected).__name__}, then {type(found).__name__})"
    return f"{expected!r:.60}, then {found!r:.60}{kinds}"
