from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.quantize.calibrate import histograms
from edgekit.quantize.lint import lint_trt
from edgekit.quantize.measure import gap, outputs_of
from edgekit.quantize.prepare import prepared
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.search import observed
from edgekit.quantize.trt import trt_int8, trt_products
from tests.quantize.nets import conv_net, images, model_of, random
from tests.quantize.test_qdq import data_of, quantized


def residual_net() -> onnx.ModelProto:
    """Two convolutions with a shortcut, a pool, a ConvTranspose and a small head: (batch, 16, 8, 8)."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["a1"]),
        node("Conv", ["a1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        node("Add", ["c2", "a1"], ["s"]),
        node("Relu", ["s"], ["a2"]),
        node("ConvTranspose", ["a2", "w3"], ["t"], strides=[2, 2]),
        node("Conv", ["t", "w4"], ["y"]),
    ]
    weights = {
        "w1": random(16, 16, 3, 3, scale=0.1),
        "b1": random(16, scale=0.1),
        "w2": random(16, 16, 3, 3, scale=0.1, seed=1),
        "b2": random(16, scale=0.1),
        "w3": random(16, 24, 2, 2, scale=0.2),
        "w4": random(4, 24, 1, 1),
    }
    return model_of(nodes, weights, {"x": ("batch", 16, 8, 8)}, ["y"])


@pytest.fixture(scope="module")
def made() -> onnx.ModelProto:
    ready = prepared(residual_net())
    data = data_of(random(8, 16, 8, 8))
    scheme = Scheme(ready, histograms(ready, observed(ready), data), "minmax")
    model = trt_int8(ready, scheme.symmetric_ranges)
    onnx.checker.check_model(model, full_check=True)
    assert gap(outputs_of(ready, data), outputs_of(model, data, literal=True), classes=False).error < 1e-3
    return model


def fed_by(model: onnx.ModelProto, op: str, index: int) -> list[str]:
    """The operators that produce input `index` of each node of type `op`."""
    producer = {o: n.op_type for n in model.graph.node for o in n.output}
    return [producer.get(n.input[index], "") for n in model.graph.node if n.op_type == op]


def test_products_read_eight_bits_and_write_floats(made: onnx.ModelProto) -> None:
    assert fed_by(made, "Conv", 0) == ["DequantizeLinear", "DequantizeLinear", "ConvTranspose"]
    assert fed_by(made, "ConvTranspose", 0) == ["DequantizeLinear"]
    assert fed_by(made, "Relu", 0) == ["Conv", "Add"], "nothing between a convolution and its activation"
    assert lint_trt(made) == []


def test_only_the_shortcut_of_a_residual_sum_is_quantised(made: onnx.ModelProto) -> None:
    assert fed_by(made, "Add", 0) == ["Conv"]
    assert fed_by(made, "Add", 1) == ["DequantizeLinear"]
    conv, add = (next(n for n in made.graph.node if n.op_type == op) for op in ("ConvTranspose", "Add"))
    assert add.input[1] != conv.input[0]
    pairs = [n.input[0] for n in made.graph.node if n.op_type == "QuantizeLinear"]
    assert len(pairs) == len(set(pairs)), "one pair for each tensor, shared by its readers"


def test_biases_stay_float_and_weights_have_a_scale_a_channel(made: onnx.ModelProto) -> None:
    constants = {t.name: t for t in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type == "Conv" and len(node.input) > 2:
            assert constants[node.input[2]].data_type == TensorProto.FLOAT
    scales = {n.input[0]: numpy_helper.to_array(constants[n.input[1]]) for n in made.graph.node if n.op_type[0] == "D"}
    assert sorted(s.size for s in scales.values() if s.ndim) == [16, 16, 24]
    assert {t.data_type for t in made.graph.initializer} == {TensorProto.FLOAT, TensorProto.INT8}


def test_small_products_and_matrix_vector_products_stay_float() -> None:
    model = prepared(conv_net())
    assert trt_products(model) == [], "eight channels are too few"
    wide = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": random(64, 64)}, {"x": ("batch", 64)}, ["y"])
    assert trt_products(prepared(wide)) == [], "one row at batch 1 is a matrix-vector product"
    rows = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": random(64, 64)}, {"x": ("batch", 9, 64)}, ["y"]
    )
    assert len(trt_products(prepared(rows))) == 1


def test_concat_has_one_scale() -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["a"]),
        node("Conv", ["x", "w2"], ["b"]),
        node("Concat", ["a", "b"], ["c"], axis=1),
        node("Conv", ["a", "w1"], ["d"]),
        node("Conv", ["c", "w3"], ["e"]),
        node("Add", ["d", "e"], ["y"]),
    ]
    weights = {"w1": random(16, 16, 1, 1), "w2": random(16, 16, 1, 1, scale=9), "w3": random(16, 32, 1, 1)}
    ready = prepared(model_of(nodes, weights, {"x": ("batch", 16, 4, 4)}, ["y"]))
    scheme = Scheme(ready, histograms(ready, observed(ready), data_of(random(4, 16, 4, 4))), "minmax")
    made = trt_int8(ready, scheme.symmetric_ranges)
    scale = {n.input[0]: n.input[1] for n in made.graph.node if n.op_type == "QuantizeLinear"}
    value = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert value[scale["a"]] == value[scale["c"]]


def test_lint_refuses_the_form_of_onnx_runtime() -> None:
    made, _ = quantized(conv_net(), images(8))
    faults = " ".join(lint_trt(made))
    assert "uint8 zero point" in faults
    assert "quantised bias" in faults


def test_lint_names_each_fault(made: onnx.ModelProto) -> None:
    def broken(change: str) -> str:
        model = onnx.ModelProto()
        model.CopyFrom(made)
        pair = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
        constants = {t.name: t for t in model.graph.initializer}
        if change == "scale":
            constants[pair.input[1]].CopyFrom(numpy_helper.from_array(np.float32(-1), pair.input[1]))
        elif change == "zero":
            constants[pair.input[2]].CopyFrom(numpy_helper.from_array(np.int8(3), pair.input[2]))
        elif change == "missing":
            del pair.input[2:]
        elif change == "axis":
            weight = next(n for n in model.graph.node if n.op_type == "DequantizeLinear" and "w1" in n.input[0])
            weight.attribute[0].i = 1
        else:
            pair.input[1] = "x"
        return " ".join(lint_trt(model))

    assert "not positive" in broken("scale")
    assert "other than 0" in broken("zero")
    assert "no zero point" in broken("missing")
    assert "not constant" in broken("dynamic")
    assert "along axis 1, not 0" in broken("axis")
