"""The best classes of an output."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.serve.classify import top_classes
from tests.serve.test_wire import calm


def test_rows_of_a_batch() -> None:
    value = np.array([[0.1, 0.9, 0.5], [3, 1, 2]], np.float32)
    got = top_classes("y", value, classes=2, labels=("a", "b"), batched=True)
    assert got.tolist() == [["0.900000:1:b", "0.500000:2"], ["3.000000:0:a", "2.000000:2"]]


def test_without_a_batch_the_whole_tensor_is_one_row() -> None:
    value = np.array([[[5], [-7]], [[6], [0]]], np.int8)
    got = top_classes("y", value, classes=9, labels=(), batched=False)
    assert got.tolist() == ["6:2", "5:0", "0:3", "-7:1"]
    assert top_classes("y", np.array([3, 4]), classes=1, labels=(), batched=True).tolist() == ["4:1"]


def test_nan_is_never_the_best_class() -> None:
    value = np.array([np.nan, 1, np.inf, np.nan], np.float32)
    got = top_classes("y", value, classes=3, labels=(), batched=False)
    assert got.tolist() == ["inf:2", "1.000000:1", "nan:0"]


@calm
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1), st.integers(1, 5))
def test_best_first_and_the_lower_index_among_equals(values: list[int], classes: int) -> None:
    got = top_classes("y", np.array(values, np.int64), classes=classes, labels=(), batched=False)
    wanted = sorted(range(len(values)), key=lambda i: (-values[i], i))[:classes]
    assert got.tolist() == [f"{values[i]}:{i}" for i in wanted]


def test_an_empty_batch_has_no_classes() -> None:
    assert top_classes("y", np.zeros((0, 3)), classes=2, labels=(), batched=True).shape == (0, 2)


@pytest.mark.parametrize("value", [np.array([True]), np.array(["a"], object)])
def test_only_numbers_have_best_classes(value: np.ndarray) -> None:
    with pytest.raises(InputError, match="'y' is not numeric"):
        top_classes("y", value, classes=1, labels=(), batched=False)
