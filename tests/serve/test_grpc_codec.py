"""Inference messages: what they mean, what they may not be, and what hostile ones cost."""

from __future__ import annotations

import time
import tracemalloc
from typing import Any

import numpy as np
import pytest
from tritonclient.grpc import service_pb2 as pb

from edgekit.errors import InputError
from edgekit.runtime.ort import OrtSession
from edgekit.serve.grpc.codec import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    PREFIX,
    encode_framed,
    encode_response,
    split,
    varint,
)
from edgekit.serve.grpc.reader import InferReader
from edgekit.serve.messages import InferResponse, OutputTensor, Place, RequestError
from edgekit.serve.model import Model
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(OrtSession(tiny_model().SerializeToString(), threads=1), name="tiny")


@pytest.fixture
def reader(model: Model) -> InferReader:
    def find(name: str, version: str) -> Model:
        if name != model.name:
            raise RequestError(404, "no such model")
        return model

    return InferReader(find)


def message(x: np.ndarray | None = None, **fields: Any) -> Any:
    x = np.ones((1, 4), np.float32) if x is None else x
    out = pb.ModelInferRequest(model_name="tiny", **fields)
    out.inputs.add(name="x", datatype="FP32", shape=x.shape)
    out.raw_input_contents.append(x.tobytes())
    return out


def test_parameters_outputs_and_places(reader: InferReader) -> None:
    asked = pb.ModelInferRequest(model_name="tiny", model_version="1", id="7")
    asked.parameters["sequence_id"].int64_param = 5
    asked.parameters["sequence_start"].bool_param = True
    asked.parameters["name"].string_param = "n"
    asked.parameters["empty"].SetInParent()
    item = asked.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    item.parameters["shared_memory_region"].string_param = "r"
    item.parameters["shared_memory_byte_size"].int64_param = 16
    output = asked.outputs.add(name="scores")
    output.parameters["shared_memory_region"].string_param = "r"
    output.parameters["shared_memory_offset"].uint64_param = 32
    output.parameters["shared_memory_byte_size"].int64_param = 12
    asked.outputs.add(name="top").parameters["classification"].int64_param = 3
    _, request = reader.read(asked.SerializeToString())
    assert (request.id, request.feed) == ("7", {})
    assert request.parameters == {"sequence_id": 5, "sequence_start": True, "name": "n", "empty": None}
    assert request.shared["x"].place == Place("r", 0, 16)
    assert [(o.name, o.classes, o.place) for o in request.outputs] == [
        ("scores", 0, Place("r", 32, 12)),
        ("top", 3, None),
    ]


def test_values_must_fit_their_type(reader: InferReader) -> None:
    for datatype, field, values, words in (
        ("INT8", "int_contents", [1, 200], "out of the range of INT8"),
        ("UINT8", "uint_contents", [1, 256], "out of the range of UINT8"),
        ("FP32", "fp64_contents", [1, 2], "got 0 values in fp32_contents"),
        ("BF16", "fp32_contents", [1, 2], "BF16 has no field in contents"),
        ("FP99", "fp32_contents", [1, 2], "Datatype 'FP99' is not known"),
    ):
        asked = pb.ModelInferRequest(model_name="tiny")
        item = asked.inputs.add(name="other", datatype=datatype, shape=[2])
        getattr(item.contents, field).extend(values)
        with pytest.raises(InputError, match=words):
            reader.read(asked.SerializeToString())


