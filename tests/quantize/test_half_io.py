from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.quantize.fp16 import half_model
from edgekit.quantize.half_io import with_half_io
from edgekit.quantize.measure import outputs_of
from edgekit.quantize.prepare import prepared
from edgekit.quantize.trt import trt_int8
from tests.quantize.nets import conv_net, images, mlp_block, model_of, random
from tests.quantize.test_qdq import data_of


def types(values: object) -> set[int]:
    return {v.type.tensor_type.elem_type for v in values}  # type: ignore[attr-defined]


@pytest.mark.parametrize(("model", "x"), [(conv_net(), images(6)), (mlp_block(), random(4, 6, 32))])
def test_a_half_model_hands_half_in_and_out_without_casts(model: onnx.ModelProto, x: np.ndarray) -> None:
    whole = half_model(prepared(model))
    made = with_half_io(whole)
    onnx.checker.check_model(made, full_check=True)
    assert types((*made.graph.input, *made.graph.output)) == {TensorProto.FLOAT16}
    assert [n.op_type for n in made.graph.node].count("Cast") == 0
    data = data_of(x)
    wanted, got = outputs_of(whole, data), outputs_of(made, data)
    for name, value in wanted.items():
        assert got[name].dtype == np.float16
        assert np.allclose(got[name], value.astype(np.float16), rtol=2e-3, atol=2e-3)


def test_what_must_be_float_inside_is_cast_inside() -> None:
    ready = prepared(conv_net())
    made = with_half_io(ready)  # a float32 graph: both ends need a cast
    onnx.checker.check_model(made, full_check=True)
    assert [n.op_type for n in made.graph.node].count("Cast") == 2
    data = data_of(images(4))
    (wanted,), (got,) = outputs_of(ready, data).values(), outputs_of(made, data).values()
    assert np.allclose(got, wanted, rtol=2e-2, atol=2e-2)


def test_an_input_that_is_also_read_in_float_and_an_output_that_is_read_on() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["y"]),
        helper.make_node("Add", ["x", "y"], ["z"]),
    ]
    ready = prepared(model_of(nodes, {}, {"x": ("batch", 6)}, ["a", "z"]))
    made = with_half_io(half_model(ready))
    onnx.checker.check_model(made, full_check=True)
    data = data_of(random(3, 6))
    wanted, got = outputs_of(ready, data), outputs_of(made, data)
    for name in ("a", "z"):
        assert got[name].dtype == np.float16
        assert np.allclose(got[name], wanted[name], atol=2e-3)


def test_integer_inputs_and_the_eight_bit_form_keep_their_types_inside() -> None:
    ready = prepared(conv_net())
    data = data_of(images(8))
    made = with_half_io(half_model(trt_int8(ready, {})))
    assert types(made.graph.input) == {TensorProto.FLOAT16}
    assert outputs_of(made, data)[made.graph.output[0].name].dtype == np.float16
    nodes = [helper.make_node("Gather", ["table", "ids"], ["y"])]
    model = model_of(nodes, {"table": random(5, 4)}, {"ids": ("batch",)}, ["y"])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    half = with_half_io(model)
    assert types(half.graph.input) == {TensorProto.INT64}
    assert types(half.graph.output) == {TensorProto.FLOAT16}
