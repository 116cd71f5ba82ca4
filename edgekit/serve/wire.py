"""Single tensors between numpy and the wire: raw little-endian bytes, and JSON values.

bfloat16 is held as its raw 16 bits (uint16), BYTES as an array of str. In JSON, bfloat16 and float16 are numbers like
any float, and a value that is not finite is written as null, because JSON has neither NaN nor infinity: ask for
binary data where the difference matters.
"""

from __future__ import annotations

import math
import re
import struct
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any

import msgspec
import numpy as np

from edgekit.errors import InputError
from edgekit.tensors import Array, DType, numpy_dtype, shape_text

MAX_RANK = 32
MAX_DIM = 2**31 - 1

_LENGTH = struct.Struct("<I")
_BRACKETS = re.compile(rb"[\s\[]*")
_NUMPY = {  # the wire is little-endian whatever the machine is
    name: numpy_dtype(name).newbyteorder("<")
    for name in (
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float16", "bfloat16", "float32", "float64"),
    )
}


def checked_shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    """`shape` if it can be a tensor's. Raises InputError: too many dimensions, a negative or an absurd one."""
    if len(shape) > MAX_RANK:
        raise InputError(f"Input '{name}' has {len(shape)} dimensions; expected at most {MAX_RANK}.")
    for dim in shape:
        if not 0 <= dim <= MAX_DIM:
            raise InputError(f"Input '{name}' has dimension {dim} in its shape; expected 0 to {MAX_DIM}.")
    return tuple(shape)


def array_from_raw(name: str, dtype: DType, shape: tuple[int, ...], raw: memoryview) -> Array:
    """A tensor from its raw bytes: a read-only view of `raw` where its alignment allows, else a copy.

    Raises:
        InputError: the size is not that of `shape`, or an element of BYTES is cut or not UTF-8.
    """
    if dtype.name == "string":
        return _strings_from_raw(name, shape, raw)
    size = math.prod(shape) * dtype.itemsize
    if size != len(raw):
        raise InputError(
            f"Input '{name}': got {len(raw)} bytes of data, {dtype.oip} of shape {shape_text(shape)} has {size}."
        )
    if dtype.name == "bool":
        octets = np.frombuffer(raw, np.uint8)
        if size and octets.max() > 1:
            raise InputError(f"Input '{name}': a BOOL is one byte, 0 or 1; got {octets.max()}.")
        return _shaped(name, octets.view(np.bool_), shape)
    values: Array = np.frombuffer(raw, _NUMPY[dtype.name])
    return _shaped(name, values if values.flags.aligned else values.copy(), shape)


def _shaped(name: str, values: Array, shape: tuple[int, ...]) -> Array:
    try:
        return values.reshape(shape)
    except ValueError:  # numpy counts strides of an empty array too
        raise InputError(f"Input '{name}': shape {shape_text(shape)} is too large.") from None


def _strings_from_raw(name: str, shape: tuple[int, ...], raw: memoryview) -> Array:
    count, at = math.prod(shape), 0
    out: list[str] = []
    while at < len(raw):
        start = at + 4
        at = start + _LENGTH.unpack_from(raw, at)[0] if start <= len(raw) else len(raw) + 1
        if at > len(raw):
            raise InputError(
                f"Input '{name}': element {len(out)} of BYTES is cut; each is 4 bytes of length, then text."
            )
        out.append(text_from_bytes(name, raw[start:at]))
    if len(out) != count:
        raise InputError(f"Input '{name}': got {len(out)} BYTES elements, shape {shape_text(shape)} has {count}.")
    return _shaped(name, _objects(out), shape)


def text_from_bytes(name: str, raw: bytes | memoryview) -> str:
    """One element of a BYTES tensor. Raises InputError unless it is UTF-8, which is what ONNX strings are."""
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise InputError(f"Input '{name}': an element of BYTES is not UTF-8, which text of a model must be.") from None


def _objects(values: list[str]) -> Array:
    out = np.empty(len(values), object)
    out[:] = values
    return out


