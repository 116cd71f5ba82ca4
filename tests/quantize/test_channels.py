from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.quantize.attention import attention_equalized, attention_links
from edgekit.quantize.calibrate import observe
from edgekit.quantize.channels import ChannelPeaks, channel_groups, channel_peaks, equalized
from edgekit.quantize.graph import Graph
from edgekit.quantize.measure import gap, outputs_of
from edgekit.quantize.prepare import prepared
from tests.quantize.nets import conv_net, images, mlp_block, model_of, random
from tests.quantize.test_qdq import data_of

HOSTILE = np.exp2(np.linspace(-5, 5, 8)).astype(np.float32)


def hostile_conv_net() -> onnx.ModelProto:
    """conv_net with the channels between the depthwise and the last convolution far apart; the same function."""
    model = conv_net()
    for t in model.graph.initializer:
        value = onnx.numpy_helper.to_array(t)
        if t.name in ("w2", "b2"):
            value = value * HOSTILE.reshape([-1] + [1] * (value.ndim - 1))
        if t.name == "w3":
            value = value / HOSTILE.reshape(1, -1, 1, 1)
        t.CopyFrom(onnx.numpy_helper.from_array(value.astype(np.float32), t.name))
    return model


def attention() -> onnx.ModelProto:
    """Two-headed attention with fused QKV and hostile V channels: (batch, 5, 16) to the same."""
    node = helper.make_node
    nodes = [
        node("MatMul", ["x", "wqkv"], ["m"]),
        node("Add", ["m", "bqkv"], ["qkv"]),
        node("Reshape", ["qkv", "split"], ["r"]),
        node("Transpose", ["r"], ["t"], perm=[2, 0, 3, 1, 4]),
        node("Gather", ["t", "i0"], ["q"], axis=0),
        node("Gather", ["t", "i1"], ["k"], axis=0),
        node("Gather", ["t", "i2"], ["v"], axis=0),
        node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2]),
        node("MatMul", ["q", "kt"], ["s"]),
        node("Softmax", ["s"], ["p"], axis=-1),
        node("MatMul", ["p", "v"], ["o"]),
        node("Transpose", ["o"], ["ot"], perm=[0, 2, 1, 3]),
        node("Reshape", ["ot", "merge"], ["oc"]),
        node("MatMul", ["oc", "wo"], ["y"]),
    ]
    factor = np.exp2(np.linspace(-4, 4, 16)).astype(np.float32)
    wqkv, bqkv, wo = random(16, 48, scale=0.3), random(48, scale=0.1), random(16, 16, scale=0.3)
    wqkv[:, 32:] *= factor
    bqkv[32:] *= factor
    weights = {
        "wqkv": wqkv,
        "bqkv": bqkv,
        "wo": wo / factor[:, None],
        "split": np.array([0, 5, 3, 2, 8]),
        "merge": np.array([0, 5, 16]),
        "i0": np.array(0),
        "i1": np.array(1),
        "i2": np.array(2),
    }
    return model_of(nodes, weights, {"x": ("batch", 5, 16)}, ["y"])


def spread(peaks: np.ndarray) -> float:
    return float(peaks.max() / peaks.min())


@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_equalisation_keeps_the_function_and_levels_the_channels(strength: float) -> None:
    model, data = prepared(hostile_conv_net()), data_of(images(8))
    groups = channel_groups(Graph(model))
    peaks = channel_peaks(model, groups, data)
    changed = equalized(model, peaks, strength=strength)
    assert gap(outputs_of(model, data), outputs_of(changed, data), classes=False).error < 1e-10
    after = channel_peaks(changed, channel_groups(Graph(changed)), data)
    assert spread(after["a2"]) < spread(peaks["a2"]) / 4


def test_channels_tied_by_a_residual_sum_are_one_group() -> None:
    groups = channel_groups(Graph(prepared(conv_net())))
    tied = next(g for g in groups if "s" in g.tensors)
    assert {"a1", "c3", "a3", "p", "f"} <= tied.tensors
    assert [n.op_type for n in tied.makers] == ["Conv", "Conv"]
    assert [n.op_type for n in tied.readers] == ["Conv", "Gemm"]


def test_activations_that_do_not_scale_are_left_alone() -> None:
    groups = channel_groups(Graph(prepared(conv_net(activation="Sigmoid"))))
    assert all("a1" not in g.tensors for g in groups)


def test_smoothing_moves_outliers_from_a_norm_into_the_weights() -> None:
    model = mlp_block()
    for t in model.graph.initializer:
        if t.name == "g":
            gain = np.ones(32, np.float32)
            gain[3] = 50
            t.CopyFrom(onnx.numpy_helper.from_array(gain, "g"))
    model, data = prepared(model), data_of(random(8, 6, 32))
    peaks = channel_peaks(model, channel_groups(Graph(model)), data)
    changed = equalized(model, peaks, strength=0.5, only="norm")
    assert gap(outputs_of(model, data), outputs_of(changed, data), classes=False).error < 1e-10
    after = channel_peaks(changed, channel_groups(Graph(changed)), data)
    assert spread(after["n"]) < spread(peaks["n"]) / 5


def test_the_way_of_v_is_found_through_any_reshapes_and_its_channels_levelled() -> None:
    model, data = prepared(attention()), data_of(random(4, 5, 16))
    links = attention_links(model, data)
    assert len(links) == 1
    assert links[0].source.tolist() == list(range(32, 48))
    peaks = ChannelPeaks({"oc": -1})
    observe(model, ["oc"], data, peaks)
    changed = attention_equalized(model, links, peaks.peaks, strength=0.8)
    assert gap(outputs_of(model, data), outputs_of(changed, data), classes=False).error < 1e-9
    after = ChannelPeaks({"oc": -1})
    observe(changed, ["oc"], data, after)
    assert spread(after.peaks["oc"]) < spread(peaks.peaks["oc"]) / 4


def test_models_without_attention_have_no_links() -> None:
    assert attention_links(prepared(mlp_block()), data_of(random(4, 6, 32))) == []
