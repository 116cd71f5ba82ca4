from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins_trt.dims import (
    OPERATIONS,
    Size,
    ceil_div,
    differ,
    evaluate,
    maximum,
    minimum,
    power_of_two_at_least,
    product,
)

N, M = Size(index=0, axis=0), Size(index=1, axis=2)
SHAPES = [(6, 3), (4, 4, 5)]


def test_an_expression_has_the_value_of_the_shapes() -> None:
    assert evaluate(N, SHAPES) == 6
    assert evaluate(2 * N + M - 1, SHAPES) == 16
    assert evaluate(100 - N * M // 4, SHAPES) == 93
    assert evaluate(100 // N, SHAPES) == 16
    assert evaluate(ceil_div(N, 4), SHAPES) == 2
    assert evaluate(maximum(1, minimum(N, M)), SHAPES) == 5
    assert evaluate(product((2, N, 1, M)), SHAPES) == 60
    assert evaluate(7, SHAPES) == 7


@given(st.sampled_from(sorted(OPERATIONS)), st.integers(0, 50), st.integers(1, 50))
def test_known_sizes_are_computed_at_once(operation: str, left: int, right: int) -> None:
    both = {"ceil_div": ceil_div, "max": maximum, "min": minimum}
    made = both[operation](left, right) if operation in both else OPERATIONS[operation](left, right)
    assert made == evaluate(Size(operation, (left, right)), [])


def test_multiplying_by_one_adds_no_operation() -> None:
    assert product((1, N)) is N
    assert ceil_div(N, 1) is N
    assert str(ceil_div(2 * N, M)) == "ceil_div((2 * input 0 axis 0), input 1 axis 2)"


def test_a_free_size_is_neither_true_nor_false() -> None:
    with pytest.raises(TypeError, match="only at run time"):
        bool(N)


def test_only_known_sizes_differ() -> None:
    assert differ(3, 4)
    assert not differ(3, 3)
    assert not differ(N, 3)


@given(st.integers(1, 10**6))
def test_powers_of_two(value: int) -> None:
    found = power_of_two_at_least(value)
    assert found & (found - 1) == 0
    assert found // 2 < value <= found
