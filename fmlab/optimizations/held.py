"""What a value holds now, copied, so that it can be held against what it holds later."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields, is_dataclass

import numpy as np
import pandas as pd
import torch
from scipy import sparse

Fixed = str | bytes | bool | int | float | complex | np.generic | range | type | None


def held(value: object, other: Callable[[object], object] = type) -> object:
    """A copy of the numbers, words and collections in a value, in the form that `first_difference` compares.

    What is none of these, such as a model, a tokenizer or a function, is not looked into: `other` gives what stands for
    it, its type unless another is told. An iterator stays itself, since a look would change it.
    """
    if isinstance(value, Fixed | Iterator):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray | pd.DataFrame | pd.Series) or sparse.issparse(value):
        return value.copy()
    if is_dataclass(value):
        twin = copy(value)
        for field in fields(value):
            object.__setattr__(twin, field.name, held(getattr(value, field.name), other))
        return twin
    if isinstance(value, Mapping):
        return {key: held(part, other) for key, part in value.items()}
    if isinstance(value, Sequence):
        return list(value) if all(isinstance(part, Fixed) for part in value) else [held(part, other) for part in value]
    return frozenset(value) if isinstance(value, set | frozenset) else other(value)
