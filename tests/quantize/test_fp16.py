from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgekit.quantize.fp16 import LARGEST, half_model, half_weights
from edgekit.quantize.measure import gap, outputs_of
from edgekit.quantize.prepare import prepared
from tests.quantize.nets import conv_net, images, mlp_block, model_of, random
from tests.quantize.test_qdq import data_of


def halved(model: onnx.ModelProto, x: np.ndarray) -> tuple[onnx.ModelProto, float]:
    ready = prepared(model)
    made = half_model(ready)
    onnx.checker.check_model(made, full_check=True)
    data = data_of(x)
    return made, gap(outputs_of(ready, data), outputs_of(made, data), classes=False).error


def test_inputs_and_outputs_stay_float32_and_weights_are_half() -> None:
    made, error = halved(conv_net(), images(8))
    for value in (*made.graph.input, *made.graph.output):
        assert value.type.tensor_type.elem_type == TensorProto.FLOAT
    assert {t.data_type for t in made.graph.initializer} == {TensorProto.FLOAT16}
    assert [n.op_type for n in made.graph.node].count("Cast") == 2
    assert 0 < error < 1e-5


def test_a_transformer_block() -> None:
    _, error = halved(mlp_block(), random(4, 6, 32))
    assert error < 1e-5


def test_weights_beyond_the_range_are_clamped() -> None:
    assert half_weights(np.array([1e9, -1e9, 1.0], np.float32)).tolist() == [LARGEST, -LARGEST, 1.0]


def test_resize_keeps_its_scales_in_float32() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Resize", ["c", "", "scales"], ["y"], mode="linear"),
    ]
    weights = {"w": random(4, 3, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32)}
    made, error = halved(model_of(nodes, weights, {"x": ("batch", 3, 6, 6)}, ["y"]), random(2, 3, 6, 6))
    assert next(t for t in made.graph.initializer if t.name == "scales").data_type == TensorProto.FLOAT
    assert error < 1e-5


def test_an_intermediate_output_is_float32_for_the_reader_and_half_inside() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Neg", ["a"], ["y"])]
    made, error = halved(model_of(nodes, {}, {"x": ("batch", 6)}, ["a", "y"]), random(3, 6))
    assert [o.name for o in made.graph.output] == ["a", "y"]
    assert error < 1e-5


def test_nodes_named_as_float_stay_float() -> None:
    ready = prepared(mlp_block())
    norm = ready.graph.node[0].name
    made = half_model(ready, floats={norm})
    node = next(n for n in made.graph.node if n.name == norm)
    assert node.input[0] == "x"
    assert "g" in node.input
