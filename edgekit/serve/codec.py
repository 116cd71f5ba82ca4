"""Inference requests and answers of the Open Inference Protocol over HTTP, between bytes and typed values.

A body is JSON, or JSON followed by raw tensors (the binary tensor data extension, with the JSON's length in a header),
or one raw tensor alone. No sockets, no sessions, no state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from edgekit.errors import InputError
from edgekit.serve.messages import InferRequest, InferResponse, Place, RequestError, SharedInput, WantedOutput
from edgekit.serve.wire import (
    array_from_json,
    array_from_raw,
    checked_shape,
    json_from_array,
    raw_from_array,
    text_from_bytes,
)
from edgekit.tensors import Array, TensorSpec, dtype_from_oip, dtype_of, shape_text

MAX_JSON_BYTES = 32 << 20
"""Longest JSON part: its numbers take some 16 times their text in memory. Larger tensors travel as binary data."""

_NO_DATA = msgspec.Raw(b"")


class _InputParameters(msgspec.Struct):
    binary_data_size: int | None = None
    shared_memory_region: str | None = None
    shared_memory_offset: int = 0
    shared_memory_byte_size: int | None = None


class _Input(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: msgspec.Raw = _NO_DATA
    parameters: _InputParameters | None = None


class _OutputParameters(msgspec.Struct):
    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str | None = None
    shared_memory_offset: int = 0
    shared_memory_byte_size: int | None = None


class _Output(msgspec.Struct):
    name: str
    parameters: _OutputParameters | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    outputs: list[_Output] | None = None
    id: str = ""
    parameters: dict[str, Any] | None = None


class _ResponseOutput(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...] | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, int | str] | msgspec.UnsetType = msgspec.UNSET
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET


class _Response(msgspec.Struct, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_ResponseOutput]
    id: str = ""


_decode = msgspec.json.Decoder(_Request).decode
_encode = msgspec.json.Encoder().encode


def header_length_of(text: bytes) -> int:
    """The value of Inference-Header-Content-Length. Raises InputError unless it is a plain decimal number."""
    if not text.isdigit() or len(text) > 18:
        raise InputError("Header Inference-Header-Content-Length is not a number of bytes.")
    return int(text)


def decode_request(body: bytes, header_length: int | None, inputs: Mapping[str, TensorSpec]) -> InferRequest:
    """The request in `body`.

    `header_length` is the length of the JSON part in bytes: None for all of it, 0 for a body that is one raw tensor
    for a model with one input. `inputs` are the model's, by name.

    Raises:
        InputError: the body does not keep the protocol.
        RequestError: its JSON part is too long (413).
    """
    if header_length == 0:
        return _decode_raw(body, tuple(inputs.values()))
    whole = memoryview(body)
    if header_length is None:
        header_length = len(body)
    elif header_length > len(body):
        raise InputError(f"The body has {len(body)} bytes, Inference-Header-Content-Length says {header_length}.")
    if header_length > MAX_JSON_BYTES:
        raise RequestError(
            413, f"The JSON part has {header_length} bytes, at most {MAX_JSON_BYTES} are read. Send binary data."
        )
    try:
        head = _decode(whole[:header_length])
    except RecursionError:
        raise InputError("The request's JSON is nested too deeply.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"The request is not an inference request in JSON: {error}.") from None
    feed: dict[str, Array] = {}
    shared: dict[str, SharedInput] = {}
    at = header_length
    for item in head.inputs:
        if item.name in feed or item.name in shared:
            raise InputError(f"Input '{item.name}' is given twice.")
        dtype = dtype_from_oip(item.datatype)
        spec = inputs.get(item.name)
        if spec is not None and spec.dtype != dtype.name:
            wanted = dtype_of(spec.dtype).oip
            raise InputError(f"Input '{item.name}': got {dtype.oip}, this model accepts {wanted}. Convert it first.")
        shape = checked_shape(item.name, item.shape)
        given = item.parameters
        place = None if given is None else _place(f"Input '{item.name}'", given)
        if place is not None:
            if item.data is not _NO_DATA:
                raise InputError(f"Input '{item.name}' has data and is in shared memory too; expected one of them.")
            shared[item.name] = SharedInput(dtype, shape, place)
            continue
        size = None if given is None else given.binary_data_size
        if size is None:
            if item.data is _NO_DATA:
                raise InputError(f"Input '{item.name}' has neither data nor binary_data_size.")
            feed[item.name] = array_from_json(item.name, dtype, shape, bytes(item.data))
            continue
        if item.data is not _NO_DATA:
            raise InputError(f"Input '{item.name}' has both data and binary_data_size; expected one of them.")
        if not 0 <= size <= len(body) - at:
            raise InputError(
                f"Input '{item.name}': binary_data_size is {size}, the body has {len(body) - at} bytes left."
            )
        feed[item.name] = array_from_raw(item.name, dtype, shape, whole[at : at + size])
        at += size
    if at != len(body):
        raise InputError(f"The body has {len(body) - at} bytes that belong to no input.")
    parameters = head.parameters or {}
    binary = parameters.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise InputError(f"Parameter binary_data_output is {binary!r}; expected true or false.")
    return InferRequest(feed, head.id, _wanted(head.outputs, binary), binary, parameters, shared)


def _place(what: str, given: _InputParameters | _OutputParameters) -> Place | None:
    if given.shared_memory_region is None:
        return None
    return Place.of(what, given.shared_memory_region, given.shared_memory_offset, given.shared_memory_byte_size)


def _wanted(outputs: list[_Output] | None, binary: bool) -> tuple[WantedOutput, ...]:
    if not outputs:
        return ()
    out: dict[str, WantedOutput] = {}
    for item in outputs:
        if item.name in out:
            raise InputError(f"Output '{item.name}' is asked for twice.")
        given = item.parameters or _OutputParameters()
        place = _place(f"Output '{item.name}'", given)
        if place is not None and given.classification:
            raise InputError(f"Output '{item.name}': classes cannot be written to shared memory.")
        if given.classification < 0:
            raise InputError(f"Output '{item.name}': classification is {given.classification}; expected 1 or more.")
        raw = binary if given.binary_data is None else given.binary_data
        out[item.name] = WantedOutput(item.name, raw, given.classification, place)
    return tuple(out.values())


def _decode_raw(body: bytes, inputs: Sequence[TensorSpec]) -> InferRequest:
    if len(inputs) != 1:
        names = ", ".join(s.name for s in inputs)
        raise InputError(f"A raw body is for a model with one input; this one has {len(inputs)}: {names}.")
    (spec,) = inputs
    shape = _raw_shape(spec, len(body))
    if spec.dtype == "string":
        value = array_from_json(spec.name, dtype_of("string"), shape, _encode([text_from_bytes(spec.name, body)]))
    else:
        value = array_from_raw(spec.name, dtype_of(spec.dtype), shape, memoryview(body))
    return InferRequest({spec.name: value}, binary=True)


def _raw_shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    """The shape of a raw tensor of `size` bytes: the last free dimension takes what the size says, others are 1."""
    free = [i for i, dim in enumerate(spec.shape) if isinstance(dim, str)]
    shape = [dim if isinstance(dim, int) else 1 for dim in spec.shape]
    row = math.prod(shape) * dtype_of(spec.dtype).itemsize
    if free and row:
        if size % row:
            raise InputError(
                f"Input '{spec.name}': {size} bytes do not make {spec.dtype} of shape {shape_text(spec.shape)}, "
                f"which comes in steps of {row}."
            )
        shape[free[-1]] = size // row
    return tuple(shape)


def encode_response(response: InferResponse) -> tuple[list[bytes | memoryview], int | None]:
    """The parts of the answer's body, and the length of its JSON part if raw tensors follow it (else None).

    Raises:
        InputError: an output cannot be written as JSON; the client can ask for binary data.
    """
    if not response.id and response.outputs and all(out.binary and out.place is None for out in response.outputs):
        return _encode_binary(response)
    heads, raws = [], []
    for out in response.outputs:
        head = _ResponseOutput(out.name, out.datatype, out.value.shape)
        if out.place is not None:
            head.parameters = {
                "shared_memory_region": out.place.region,
                "shared_memory_offset": out.place.offset,
                "shared_memory_byte_size": out.place.size,
                "binary_data_size": 0,  # Triton's C++ client reads it wherever there are parameters
            }
        elif out.binary:
            raw = raw_from_array(out.datatype, out.value)
            head.parameters = {"binary_data_size": len(raw)}
            raws.append(raw)
        else:
            head.data = json_from_array(out.name, out.datatype, out.value)
        heads.append(head)
    text = _encode(_Response(response.model, response.version, heads, response.id))
    return [text, *raws], len(text) if raws else None


def _encode_binary(response: InferResponse) -> tuple[list[bytes | memoryview], int | None]:
    """The usual answer: its JSON part repeats from request to request, so it is written once."""
    parts: list[bytes | memoryview] = [b""]
    tensors = []
    for out in response.outputs:
        raw = raw_from_array(out.datatype, out.value)
        parts.append(raw)
        tensors.append((out.name, out.datatype, out.value.shape, len(raw)))
    parts[0] = _binary_head(response.model, response.version, tuple(tensors))
    return parts, len(parts[0])


@lru_cache(maxsize=256)
def _binary_head(model: str, version: str, tensors: tuple[tuple[str, str, tuple[int, ...], int], ...]) -> bytes:
    """The JSON part of an answer that is otherwise raw tensors: name, datatype, shape and bytes of each."""
    heads = [
        _ResponseOutput(name, datatype, shape, {"binary_data_size": size}) for name, datatype, shape, size in tensors
    ]
    return _encode(_Response(model, version, heads))
