"""Inference requests and answers of the Open Inference Protocol over gRPC, between protobuf bytes and typed values.

Raw tensors are taken out of a message before the protobuf library sees it, so they are not copied there.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from edgekit.errors import InputError
from edgekit.serve.grpc.schema import schema
from edgekit.serve.messages import InferRequest, InferResponse, Place, RequestError, SharedInput, WantedOutput
from edgekit.serve.wire import array_from_raw, checked_shape, raw_from_array, text_from_bytes
from edgekit.tensors import Array, DType, TensorSpec, dtype_from_oip, dtype_of, shape_text

MAX_HEAD_BYTES = 16 << 20
"""Longest request without its raw tensors: its values take many times their bytes in memory. Larger ones go raw."""

MAX_FIELDS = 4096
"""Fields of a request's outermost level: inputs, outputs, parameters and raw tensors together."""

_MAX_VARINT = 10
_RAW_INPUT, _RAW_OUTPUT = 7 << 3 | 2, 6 << 3 | 2

PREFIX = struct.Struct(">BI")
"""Before each message on the wire: whether it is compressed, and its length."""

Message: TypeAlias = "bytes | bytearray | memoryview"
_CONTENTS = {
    "bool": "bool_contents",
    **dict.fromkeys(("int8", "int16", "int32"), "int_contents"),
    **dict.fromkeys(("uint8", "uint16", "uint32"), "uint_contents"),
    "int64": "int64_contents",
    "uint64": "uint64_contents",
    "float32": "fp32_contents",
    "float64": "fp64_contents",
    "string": "bytes_contents",
}


def parsed(head: bytes) -> Any:
    """The ModelInferRequest in `head`. Raises InputError, RequestError 413."""
    if len(head) > MAX_HEAD_BYTES:
        raise RequestError(
            413, f"The request has {len(head)} bytes besides raw tensors, at most {MAX_HEAD_BYTES} are read. Send raw."
        )
    try:
        return schema().message("ModelInferRequest").FromString(head)
    except Exception:  # protobuf's own error, whose class depends on its implementation
        raise InputError("The message is not a ModelInferRequest.") from None


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number and where it ends. Raises IndexError at the end of `data`, ValueError if it is too long."""
    value = data[at]
    at += 1
    if value < 128:
        return value, at
    value &= 127
    for shift in range(7, 7 * _MAX_VARINT, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError


def _fields(message: memoryview) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message's outermost level: tag, where the field begins, where its value does, where it ends."""
    at, end = 0, len(message)
    while at < end:
        begin = at
        tag, at = _varint(message, at)
        value = at
        match tag & 7:
            case 0:
                _, at = _varint(message, at)
            case 1:
                at += 8
            case 2:
                size, value = _varint(message, at)
                at = value + size
            case 5:
                at += 4
            case _:
                raise ValueError
        if at > end:
            raise ValueError
        yield tag, begin, value, at


def split(message: memoryview) -> tuple[bytes, list[memoryview], list[int]]:
    """A ModelInferRequest without its raw tensors, those, and where in the message they begin.

    Raises:
        InputError: the bytes are not those of a message, or have too many fields.
    """
    rest: list[memoryview] = []
    raws: list[memoryview] = []
    offsets: list[int] = []
    kept = 0
    try:
        for count, (tag, begin, value, end) in enumerate(_fields(message)):
            if count >= MAX_FIELDS:
                raise InputError(f"The message has more than {MAX_FIELDS} inputs, outputs and parameters.")
            if tag == _RAW_INPUT:
                rest.append(message[kept:begin])
                raws.append(message[value:end])
                offsets.append(value)
                kept = end
    except (ValueError, IndexError):
        raise InputError("The message is not a ModelInferRequest.") from None
    rest.append(message[kept:])
    return b"".join(rest), raws, offsets


def decode_request(request: Any, raws: list[memoryview], inputs: Mapping[str, TensorSpec]) -> InferRequest:
    """The InferRequest of a ModelInferRequest message whose raw tensors are `raws`; `inputs` are the model's.

    Raises:
        InputError: the message does not keep the protocol.
    """
    feed: dict[str, Array] = {}
    shared: dict[str, SharedInput] = {}
    left = iter(raws)
    for item in request.inputs:
        name = item.name
        if name in feed or name in shared:
            raise InputError(f"Input '{name}' is given twice.")
        dtype, shape = dtype_from_oip(item.datatype), checked_shape(name, item.shape)
        spec = inputs.get(name)
        if spec is not None and spec.dtype != dtype.name:
            wanted = dtype_of(spec.dtype).oip
            raise InputError(f"Input '{name}': got {dtype.oip}, this model accepts {wanted}. Convert it first.")
        place = _place(f"Input '{name}'", item.parameters)
        if place is not None:
            shared[name] = SharedInput(dtype, shape, place)
        elif not raws:
            feed[name] = _array_from_contents(name, dtype, shape, item.contents)
        elif item.HasField("contents"):
            raise InputError(f"Input '{name}' has contents, others are in raw_input_contents; expected one of them.")
        elif (raw := next(left, None)) is None:
            raise InputError(f"Input '{name}' has no data: raw_input_contents holds {len(raws)} tensors.")
        else:
            feed[name] = array_from_raw(name, dtype, shape, raw)
    if next(left, None) is not None:
        raise InputError(f"raw_input_contents holds {len(raws)} tensors, which is more than there are inputs.")
    return InferRequest(
        feed,
        request.id,
        tuple(_wanted(request.outputs)),
        True,
        {key: _value(p) for key, p in request.parameters.items()},
        shared,
    )


