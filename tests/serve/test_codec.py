"""Whole requests and answers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.serve import codec
from edgekit.serve.codec import decode_request, encode_response, header_length_of
from edgekit.serve.messages import InferResponse, OutputTensor, RequestError, WantedOutput
from edgekit.serve.wire import raw_from_array
from edgekit.tensors import TensorSpec, dtype_of
from tests.serve.running import infer_body, tensor
from tests.serve.test_wire import equal, tensors

X = {"x": TensorSpec("x", "float32", ("n", 2))}


def binary(name: str, shape: list[int], size: int, datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}


@given(
    st.lists(tensors(), min_size=1, max_size=4), st.lists(st.booleans(), min_size=4, max_size=4), st.text(max_size=9)
)
def test_answers_read_as_requests_give_the_same_tensors(
    values: list[tuple[str, np.ndarray]], forms: list[bool], request_id: str
) -> None:
    """An answer has the form of a request, so the codec can be held against itself."""
    values = [(d, np.nan_to_num(v, posinf=0, neginf=0) if d.startswith("float") else v) for d, v in values]
    values = [(d, v & 0x7F7F if d == "bfloat16" else v) for d, v in values]  # finite, so that JSON can hold it
    outputs = tuple(
        OutputTensor(f"t{i}", dtype_of(d).oip, v, raw) for i, ((d, v), raw) in enumerate(zip(values, forms))
    )
    parts, header_length = encode_response(InferResponse("m", "1", outputs, request_id))
    body = b"".join(parts)
    head = json.loads(body[:header_length])
    assert (head["model_name"], head["model_version"], head.get("id", "")) == ("m", "1", request_id)
    text = json.dumps({"inputs": head["outputs"], "id": request_id}).encode()
    raws = body[header_length:] if header_length is not None else b""
    request = decode_request(text + raws, len(text) if raws else None, {})
    assert request.id == request_id
    for i, (dtype, value) in enumerate(values):
        assert equal(dtype, request.feed[f"t{i}"], value)


def test_what_is_wanted_of_each_output() -> None:
    outputs = [
        {"name": "a"},
        {"name": "b", "parameters": {"binary_data": False}},
        {"name": "c", "parameters": {"classification": 3, "unknown": [1]}},
    ]
    body = infer_body(tensor("x", [1, 2], [1, 2]), outputs=outputs, parameters={"binary_data_output": True, "other": 1})
    request = decode_request(body, None, X)
    assert request.outputs == (WantedOutput("a", True), WantedOutput("b", False), WantedOutput("c", True, 3))
    assert request.parameters["other"] == 1
    plain = decode_request(infer_body(tensor("x", [1, 2], [1, 2]), outputs=[]), None, X)
    assert (plain.outputs, plain.binary) == ((), False)


def test_values_that_are_not_finite_become_null_in_json_and_stay_in_binary() -> None:
    value = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    parts, _ = encode_response(InferResponse("m", "1", (OutputTensor("y", "FP32", value),)))
    assert json.loads(b"".join(parts))["outputs"][0]["data"] == [None, None, None, 1]
    parts, _ = encode_response(InferResponse("m", "1", (OutputTensor("y", "FP32", value, True),)))
    assert parts[1] == value.tobytes()
    size = infer_body(binary("x", [2, 2], 16))
    assert np.array_equal(decode_request(size + value.tobytes(), len(size), X).feed["x"].ravel(), value, equal_nan=True)


@pytest.mark.parametrize(
    ("shape", "size", "wanted"),
    [(("n", 2), 24, (3, 2)), (("batch", 2, "n"), 24, (1, 2, 3)), ((3, 2), 24, (3, 2)), (("n",), 0, (0,)), ((), 4, ())],
)
def test_a_raw_body_takes_the_shape_that_its_size_says(
    shape: tuple[Any, ...], size: int, wanted: tuple[int, ...]
) -> None:
    request = decode_request(b"\0" * size, 0, {"x": TensorSpec("x", "float32", shape)})
    assert request.feed["x"].shape == wanted
    assert request.binary


def test_a_raw_body_of_text_is_one_element() -> None:
    request = decode_request("dé".encode(), 0, {"x": TensorSpec("x", "string", ("n", 1))})
    assert request.feed["x"].tolist() == [["dé"]]


@pytest.mark.parametrize(
    ("body", "inputs", "words"),
    [
        (b"\0" * 5, X, "5 bytes do not make float32"),
        (b"\0" * 5, {"x": TensorSpec("x", "float32", (1,))}, "got 5 bytes"),
        (b"", {**X, "y": X["x"]}, "one input; this one has 2: x, x"),
        (b"\xff", {"x": TensorSpec("x", "string", ("n",))}, "UTF-8"),
    ],
)
def test_raw_bodies_that_do_not_fit(body: bytes, inputs: dict[str, TensorSpec], words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode_request(body, 0, inputs)


BAD = {
    "empty": (b"", "truncated"),
    "not JSON": (b"\xff", "malformed"),
    "a list": (b"[]", "Expected `object`"),
    "no inputs": (b"{}", "missing required field `inputs`"),
    "inputs is a number": (b'{"inputs":1}', "inputs"),
    "no shape": (b'{"inputs":[{"name":"x","datatype":"FP32","data":[1]}]}', "missing required field `shape`"),
    "no datatype": (b'{"inputs":[{"name":"x","shape":[1],"data":[1]}]}', "missing required field `datatype`"),
    "unknown datatype": (infer_body(tensor("x", [1], [1], "FP8")), "Datatype 'FP8' is not known"),
    "another datatype": (infer_body(tensor("x", [1, 2], [1, 2], "INT32")), "got INT32, this model accepts FP32"),
    "a float in the shape": (infer_body(tensor("x", [1.5], [1])), "shape"),  # type: ignore[list-item]
    "a negative dimension": (infer_body(tensor("x", [-1, 2], [1, 2])), "dimension -1"),
    "an endless dimension": (infer_body(tensor("x", [10**30], [1])), "dimension"),
    "endless shape": (infer_body(tensor("x", [2**31 - 1] * 30, [1])), "1 values"),
    "twice": (infer_body(tensor("x", [1, 2], [1, 2]), tensor("x", [1, 2], [1, 2])), "given twice"),
    "no data": (b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32"}]}', "neither data nor binary_data_size"),
    "output twice": (
        infer_body(tensor("x", [1, 2], [1, 2]), outputs=[{"name": "y"}, {"name": "y"}]),
        "asked for twice",
    ),
    "negative classes": (
        infer_body(tensor("x", [1, 2], [1, 2]), outputs=[{"name": "y", "parameters": {"classification": -1}}]),
        "classification is -1",
    ),
    "id is a number": (infer_body(tensor("x", [1, 2], [1, 2]), id=5), "id"),
    "not a flag": (infer_body(tensor("x", [1, 2], [1, 2]), parameters={"binary_data_output": 1}), "true or false"),
    "a name that is not UTF-8": (b'{"inputs":[{"name":"\xff","shape":[1],"datatype":"FP32","data":[1]}]}', "utf-8"),
    "half a surrogate": (b'{"inputs":[{"name":"\\ud800","shape":[1],"datatype":"FP32","data":[1]}]}', "surrogate"),
    "deep data": (
        infer_body(tensor("x", [1], 0)).replace(b'"data": 0', b'"data": ' + b"[" * 99_999),
        "nested too deep",
    ),
    "deep elsewhere": (b'{"inputs":[],"x":' + b"[" * 99_999 + b"]" * 99_999 + b"}", "nested too deep"),
    "goes on": (infer_body(tensor("x", [1, 2], [1, 2])) + b"x", "trailing"),
}


@pytest.mark.parametrize(("body", "words"), BAD.values(), ids=BAD)
def test_bad_json(body: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        decode_request(body, None, X)


@pytest.mark.parametrize(
    ("head", "rest", "words"),
    [
        (infer_body(binary("x", [1, 2], 8)), b"\0" * 7, "binary_data_size is 8, the body has 7 bytes left"),
        (infer_body(binary("x", [1, 2], 8)), b"\0" * 9, "1 bytes that belong to no input"),
        (infer_body(binary("x", [1, 2], -8)), b"", "binary_data_size is -8"),
        (infer_body(binary("x", [1, 2], 2**62)), b"", "the body has 0 bytes left"),
        (infer_body(binary("x", [2, 2], 8)), b"\0" * 8, "got 8 bytes of data, FP32 of shape (2,2) has 16"),
        (infer_body({**binary("x", [1, 2], 8), "data": [1, 2]}), b"\0" * 8, "both data and binary_data_size"),
        (b'{"inputs":[', b"\0" * 8, "truncated"),
    ],
)
def test_bad_binary(head: bytes, rest: bytes, words: str) -> None:
    with pytest.raises(InputError) as caught:
        decode_request(head + rest, len(head), X)
    assert words in str(caught.value)


def test_a_header_length_must_fit_the_body() -> None:
    with pytest.raises(InputError, match="has 2 bytes, Inference-Header-Content-Length says 3"):
        decode_request(b"{}", 3, X)
    assert header_length_of(b"12") == 12
    for text in (b"", b"-1", b"1.0", b"0x2", b"\xb2", b"9" * 19):
        with pytest.raises(InputError):
            header_length_of(text)


def test_endless_json_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(RequestError, match="Send binary data") as caught:
        decode_request(b" " * (codec.MAX_JSON_BYTES + 1), None, X)
    assert caught.value.status == 413


def test_binary_tensors_after_json_ones() -> None:
    second = np.array([[3, 4]], np.float32)
    head = infer_body(tensor("a", [1, 2], [[1, 2]]), binary("b", [1, 2], 8), tensor("c", [1], ["x"], "BYTES"))
    feed = decode_request(head + bytes(raw_from_array("FP32", second)), len(head), {}).feed
    assert [feed[k].tolist() for k in "abc"] == [[[1, 2]], [[3, 4]], ["x"]]
