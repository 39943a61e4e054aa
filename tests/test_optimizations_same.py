"""Two results are the same, or the first difference is named."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

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
        ([2**53, 0.5], [2**53 + 1, 0.5], "result[0]: 9007199254740992.0, then 9007199254740993"),
        (np.array([2**53 + 1]), np.array([2.0**53]), "result[0]: 9007199254740993, then 9007199254740992.0"),
        (np.array([2**63], dtype=np.uint64), np.array([2**63 - 1]), "result[0]: 9223372036854775808, then"),
        ([2**70], [2**70 + 1], "result[0]: 1180591620717411303424, then 1180591620717411303425"),
        (pd.DataFrame({"a": [1]}, index=[3]), pd.DataFrame({"a": [1]}, index=[4]), "result.index[0]: 3, then 4"),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), pd.DataFrame([[5, 2]], columns=["a", "a"]), "result['a'][0]: 1"),
        (pd.DataFrame({"a": [1]}), pd.DataFrame({"a": [1], "b": [2]}), "result.columns: 1 items, then 2"),
        (pd.Series([1, 2]), pd.Series([1, 3]), "result[1]: 2, then 3"),
        (pd.Series([1], name="a"), pd.Series([1], name="b"), "result.name: 'a', then 'b'"),
        (sparse.csr_array(np.eye(2)), sparse.coo_array(np.diag([1.0, 2.0])), "result[1, 1]: 1.0, then 2.0; 1 differ"),
        (sparse.eye_array(3).tocsr(), np.zeros((3, 3)), "result[0, 0]: 1.0, then 0.0"),
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 5]]), "result[1][1]: 4, then 5"),
        ([[1, 2], [3]], np.array([[1, 2], [3, 4]]), "result[1]: shape (1,), then (2,)"),
        (np.array(["a", "b"]), np.array(["a", "c"]), "result[1]: 'b', then 'c'"),
        (np.empty((0, 2), "U1"), np.empty((0, 3), "U1"), "shape (0, 2), then (0, 3)"),
        (np.array([0, 1], "M8[ns]"), np.array([0, 2], "M8[ns]"), "result[1][1]: 1, then 2"),
        (torch.tensor([1.0]).to(torch.float8_e5m2), [2.0], "result[0]: 1.0, then 2.0"),
        ((n for n in [1]), [1], "result: a generator, which is empty after the first look; give a list"),
        ([1], map(int, [1]), "result: a map, which is empty"),
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
        (torch.tensor([1.5]).to(torch.float8_e4m3fn), [1.5]),
        (np.array(["a", "b"]), np.array(["a", "b"])),
        (np.array([["a"], ["b"]]), [["a"], ["b"]]),
        (np.str_("a"), "a"),
        ([2**70], [2**70]),
        (2**70, 2**70),
        ([2**70, 0.5, np.nan], (2**70, 0.5, np.nan)),
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        ([[[1.0], [2.0]]], torch.tensor([[[1.0], [2.0]]])),
        ([torch.ones(2), torch.zeros(2)], np.array([[1, 1], [0, 0]])),
        (pd.Series([1.0, np.nan], index=["x", "y"]), pd.Series([1.0, np.nan], index=["x", "y"])),
        (pd.Series([1, None], dtype="Int64"), pd.Series([1, None], dtype="Int64")),
        (pd.DataFrame([[1, 2]], columns=["a", "a"]), pd.DataFrame([[1, 2]], columns=["a", "a"])),
        (sparse.csr_array(np.eye(2)), sparse.csc_matrix(np.eye(2))),
        (sparse.csr_array((2, 2)), sparse.coo_array(([0.0], ([0], [1])), shape=(2, 2))),
        (sparse.csr_array(np.eye(2)), torch.eye(2)),
        (np.array([0, 1], "M8[ns]"), np.array([0, 1], "M8[ns]")),
    ],
)
def test_what_holds_the_numbers_does_not_matter(expected, found):
    assert first_difference(expected, found) is None


def test_a_whole_number_is_compared_exactly_beyond_what_a_float_holds():
    assert first_difference(2**60, 2**60 + 1) is not None
    assert first_difference(np.array([2**60]), np.array([2**60 + 1])) is not None
    assert first_difference(np.array([2**60]), np.array([2**60 + 1]), 0.5) is not None
    assert first_difference(np.array([2**60]), np.array([2**60 + 1]), 1) is None


def test_sparse_matrices_are_not_made_dense():
    huge = sparse.coo_array(([1.0], ([5], [900_000])), shape=(1_000_000, 1_000_000))
    assert first_difference(huge, huge.tocsr()) is None
    assert "result[5, 900000]: 1.0, then 2.0" in str(first_difference(huge, huge * 2))
    assert first_difference(huge, huge * (1 + 1e-9), 1e-6) is None


@pytest.mark.parametrize("tolerance", [float("inf"), float("nan"), -1])
def test_a_tolerance_that_lets_everything_pass_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance="):
        first_difference(1, 2, tolerance)