def array_from_json(name: str, dtype: DType, shape: tuple[int, ...], data: bytes | memoryview) -> Array:
    """A tensor from the JSON text of its `data`: a flat list, or lists nested as `shape` says.

    Raises:
        InputError: values of another type or out of range, ragged lists, or another number of them.
    """
    opening = _BRACKETS.match(data)
    depth = max(1, opening.group().count(b"[") if opening else 0)
    if depth > max(1, len(shape)):
        raise InputError(f"Input '{name}': data is nested deeper than its shape {shape_text(shape)}.")
    try:
        values = _decoder(dtype.name, depth).decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"Input '{name}': data is not {dtype.oip} of shape {shape_text(shape)}: {error}.") from None
    try:
        out = _array(dtype.name, values)
    except (OverflowError, FloatingPointError):
        raise InputError(f"Input '{name}': a value is out of the range of {dtype.oip}.") from None
    except ValueError:
        raise InputError(f"Input '{name}': data is ragged; expected lists nested as {shape_text(shape)}.") from None
    if depth == 1 and out.size == math.prod(shape):
        return _shaped(name, out, shape)
    if out.shape != shape:
        got = shape_text(out.shape) if depth > 1 else f"{out.size} values"
        raise InputError(f"Input '{name}': data holds {got}, its shape says {shape_text(shape)}.")
    return out


@lru_cache(maxsize=512)
def _decoder(dtype: str, depth: int) -> msgspec.json.Decoder[Any]:
    kind: Any = {"bool": bool, "string": str}.get(dtype, float)
    if "int" in dtype:
        bounds = np.iinfo(dtype)
        top = None if dtype == "uint64" else int(bounds.max)  # msgspec's bounds are 64-bit and signed
        kind = Annotated[int, msgspec.Meta(ge=int(bounds.min), le=top)]
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def _array(dtype: str, values: list[Any]) -> Array:
    if dtype == "string":
        return np.array(values, dtype=object)
    if dtype not in ("float16", "float32", "bfloat16"):
        return np.array(values, dtype=dtype)
    wide = np.array(values, dtype=np.float64)
    with np.errstate(over="raise", under="ignore"):
        if dtype != "bfloat16":
            return wide.astype(dtype)
        return bfloat16_from_float32(wide.astype(np.float32))


def bfloat16_from_float32(values: Array) -> Array:
    """Raw bits of bfloat16, rounded to nearest even. Raises FloatingPointError if a finite value becomes infinite."""
    bits = values.view(np.uint32)
    kept = (bits >> 16) & 1
    out = ((bits.astype(np.uint64) + 0x7FFF + kept) >> 16).astype(np.uint16)
    nan = np.isnan(values)
    out[nan] = (bits[nan] >> 16).astype(np.uint16) | np.uint16(0x40)
    if np.any(np.isinf(float32_from_bfloat16(out)) & np.isfinite(values)):
        raise FloatingPointError("overflow")
    return out


def float32_from_bfloat16(bits: Array) -> Array:
    """The values of raw bfloat16 bits, exactly."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def raw_from_array(datatype: str, value: Array) -> bytes | memoryview:
    """The raw bytes of a tensor; large ones are not copied."""
    if datatype == "BYTES":
        parts = []
        for item in value.ravel().tolist():
            text = item if isinstance(item, bytes) else str(item).encode()
            parts += [_LENGTH.pack(len(text)), text]
        return b"".join(parts)
    if sys.byteorder == "big":
        value = value.astype(value.dtype.newbyteorder("<"))
    if value.nbytes < 1 << 16:
        return value.tobytes()
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8).data


def json_from_array(name: str, datatype: str, value: Array) -> list[Any]:
    """A tensor as a flat list for JSON; not-finite floats become null when the list is encoded.

    Raises:
        InputError: BYTES that are not UTF-8; the client can ask for them as binary data.
    """
    if datatype == "BF16":
        value = float32_from_bfloat16(value)
    flat: list[Any] = value.ravel().tolist()
    if datatype == "BYTES":
        try:
            return [str(item, "utf-8") if isinstance(item, bytes) else str(item) for item in flat]
        except UnicodeDecodeError:
            raise InputError(f"Output '{name}' holds bytes that are not UTF-8. Ask for it as binary data.") from None
    return flat
