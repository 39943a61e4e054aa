"""Two results are the same, or the first difference is named."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fmlab.optimizations.same import first_difference

numbers = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20)


class Two(NamedTuple):
    a: object
    b: object


@dataclass(frozen=True)
class Box:
    held: object


@given(numbers, st.data())
@settings(max_examples=60, deadline=None)
def test_one_element_changed_is_found_and_named(values, data):
    place = data.draw(st.integers(0, len(values) - 1))
    changed = [*values]
    changed[place] += 1.0
    for kind in (list, tuple, np.array, torch.tensor):
        assert first_difference(values, kind(values)) is None
        gap = first_difference(kind(values), kind(changed))
        assert gap is not None and f"[{place}]" in gap, gap


@given(numbers, st.floats(1e-6, 1.0))
@settings(max_examples=60, deadline=None)
def test_the_tolerance_is_absolute_and_inclusive(values, tolerance):
    far = [value + 2 * tolerance for value in values]
    assert first_difference(values, far, tolerance) is not None
    assert first_difference(values, values, tolerance) is None
    assert first_difference([0.0], [tolerance], tolerance) is None


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        ([1, 2], [1, 2, 3], "2 items, then 3"),
        (np.zeros((2, 3)), np.zeros((3, 2)), "shape (2, 3), then (3, 2)"),
        ({"a": 1}, {"b": 1}, "key 'a' is in one of the two only"),
        ({"a": [1, "x"]}, {"a": [1, "y"]}, "result['a'][1]: 'x', then 'y'"),
        ({1, 2}, {1, 3}, "2 is in one of the two only"),
        ("a", b"a", "(str, then bytes)"),
        (None, 0, "something else, then numbers"),
        ("1", 1, "something else, then numbers"),
        (Box([1.0]), Box([2.0]), "result['held'][0]: 1.0, then 2.0"),
        (Two(1, "x"), Two(1, "y"), "result[1]: 'x', then 'y'"),
        (torch.tensor([True, False]), torch.tensor([True, True]), "result[1]: False, then True"),
        (float("nan"), 0.0, "result: nan, then 0.0"),
        (pd.DataFrame({"a": [1, 2]}), pd.DataFrame({"a": [1, 3]}), "result['a'][1]: 2, then 3"),
        (10**6, 10**6 + 1, "result: 1000000, then 1000001"),
    ],
)
def test_what_differs_is_said(expected, found, said):
    assert said in str(first_difference(expected, found))


@pytest.mark.parametrize(
    ("expected", "found"),
    [
        ([1, 2], (1, 2)),
        ([1.0, 2.0], np.array([1, 2])),
        (np.array([0, 1]), torch.tensor([False, True])),
        (torch.eye(3), torch.eye(3).to_sparse_coo()),
        (torch.eye(3), torch.eye(3).to_sparse_csr()),
        ([np.nan, np.inf], [np.nan, np.inf]),
        ([["a"], {"b": None}], [["a"], {"b": None}]),
        (np.array(["a"]).tolist(), ["a"]),
        ([], []),
        ([], np.zeros(0)),
        (torch.tensor([1.0], dtype=torch.bfloat16), [1.0]),
    ],
)
def test_what_holds_the_numbers_does_not_matter(expected, found):
    assert first_difference(expected, found) is None


def test_a_whole_number_is_compared_exactly_beyond_what_a_float_holds():
    assert first_difference(2**60, 2**60 + 1) is not None
    assert first_difference(np.array([2**60]), np.array([2**60 + 1])) is not None
