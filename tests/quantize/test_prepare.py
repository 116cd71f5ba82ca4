from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.errors import UsageError
from edgekit.quantize.measure import gap, outputs_of
from edgekit.quantize.prepare import prepared
from tests.quantize.nets import conv_net, model_of, random
from tests.quantize.test_qdq import data_of, quantized


@pytest.mark.parametrize(("op", "group"), [("Conv", 1), ("Conv", 2), ("ConvTranspose", 1), ("ConvTranspose", 2)])
def test_batch_norm_is_folded(op: str, group: int) -> None:
    weights = {
        "w": random(4, 4 // group, 3, 3),
        "g": np.array([1, 2, 0.5, -1], np.float32),
        "b": random(4),
        "m": random(4, seed=2),
        "v": np.array([1, 4, 0.25, 2], np.float32),
    }
    nodes = [
        helper.make_node(op, ["x", "w"], ["c"], group=group),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["y"]),
    ]
    model = model_of(nodes, weights, {"x": ("batch", 4, 6, 6)}, ["y"])
    ready = prepared(model)
    assert [n.op_type for n in ready.graph.node] == [op]
    data = data_of(random(3, 4, 6, 6))
    assert gap(outputs_of(model, data), outputs_of(ready, data), classes=False).error < 1e-10


def test_dropout_identity_and_constants_go() -> None:
    constant = helper.make_node("Constant", [], ["k"], value=onnx.numpy_helper.from_array(random(4)))
    nodes = [
        constant,
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Dropout", ["a"], ["b"]),
        helper.make_node("Add", ["b", "k"], ["y"]),
    ]
    ready = prepared(model_of(nodes, {}, {"x": ("batch", 4)}, ["y"]))
    assert [n.op_type for n in ready.graph.node] == ["Add"]
    assert ready.graph.node[0].name
    assert [t.name for t in ready.graph.initializer] == ["k"]


def test_an_old_opset_is_raised() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    ready = prepared(model_of(nodes, {"w": random(4, 3, 1, 1)}, {"x": ("batch", 3, 4, 4)}, ["y"], opset=9))
    assert ready.opset_import[0].version >= 13


def test_a_model_that_is_quantised_already_is_refused() -> None:
    made, _ = quantized(conv_net(), random(8, 3, 12, 12))
    with pytest.raises(UsageError, match="quantised already"):
        prepared(made)


def test_the_model_given_is_not_changed() -> None:
    model = conv_net()
    before = model.SerializeToString()
    prepared(model)
    assert model.SerializeToString() == before
