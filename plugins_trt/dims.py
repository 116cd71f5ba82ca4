"""Sizes that may be known only when the engine runs.

A `Dim` is an int, or a `Size`: an expression over dimensions of the inputs. The same line of an operator then gives a
number for one shape (tests, the report) and a symbolic expression for TensorRT (the engine of a network with free
dimensions).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, Union

Dim: TypeAlias = Union[int, "Size"]
Value = TypeVar("Value")

OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "//": lambda a, b: a // b,
    "ceil_div": lambda a, b: -(-a // b),
    "max": max,
    "min": min,
}


@dataclass(frozen=True)
class Size:
    """Dimension `axis` of input `index` (`operation` empty), or an operation on two sizes."""

    operation: str = ""
    operands: tuple[Dim, ...] = ()
    index: int = 0
    axis: int = 0

    def __add__(self, other: Dim) -> Dim:
        return _combine("+", self, other)

    def __radd__(self, other: int) -> Dim:
        return _combine("+", other, self)

    def __sub__(self, other: Dim) -> Dim:
        return _combine("-", self, other)

    def __rsub__(self, other: int) -> Dim:
        return _combine("-", other, self)

    def __mul__(self, other: Dim) -> Dim:
        return _combine("*", self, other)

    def __rmul__(self, other: int) -> Dim:
        return _combine("*", other, self)

    def __floordiv__(self, other: Dim) -> Dim:
        return _combine("//", self, other)

    def __rfloordiv__(self, other: int) -> Dim:
        return _combine("//", other, self)

    def __bool__(self) -> bool:
        raise TypeError("a size that is known only at run time is neither true nor false")

    def __str__(self) -> str:
        if not self.operation:
            return f"input {self.index} axis {self.axis}"
        left, right = self.operands
        named = self.operation.isidentifier()
        return f"{self.operation}({left}, {right})" if named else f"({left} {self.operation} {right})"


def _combine(operation: str, left: Dim, right: Dim) -> Dim:
    if not isinstance(left, Size) and not isinstance(right, Size):  # numbers, or what stands for them while tracing
        return OPERATIONS[operation](left, right)
    if operation in ("*", "//", "ceil_div") and isinstance(right, int) and right == 1:
        return left
    if operation == "*" and isinstance(left, int) and left == 1:
        return right
    return Size(operation, (left, right))


def ceil_div(left: Dim, right: Dim) -> Dim:
    """`left / right`, rounded up."""
    return _combine("ceil_div", left, right)


def maximum(left: Dim, right: Dim) -> Dim:
    """The larger of the two."""
    return _combine("max", left, right)


def minimum(left: Dim, right: Dim) -> Dim:
    """The smaller of the two."""
    return _combine("min", left, right)


def product(sizes: Sequence[Dim]) -> Dim:
    """All `sizes` multiplied; 1 if there are none."""
    out: Dim = 1
    for size in sizes:
        out = out * size
    return out


def translate(
    size: Dim,
    *,
    leaf: Callable[[int, int], Value],
    constant: Callable[[int], Value],
    apply: Callable[[str, Value, Value], Value],
) -> Value:
    """`size` in another algebra: `leaf(input, axis)`, `constant(number)`, `apply(operation, left, right)`."""
    if not isinstance(size, Size):
        return constant(size)
    if not size.operation:
        return leaf(size.index, size.axis)
    left, right = (translate(operand, leaf=leaf, constant=constant, apply=apply) for operand in size.operands)
    return apply(size.operation, left, right)


def evaluate(size: Dim, shapes: Sequence[Sequence[int]]) -> int:
    """The number that `size` is for inputs of `shapes`."""
    return translate(
        size,
        leaf=lambda index, axis: shapes[index][axis],
        constant=int,
        apply=lambda operation, left, right: OPERATIONS[operation](left, right),
    )


def differ(left: Dim, right: Dim) -> bool:
    """Whether both are known and not the same."""
    return isinstance(left, int) and isinstance(right, int) and left != right


def power_of_two_at_least(value: int) -> int:
    """The smallest power of two that is not below `value` (1 for 0)."""
    return 1 << (value - 1).bit_length() if value > 1 else 1
