"""Shapes of ONNX graphs: inferred without the values of weights, whatever their size."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit.graphs import annotated, facts, infer_shapes, tensor_shapes


def reshaping_model() -> onnx.ModelProto:
    """x (batch, 64) -> MatMul with 64 x 256 weights -> Reshape to (-1, 16, 16), whose shape is a constant."""
    weight = numpy_helper.from_array(np.ones((64, 256), np.float32), "w")
    shape = numpy_helper.from_array(np.array([-1, 16, 16], np.int64), "shape")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Reshape", ["h", "shape"], ["r"]),
        helper.make_node("Relu", ["r"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 64])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], [weight, shape])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def test_shapes_are_inferred_without_the_values_of_large_weights() -> None:
    model = reshaping_model()
    inferred = infer_shapes(model, {"batch": 2})
    shapes = tensor_shapes(inferred)
    assert shapes["h"] == (2, 256)
    assert shapes["r"][1:] == (16, 16), "a small constant that a shape is computed from is still known"
    assert inferred.ByteSize() < model.ByteSize() / 10
    assert model.graph.initializer[0].raw_data, "the model itself is untouched"


def test_an_annotated_model_is_whole() -> None:
    model = reshaping_model()
    found = annotated(model)
    onnx.checker.check_model(found, full_check=True)
    assert {v.name for v in found.graph.value_info} >= {"h", "r"}
    assert len(found.graph.output[0].type.tensor_type.shape.dim) == 3


@pytest.mark.parametrize(("kind", "gates"), [("RNN", 1), ("GRU", 3), ("LSTM", 4)])
def test_operations_of_recurrent_layers_are_counted(kind: str, gates: int) -> None:
    """Two a multiply-accumulate: at each of 7 steps the input and the state meet the weights of every gate."""
    weights = [
        numpy_helper.from_array(np.ones((1, gates * 5, size), np.float32), name) for name, size in (("w", 3), ("r", 5))
    ]
    node = helper.make_node(kind, ["x", "w", "r"], ["y"], hidden_size=5)
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [7, "batch", 3])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [7, 1, "batch", 5])
    graph = helper.make_graph([node], "g", [x], [y], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    assert facts(model).flops == 2 * 7 * gates * 5 * (3 + 5)
