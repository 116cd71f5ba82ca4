"""Requests that repeat are read as those that do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.serve import reader
from edgekit.serve.codec import decode_request
from edgekit.serve.messages import WantedOutput
from edgekit.serve.reader import RequestReader
from edgekit.serve.wire import raw_from_array
from edgekit.tensors import dtype_of
from tests.serve.running import infer_body, tensor
from tests.serve.test_wire import calm, equal, tensors


def binary(dtype: str, shape: tuple[int, ...], size: int, name: str = "x") -> dict[str, Any]:
    parameters = {"binary_data_size": size}
    return {"name": name, "shape": list(shape), "datatype": dtype_of(dtype).oip, "parameters": parameters}


@calm
@given(st.lists(tensors(), min_size=1, max_size=3), st.text(max_size=3), st.booleans())
def test_the_second_time_is_as_the_first(values: list[tuple[str, np.ndarray]], request_id: str, one_json: bool) -> None:
    raws = [bytes(raw_from_array(dtype_of(d).oip, v)) for d, v in values]
    items = [binary(d, v.shape, len(raw), f"t{i}") for i, ((d, v), raw) in enumerate(zip(values, raws))]
    extra = [tensor("json", [1], [1.5])] if one_json else []
    outputs = [{"name": "y", "parameters": {"classification": 2}}]
    head = infer_body(*items, *extra, id=request_id, outputs=outputs, parameters={"binary_data_output": True})
    body = head + b"".join(raws)
    memory = RequestReader({})
    for _ in range(3):
        request = memory.read(body, len(head))
        assert (request.id, request.binary) == (request_id, True)
        assert request.outputs == (WantedOutput("y", True, 2),)
        for i, (dtype, value) in enumerate(values):
            got = request.feed[f"t{i}"]
            assert equal(dtype, got, value)
            assert got.flags.aligned
        assert len(request.feed) == len(values) + one_json


def test_the_same_json_before_other_tensors() -> None:
    memory = RequestReader({})
    head = infer_body(binary("float32", (2,), 8))
    for values in ([1, 2], [3, 4], [-1, 0]):
        body = head + np.array(values, np.float32).tobytes()
        assert memory.read(body, len(head)).feed["x"].tolist() == values


def test_a_body_of_another_length_is_looked_at_anew() -> None:
    memory = RequestReader({})
    head = infer_body(binary("float32", (2,), 8))
    memory.read(head + bytes(8), len(head))
    for wrong in (0, 7, 9, 16):
        with pytest.raises(InputError):
            memory.read(head + bytes(wrong), len(head))


def test_values_that_need_a_look_get_it_each_time() -> None:
    memory = RequestReader({})
    head = infer_body(binary("bool", (2,), 2))
    assert memory.read(head + b"\0\1", len(head)).feed["x"].tolist() == [False, True]
    with pytest.raises(InputError, match="0 or 1"):
        memory.read(head + b"\0\7", len(head))


def test_many_forms_of_requests_do_not_fill_the_memory() -> None:
    memory = RequestReader({})
    for i in range(3 * reader.MAX_PLANS):
        head = infer_body(binary("int8", (1,), 1, name=f"x{i}"))
        assert list(memory.read(head + b"\5", len(head)).feed) == [f"x{i}"]
    assert len(memory._plans) <= reader.MAX_PLANS


def test_other_forms_pass_through() -> None:
    body = infer_body(tensor("x", [1], [2]))
    assert RequestReader({}).read(body, None).feed["x"] == decode_request(body, None, {}).feed["x"] == 2
