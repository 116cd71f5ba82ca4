from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.quantize.calibrate import histograms, observe
from edgekit.quantize.correct import ChannelMeans, bias_corrected, product_inputs
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.graph import Graph
from edgekit.quantize.measure import outputs_of
from edgekit.quantize.prepare import prepared
from edgekit.quantize.rounding import compensated_weights, unfolded
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.search import observed
from edgekit.quantize.weights import channel_scales, quantized
from tests.quantize.nets import model_of, random
from tests.quantize.test_qdq import data_of
from tests.quantize.test_weights import worst_pair


def conv(stride: int = 1) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1], strides=[stride, stride], name="conv")]
    weights = {"w": random(6, 4, 3, 3, scale=0.3), "b": random(6)}
    return prepared(model_of(nodes, weights, {"x": ("batch", 4, 9, 9)}, ["y"]))


def correlated(count: int) -> np.ndarray:
    """Pictures whose neighbouring pixels and channels go together, and are not centred."""
    base = random(count, 1, 9, 9, seed=5)
    return (np.cumsum(base, axis=3) * 0.4 + random(count, 4, 9, 9, scale=0.2) + 1).astype(np.float32)


@pytest.mark.parametrize("stride", [1, 2])
def test_unfolded_windows_times_weights_are_the_convolution(stride: int) -> None:
    model, x = conv(stride), random(2, 4, 9, 9)
    node = model.graph.node[0]
    weight, bias = (onnx.numpy_helper.to_array(t) for t in model.graph.initializer)
    y = outputs_of(model, data_of(x))["y"]
    rows = unfolded(x, (3, 3), node) @ weight.reshape(6, -1).T + bias
    assert np.allclose(rows, y.transpose(0, 2, 3, 1).reshape(-1, 6), atol=1e-4)


def test_unfolded_windows_of_a_one_dimensional_convolution() -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[2, 1], strides=[2], name="conv")]
    weight = random(5, 3, 4)
    model, x = prepared(model_of(nodes, {"w": weight}, {"x": ("batch", 3, 20)}, ["y"])), random(2, 3, 20)
    y = outputs_of(model, data_of(x))["y"]
    rows = unfolded(x, (4,), model.graph.node[0]) @ weight.reshape(5, -1).T
    assert np.allclose(rows, y.transpose(0, 2, 1).reshape(-1, 5), atol=1e-4)


def test_compensated_rounding_has_less_output_error_than_the_nearest_step() -> None:
    model, data = conv(), data_of(correlated(16))
    scheme = Scheme(model, histograms(model, observed(model), data), "minmax")
    found = compensated_weights(model, data, scheme.ranges).cpu["conv"]
    weight = Graph(model).constants["w"]
    nearest = quantized(weight, channel_scales(weight, 0, pair_safe=True), 0)
    rows = unfolded(correlated(16), (3, 3), model.graph.node[0])

    def error(rounded: np.ndarray) -> float:
        return float(((rows @ (rounded - weight).reshape(6, -1).T) ** 2).mean())

    assert error(found.dequantized()) < 0.5 * error(nearest.dequantized())
    assert worst_pair(found.values) <= 128


@pytest.mark.parametrize("group", [2, 4])
def test_compensated_rounding_of_grouped_and_depthwise_convolutions(group: int) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], group=group, name="conv")]
    weight = random(8, 4 // group, 3, 3, scale=0.3)
    model, data = prepared(model_of(nodes, {"w": weight}, {"x": ("batch", 4, 9, 9)}, ["y"])), data_of(correlated(16))
    scheme = Scheme(model, histograms(model, observed(model), data), "minmax")
    found = compensated_weights(model, data, scheme.ranges)
    exact = outputs_of(model, data)["y"]

    def error(values: np.ndarray) -> float:
        graph = Graph(model)
        graph.nodes[0].input[1] = graph.constant("rounded", values)
        return float(((outputs_of(graph.model(), data)["y"] - exact) ** 2).mean())

    nearest = quantized(weight, channel_scales(weight, 0, pair_safe=False), 0)
    assert error(found.trt["conv"].dequantized()) < 0.6 * error(nearest.dequantized())
    assert worst_pair(found.cpu["conv"].values) <= 128 or group == 4


def input_means(model: onnx.ModelProto, data: CalibrationData) -> dict[str, np.ndarray]:
    means = ChannelMeans(product_inputs(Graph(model)))
    observe(model, list(means.axes), data, means)
    return means.means


def test_bias_correction_takes_the_mean_error_of_rounded_weights_back() -> None:
    model, data = conv(), data_of(correlated(16))
    weight = Graph(model).constants["w"]
    coarse = quantized(weight, np.abs(weight).reshape(6, -1).max(axis=1) / 3, 0).dequantized()
    corrected = bias_corrected(model, input_means(model, data), {"conv": coarse})

    def shift(biased: onnx.ModelProto) -> float:
        graph = Graph(biased)
        graph.nodes[0].input[1] = graph.constant("coarse", coarse)
        gap = outputs_of(graph.model(), data)["y"] - outputs_of(model, data)["y"]
        return float(np.abs(gap[:, :, 1:-1, 1:-1].mean(axis=(0, 2, 3))).max())

    assert shift(corrected) < 0.2 * shift(model)


def test_a_product_without_bias_gets_one_and_a_matmul_uses_the_add_after_it() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], name="product"),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    weights = {"w": random(8, 3), "b": random(3)}
    model = prepared(model_of(nodes, weights, {"x": ("batch", 8)}, ["y"]))
    data = data_of(random(32, 8) + 2)
    off = weights["w"] + 0.1
    corrected = bias_corrected(model, input_means(model, data), {"product": off})
    added = Graph(corrected).constants[corrected.graph.node[1].input[1]]
    mean = data.inputs["x"].mean(axis=0)
    assert np.allclose(added, weights["b"] - 0.1 * mean.sum(), atol=1e-4)
