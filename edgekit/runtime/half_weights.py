"""Whether an ONNX file has weights in FP16, found without reading them: the runtime needs no onnx package."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

_GRAPH = 7
"""ModelProto.graph"""
_INITIALIZER = 5
"""GraphProto.initializer"""
_DATA_TYPE = 2
"""TensorProto.data_type"""
_FLOAT16 = 10

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""The kinds of fields on protobuf's wire."""


def has_half_weights(model: Path | bytes) -> bool:
    """Whether a weight of the main graph is FP16. What is no readable ONNX file has none."""
    try:
        if isinstance(model, bytes):
            return _found(model)
        with model.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _found(data)
    except (OSError, ValueError, IndexError):  # missing, empty, or cut off: whoever opens it says so
        return False


def _found(data: bytes | mmap.mmap) -> bool:
    for graph, begin, end in _fields(data, 0, len(data)):
        if graph != _GRAPH:
            continue
        for field, start, stop in _fields(data, begin, end):
            if field == _INITIALIZER:
                kinds = (_varint(data, at)[0] for name, at, _ in _fields(data, start, stop) if name == _DATA_TYPE)
                if next(kinds, 0) == _FLOAT16:
                    return True
    return False


def _fields(data: bytes | mmap.mmap, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field of the message in `data[at:end]`; ValueError if it is not one."""
    while at < end:
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            stop = _varint(data, at)[1]
        elif kind == _BYTES:
            size, at = _varint(data, at)
            stop = at + size
        elif kind in (_FIXED64, _FIXED32):
            stop = at + (8 if kind == _FIXED64 else 4)
        else:
            raise ValueError("not protobuf")
        if stop > end:
            raise ValueError("cut off")
        yield number, at, stop
        at = stop


def _varint(data: bytes | mmap.mmap, at: int) -> tuple[int, int]:
    """The number at `at`, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("not protobuf")