def test_what_a_request_may_not_be(reader: InferReader) -> None:
    twice = message()
    twice.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    twice.raw_input_contents.append(b"\0" * 16)
    outputs = message()
    for _ in range(2):
        outputs.outputs.add(name="scores")
    classes = message()
    classes.outputs.add(name="scores").parameters["classification"].string_param = "3"
    shape = message()
    shape.inputs[0].shape[:] = [-1, 4]
    for asked, words in (
        (twice, "Input 'x' is given twice"),
        (outputs, "Output 'scores' is asked for twice"),
        (classes, "classification is '3'"),
        (shape, "dimension -1"),
    ):
        with pytest.raises(InputError, match=words):
            reader.read(asked.SerializeToString())
    for data in (b"\x0b", b"\xff" * 11, b"\x0a\x05ab", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x08"):
        with pytest.raises(InputError, match="not a ModelInferRequest"):
            reader.read(data)


def test_raw_tensors_are_not_copied_and_may_stand_anywhere() -> None:
    big = np.arange(100_000, dtype=np.float32)
    data = message(big).SerializeToString()
    rest, raws, offsets = split(memoryview(data))
    assert raws[0].obj is data
    assert len(rest) + big.nbytes < len(data)
    first = b"\x3a\x04abcd" + data
    rest2, raws2, offsets2 = split(memoryview(first))
    assert rest2 == rest
    assert [bytes(r[:4]) for r in raws2] == [b"abcd", bytes(raws[0][:4])]
    assert offsets2 == [2, offsets[0] + 6]


def test_hostile_messages_cost_little(reader: InferReader) -> None:
    cases = [
        b"\x3a\x00" * 4_000_000,  # millions of empty tensors
        b"\x2a\x00" * 4_000_000,  # millions of empty inputs
        b"\x2a" + varint(MAX_HEAD_BYTES + 1) + b"\x0a\x00" * (MAX_HEAD_BYTES // 2 + 1),  # one large one
    ]
    tracemalloc.start()
    for data in cases:
        begun = time.perf_counter()
        with pytest.raises((InputError, RequestError), match=rf"more than {MAX_FIELDS}|bytes besides raw|not a Model"):
            reader.read(data)
        assert time.perf_counter() - begun < 2
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 << 20


def test_a_replaced_model_is_not_recalled(model: Model) -> None:
    current = [model]
    reader = InferReader(lambda _name, _version: current[0])
    data = message().SerializeToString()
    framed = PREFIX.pack(0, len(data)) + data
    assert reader.recall(framed) is None
    reader.read(data)
    known = reader.recall(framed)
    assert known is not None
    assert known[0] is model
    current[0] = Model(OrtSession(tiny_model().SerializeToString(), threads=1), name="tiny", version="2")
    assert reader.recall(framed) is None
    assert reader.read(data)[0] is current[0]
    again = reader.recall(framed)
    assert again is not None
    assert again[0] is current[0]
    assert reader.recall(PREFIX.pack(1, len(data)) + data) is None  # marked as compressed
    assert reader.recall(framed[:-1]) is None
    for i in range(300):
        reader.read(message(np.ones((1 + i, 4), np.float32)).SerializeToString())
    assert reader.recall(framed) is None  # a memory of bounded size


@pytest.mark.parametrize("name", ["", "näme"])
def test_answers_are_what_protobuf_reads(name: str) -> None:
    x, words = np.arange(6, dtype=np.float32).reshape(2, 3), np.array(["a", "é"], object)
    outputs = [
        OutputTensor("y", "FP32", x),
        OutputTensor("placed", "FP32", x, True, Place("r", 8, 24)),
        OutputTensor("words", "BYTES", words),
        OutputTensor("none", "INT64", np.zeros((0, 2), np.int64)),
    ]
    for chosen in (outputs, outputs[1:], outputs[:1], []):
        response = InferResponse("m" * 200, "1", tuple(chosen), name)
        parts, size = encode_response(response)
        data = b"".join(parts)
        assert size == len(data)
        framed, framed_size = encode_framed(response)
        assert b"".join(framed) == PREFIX.pack(0, size) + data
        assert framed_size == PREFIX.size + size
        got = pb.ModelInferResponse.FromString(data)
        assert (got.model_name, got.model_version, got.id) == ("m" * 200, "1", name)
        assert [o.name for o in got.outputs] == [o.name for o in chosen]
        raws = {"y": x.tobytes(), "placed": b"", "words": b"\1\0\0\0a\2\0\0\0\xc3\xa9", "none": b""}
        assert list(got.raw_output_contents) == [raws[o.name] for o in chosen]
        for o in got.outputs:
            assert ("shared_memory_region" in o.parameters) == (o.name == "placed")
