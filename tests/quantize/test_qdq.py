from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.quantize.calibrate import histograms
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.measure import gap, outputs_of
from edgekit.quantize.prepare import prepared
from edgekit.quantize.qdq import affine_u8, cpu_int8
from edgekit.quantize.ranges import Range
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.search import observed
from edgekit.tensors import TensorSpec
from tests.quantize.nets import conv_net, images, mlp_block, model_of, operators, random


def data_of(x: np.ndarray) -> CalibrationData:
    spec = TensorSpec("x", "float32", ("batch", *x.shape[1:]))
    return CalibrationData((spec,), {"x": x}, len(x), "test")


def quantized(model: onnx.ModelProto, x: np.ndarray, **options: object) -> tuple[onnx.ModelProto, float]:
    """The INT8 form of `model` calibrated on `x`, and its error there."""
    ready = prepared(model)
    data = data_of(x)
    scheme = Scheme(ready, histograms(ready, observed(ready), data), "minmax")
    made = cpu_int8(ready, scheme.ranges, **options)  # type: ignore[arg-type]
    onnx.checker.check_model(made, full_check=True)
    return made, gap(outputs_of(ready, data), outputs_of(made, data), classes=False).error


def test_affine_scales_keep_zero_exact() -> None:
    scale, zero = affine_u8(Range(-1.0, 3.0))
    assert (0 - int(zero)) * float(scale) == pytest.approx(-1.0, abs=float(scale))
    assert affine_u8(Range(0.0, 0.0))[0] > 0
    assert affine_u8(Range(2.0, 5.0))[1] == 0


def test_a_convolution_net_runs_in_integers_from_end_to_end() -> None:
    made, error = quantized(conv_net(), images(16))
    found = operators(made.SerializeToString())
    assert found.count("QLinearConv") == 3
    assert {"QLinearAdd", "QLinearGlobalAveragePool", "QGemm"} <= set(found)
    assert not {"Conv", "Add", "Gemm", "Relu"} & set(found)
    assert error < 3e-3


def test_matrix_products_take_eight_bits_and_hand_floats_to_the_residual_stream() -> None:
    made, error = quantized(mlp_block(), random(8, 6, 32))
    found = operators(made.SerializeToString())
    assert found.count("MatMulIntegerToFloat") + found.count("QLinearMatMul") == 2
    assert "Add" in found
    assert error < 1e-3


def test_products_named_as_float_stay_float() -> None:
    made, error = quantized(conv_net(), images(16), floats={prepared(conv_net()).graph.node[0].name})
    found = operators(made.SerializeToString())
    assert found.count("QLinearConv") == 2
    assert "Conv" in found or "FusedConv" in found
    assert error < quantized(conv_net(), images(16))[1]


def test_names_and_types_of_inputs_and_outputs_stay() -> None:
    model = conv_net()
    nodes = list(model.graph.node)[:3]
    short = model_of(
        nodes,
        {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer},
        {"x": ("batch", 3, 12, 12)},
        ["a1", "c2"],
    )
    made, error = quantized(short, images(8))
    assert [o.name for o in made.graph.output] == ["a1", "c2"]
    assert operators(made.SerializeToString()).count("QLinearConv") == 2
    assert error < 1e-3


def test_weights_shared_by_two_products_and_by_a_float_reader() -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("MatMul", ["a", "w"], ["b"]),
        node("ReduceMean", ["w"], ["m"], keepdims=0),
        node("Add", ["b", "m"], ["y"]),
    ]
    model = model_of(nodes, {"w": random(16, 16, scale=0.3)}, {"x": ("batch", 16)}, ["y"])
    _, error = quantized(model, random(32, 16))
    assert error < 1e-3


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_with_either_side_transposed(trans: int) -> None:
    weight = random(16, 5, seed=3)
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=trans, alpha=0.5, beta=2.0)]
    weights = {"w": weight.T.copy() if trans else weight, "b": random(5)}
    made, error = quantized(model_of(nodes, weights, {"x": ("batch", 16)}, ["y"]), random(32, 16))
    assert "QGemm" in operators(made.SerializeToString())
    assert error < 1e-3


def test_products_of_two_activations() -> None:
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "wq"], ["q"]),
        node("MatMul", ["x", "wk"], ["k"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("MatMul", ["p", "x"], ["y"]),
    ]
    weights = {"wq": random(16, 16, scale=0.3), "wk": random(16, 16, scale=0.3, seed=2)}
    made, error = quantized(model_of(nodes, weights, {"x": ("batch", 8, 16)}, ["y"]), random(8, 8, 16))
    assert "MatMul" not in operators(made.SerializeToString())
    assert error < 2e-3


def test_grouped_convolution_and_concat() -> None:
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1"], ["a"], group=2, pads=[1, 1, 1, 1]),
        node("Conv", ["x", "w2"], ["b"]),
        node("Concat", ["a", "b"], ["c"], axis=1),
        node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Conv", ["p", "w3"], ["y"]),
    ]
    weights = {"w1": random(4, 2, 3, 3), "w2": random(4, 4, 1, 1), "w3": random(3, 8, 1, 1)}
    made, error = quantized(model_of(nodes, weights, {"x": ("batch", 4, 8, 8)}, ["y"]), random(8, 4, 8, 8))
    found = operators(made.SerializeToString())
    assert found.count("QLinearConv") == 3
    assert "QLinearConcat" in found
    assert error < 1e-3


def test_leaky_relu_and_other_activations_between_convolutions() -> None:
    for activation in ("LeakyRelu", "Sigmoid", "Tanh", "HardSwish"):
        _, error = quantized(conv_net(activation=activation), images(16))
        assert error < 3e-2, activation


def test_a_graph_with_control_flow_keeps_what_its_bodies_read() -> None:
    node = helper.make_node
    value = helper.make_tensor_value_info
    body = helper.make_graph([node("Neg", ["a"], ["out1"])], "then", [], [value("out1", 1, None)])
    other = helper.make_graph([node("Identity", ["a"], ["out2"])], "else", [], [value("out2", 1, None)])
    nodes = [
        node("MatMul", ["x", "w"], ["m"]),
        node("Relu", ["m"], ["a"]),
        node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["positive"]),
        node("If", ["positive"], ["c"], then_branch=body, else_branch=other),
        node("MatMul", ["c", "w"], ["y"]),
    ]
    weights = {"w": random(16, 16, scale=0.3), "zero": np.zeros((), np.float32)}
    _, error = quantized(model_of(nodes, weights, {"x": ("batch", 16)}, ["y"]), random(32, 16))
    assert error < 1e-3