def _wanted(outputs: Any) -> Iterator[WantedOutput]:
    seen = set()
    for item in outputs:
        if item.name in seen:
            raise InputError(f"Output '{item.name}' is asked for twice.")
        seen.add(item.name)
        what = f"Output '{item.name}'"
        classes = _value(item.parameters["classification"]) if "classification" in item.parameters else 0
        if not isinstance(classes, int) or isinstance(classes, bool) or classes < 0:
            raise InputError(f"{what}: classification is {classes!r}; expected 1 or more.")
        place = _place(what, item.parameters)
        if place is not None and classes:
            raise InputError(f"{what}: classes cannot be written to shared memory.")
        yield WantedOutput(item.name, True, classes, place)


def _place(what: str, parameters: Any) -> Place | None:
    """Where in shared memory a tensor is, if its parameters say so."""
    if "shared_memory_region" not in parameters:
        return None
    values = {key: _value(parameters[key]) for key in parameters if key.startswith("shared_memory_")}
    return Place.of(
        what,
        values["shared_memory_region"],
        values.get("shared_memory_offset", 0),
        values.get("shared_memory_byte_size"),
    )


def _value(parameter: Any) -> Any:
    chosen = parameter.WhichOneof("parameter_choice")
    return None if chosen is None else getattr(parameter, chosen)


def _array_from_contents(name: str, dtype: DType, shape: tuple[int, ...], contents: Any) -> Array:
    field = _CONTENTS.get(dtype.name)
    if field is None:
        raise InputError(f"Input '{name}': {dtype.oip} has no field in contents; send it in raw_input_contents.")
    values = list(getattr(contents, field))
    if len(values) != math.prod(shape):
        raise InputError(
            f"Input '{name}': got {len(values)} values in {field}, {dtype.oip} of shape {shape_text(shape)} "
            f"has {math.prod(shape)}."
        )
    if dtype.name == "string":
        out = np.empty(len(values), object)
        out[:] = [text_from_bytes(name, item) for item in values]
    elif "int" in dtype.name and values:
        limits = np.iinfo(dtype.name)
        if min(values) < limits.min or max(values) > limits.max:
            raise InputError(f"Input '{name}': a value is out of the range of {dtype.oip}.")
        out = np.array(values, dtype.name)
    else:
        out = np.array(values, dtype.name)
    try:
        return out.reshape(shape)
    except ValueError:  # numpy counts strides of an empty array too
        raise InputError(f"Input '{name}': shape {shape_text(shape)} is too large.") from None


def encode_response(response: InferResponse) -> tuple[list[bytes | memoryview], int]:
    """The parts of a ModelInferResponse, and their bytes together. All outputs are raw."""
    raws, first, heads, _ = _response_parts(response)
    parts: list[bytes | memoryview] = [first]
    if response.id:
        text = response.id.encode()
        parts += (b"\x1a" + varint(len(text)), text)
    for head, raw in zip(heads, raws):
        parts += (head, raw)
    return parts, sum(map(len, parts))


def encode_framed(response: InferResponse) -> tuple[list[bytes | memoryview], int]:
    """As `encode_response`, with the prefix of a message that is not compressed."""
    if not response.id and response.outputs:
        raws, _, heads, opening = _response_parts(response)
        parts: list[bytes | memoryview] = [opening, raws[0]]
        for head, raw in zip(heads[1:], raws[1:]):
            parts += (head, raw)
        return parts, PREFIX.unpack_from(opening)[1] + PREFIX.size
    parts, size = encode_response(response)
    return [PREFIX.pack(0, size), *parts], PREFIX.size + size


def _response_parts(response: InferResponse) -> tuple[list[bytes | memoryview], bytes, list[bytes], bytes]:
    """The raw tensors, what stands before the id, before each tensor, and before the first if there is no id."""
    raws: list[bytes | memoryview] = []
    tensors = []
    for out in response.outputs:
        raw = b"" if out.place is not None else raw_from_array(out.datatype, out.value)
        raws.append(raw)
        tensors.append((out.name, out.datatype, out.value.shape, len(raw), out.place))
    return raws, *_response_heads(response.model, response.version, tuple(tensors))


@lru_cache(maxsize=256)
def _response_heads(
    model: str, version: str, tensors: tuple[tuple[str, str, tuple[int, ...], int, Place | None], ...]
) -> tuple[bytes, list[bytes], bytes]:
    """What of an answer repeats. `tensors`: name, datatype, shape, bytes, place."""
    answer = schema().message("ModelInferResponse")
    described = answer()
    for name, datatype, shape, _, place in tensors:
        out = described.outputs.add(name=name, datatype=datatype, shape=shape)
        if place is not None:
            out.parameters["shared_memory_region"].string_param = place.region
            out.parameters["shared_memory_offset"].int64_param = place.offset
            out.parameters["shared_memory_byte_size"].int64_param = place.size
    heads = [bytes((_RAW_OUTPUT,)) + varint(size) for *_, size, _ in tensors]  # one for each, also where it is empty
    if heads:
        heads[0] = described.SerializeToString() + heads[0]
    first = answer(model_name=model, model_version=version).SerializeToString()
    size = len(first) + sum(map(len, heads)) + sum(size for *_, size, _ in tensors)
    opening = PREFIX.pack(0, size) + first + (heads[0] if heads else b"")
    return first, heads, opening


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
