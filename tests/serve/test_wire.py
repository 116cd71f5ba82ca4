"""Single tensors on the wire."""

from __future__ import annotations

import json
import math

import hypothesis.extra.numpy as hnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.serve.wire import (
    array_from_json,
    array_from_raw,
    bfloat16_from_float32,
    checked_shape,
    float32_from_bfloat16,
    json_from_array,
    raw_from_array,
)
from edgekit.tensors import dtype_of, numpy_dtype
from tests.serve.packages import DTYPES

ALL = (*DTYPES, "bfloat16")

calm = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""No verdict on how long an example takes: the machine may be busy."""


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """A type with any tensor of it, scalars and empty ones among them."""
    dtype = draw(st.sampled_from(ALL))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
    if dtype == "string":
        words = draw(st.lists(st.text(max_size=8), min_size=math.prod(shape), max_size=math.prod(shape)))
        value = np.empty(len(words), object)
        value[:] = words
        return dtype, value.reshape(shape)
    return dtype, draw(hnp.arrays(numpy_dtype(dtype), shape))


def equal(dtype: str, got: np.ndarray, wanted: np.ndarray, *, nan: bool = True) -> bool:
    if got.shape != wanted.shape or (dtype != "string" and got.dtype != wanted.dtype):
        return False
    if not nan and dtype.startswith("float"):
        return np.array_equal(got, wanted, equal_nan=True)
    return got.tolist() == wanted.tolist() if dtype == "string" else got.tobytes() == wanted.tobytes()


@calm
@given(tensors(), st.integers(0, 9))
def test_raw_bytes_round_trip_bit_for_bit(tensor: tuple[str, np.ndarray], offset: int) -> None:
    """At any offset in a body: what is not aligned is copied."""
    dtype, value = tensor
    raw = bytes(raw_from_array(dtype_of(dtype).oip, value))
    view = memoryview(b"x" * offset + raw)[offset:]
    got = array_from_raw("t", dtype_of(dtype), value.shape, view)
    assert equal(dtype, got, value)
    assert got.flags.aligned
    assert got.flags.c_contiguous


@calm
@given(tensors(), st.booleans())
def test_json_round_trips(tensor: tuple[str, np.ndarray], nested: bool) -> None:
    dtype, value = tensor
    flat = json_from_array("t", dtype_of(dtype).oip, value)
    finite = not dtype.startswith(("float", "bfloat")) or all(math.isfinite(x) for x in flat)
    data = flat
    if nested and value.ndim and value.size:
        data = np.array(flat, object).reshape(value.shape).tolist()
    text = json.dumps(data).encode()
    if not finite:  # NaN and infinity are not JSON
        with pytest.raises(InputError):
            array_from_json("t", dtype_of(dtype), value.shape, text)
        return
    assert equal(dtype, array_from_json("t", dtype_of(dtype), value.shape, text), value)


@calm
@given(tensors())
def test_strided_tensors_are_written_in_order(tensor: tuple[str, np.ndarray]) -> None:
    dtype, value = tensor
    assert bytes(raw_from_array(dtype_of(dtype).oip, value.T)) == bytes(
        raw_from_array(dtype_of(dtype).oip, value.T.copy(order="C"))
    )


@calm
@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=2)))
def test_bfloat16_rounds_as_ml_dtypes_does(value: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        wanted = value.astype(ml_dtypes.bfloat16)
    if np.isinf(wanted.astype(np.float32))[np.isfinite(value)].any():
        with pytest.raises(FloatingPointError):
            bfloat16_from_float32(value)
        return
    got = float32_from_bfloat16(bfloat16_from_float32(value))
    assert np.array_equal(got, wanted.astype(np.float32), equal_nan=True)


def test_large_tensors_are_not_copied() -> None:
    value = np.arange(1 << 16, dtype=np.float32).reshape(256, 256)
    raw = raw_from_array("FP32", value)
    assert np.shares_memory(np.frombuffer(raw, np.float32), value)
    assert np.shares_memory(array_from_raw("t", dtype_of("float32"), (256, 256), memoryview(raw)), value)


@pytest.mark.parametrize(
    ("dtype", "shape", "raw", "words"),
    [
        ("float32", (1, 4), b"\0" * 12, "got 12 bytes of data, FP32 of shape (1,4) has 16"),
        ("float32", (2**31 - 1,) * 20, b"", "got 0 bytes"),
        ("float32", (0, *[2**31 - 1] * 5), b"", "too large"),
        ("bool", (2,), b"\0\2", "0 or 1; got 2"),
        ("string", (1,), b"\3\0\0\0ab", "is cut"),
        ("string", (1,), b"\3\0\0", "is cut"),
        ("string", (2,), b"\1\0\0\0a", "got 1 BYTES elements, shape (2) has 2"),
        ("string", (1,), b"\xff\xff\xff\xff", "is cut"),
        ("string", (1,), b"\1\0\0\0\xff", "not UTF-8"),
    ],
)
def test_raw_bytes_that_do_not_fit(dtype: str, shape: tuple[int, ...], raw: bytes, words: str) -> None:
    with pytest.raises(InputError, match="^Input 't'") as caught:
        array_from_raw("t", dtype_of(dtype), shape, memoryview(raw))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "shape", "data", "words"),
    [
        ("uint8", (1,), "[256]", "<= 255"),
        ("uint8", (1,), "[-1]", ">= 0"),
        ("int8", (1,), "[-129]", ">= -128"),
        ("uint64", (1,), "[18446744073709551616]", "out of the range of UINT64"),
        ("int64", (1,), "[9223372036854775808]", "<= 9223372036854775807"),
        ("int32", (1,), "[1.5]", "Expected `int`, got `float`"),
        ("int32", (1,), "[1.0]", "Expected `int`, got `float`"),
        ("int32", (1,), "[true]", "got `bool`"),
        ("bool", (1,), "[1]", "Expected `bool`"),
        ("float32", (1,), "[1e39]", "out of the range of FP32"),
        ("float16", (1,), "[65520]", "out of the range of FP16"),
        ("bfloat16", (1,), "[3.4e38]", "out of the range of BF16"),
        ("float64", (1,), "[1e400]", "out of range"),
        ("float32", (1,), "[NaN]", "malformed"),
        ("float32", (1,), "[null]", "got `null`"),
        ("float32", (1,), '["1"]', "got `str`"),
        ("string", (1,), "[1]", "Expected `str`"),
        ("float32", (), "1", "Expected `array`"),
        ("float32", (2,), "[1]", "1 values, its shape says (2)"),
        ("float32", (2, 2), "[[1,2],[3]]", "ragged"),
        ("string", (2, 2), '[["a","b"],["c"]]', "its shape says (2,2)"),
        ("float32", (2, 2), "[[1,2,3,4]]", "data holds (1,4), its shape says (2,2)"),
        ("float32", (4,), "[[1,2],[3,4]]", "nested deeper than its shape (4)"),
        ("float32", (1, 1, 1), "[[1]]", "data holds (1,1)"),
        ("float32", (4,), "[" * 10_000, "nested deeper"),
        ("float32", (1,), "{}", "Expected `array`"),
        ("float32", (1,), "[1", "truncated"),
    ],
)
def test_json_that_does_not_fit(dtype: str, shape: tuple[int, ...], data: str, words: str) -> None:
    with pytest.raises(InputError, match="^Input 't'") as caught:
        array_from_json("t", dtype_of(dtype), shape, data.encode())
    assert words in str(caught.value)


def test_values_too_small_for_a_type_become_zero() -> None:
    assert array_from_json("t", dtype_of("float16"), (2,), b"[1e-30, -1e-30]").tolist() == [0, 0]


@pytest.mark.parametrize("shape", [[-1], [2**31], [1] * 33])
def test_shapes_that_no_tensor_has(shape: list[int]) -> None:
    with pytest.raises(InputError):
        checked_shape("t", shape)


def test_bytes_that_are_not_text_cannot_be_json() -> None:
    value = np.array([b"\xff"], object)
    with pytest.raises(InputError, match="Ask for it as binary data"):
        json_from_array("t", "BYTES", value)
    assert bytes(raw_from_array("BYTES", value)) == b"\1\0\0\0\xff"
