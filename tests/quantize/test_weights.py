from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.quantize.weights import LEVELS, channel_scales, quantized, quantized_bias, scales_for_bias
from edgekit.runtime.ort import OrtSession
from tests.quantize.nets import random


def worst_pair(values: np.ndarray) -> int:
    flat = values.reshape(len(values), -1).astype(int)
    flat = np.pad(flat, ((0, 0), (0, flat.shape[1] % 2))).reshape(len(values), -1, 2)
    return int(max(np.maximum(flat, 0).sum(-1).max(), np.maximum(-flat, 0).sum(-1).max()))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([(4, 6, 3, 3), (5, 7, 1, 1), (3, 9), (2, 1, 5, 5)]))
def test_no_pair_of_neighbours_can_overflow_sixteen_bits(seed: int, shape: tuple[int, ...]) -> None:
    weight = random(*shape, seed=seed) ** 3
    found = quantized(weight, channel_scales(weight, 0, pair_safe=True), 0).values
    assert worst_pair(found) <= 128
    assert worst_pair(np.moveaxis(found, 1, -1)) <= 128


def test_rounding_is_within_half_a_step_and_uses_all_levels() -> None:
    weight = random(4, 8, 3, 3)
    found = quantized(weight, channel_scales(weight, 0, pair_safe=False), 0)
    assert np.abs(found.values.reshape(4, -1)).max(axis=1).tolist() == [LEVELS] * 4
    gap = np.abs(found.dequantized() - weight) / found.scale.reshape(4, 1, 1, 1)
    assert gap.max() <= 0.5 + 1e-4


def test_pair_safe_weights_keep_more_than_seven_bits() -> None:
    weight = random(64, 64, 3, 3)
    seven_bits = np.abs(weight).reshape(64, -1).max(axis=1) / 63
    assert (channel_scales(weight, 0, pair_safe=True) < seven_bits).all()


def test_a_channel_of_zeros_has_a_scale() -> None:
    assert (channel_scales(np.zeros((2, 3), np.float32), 0, pair_safe=True) > 0).all()


@pytest.mark.parametrize("pair_safe", [True, False])
def test_a_bias_that_is_large_for_its_channel_raises_the_scale(pair_safe: bool) -> None:
    weight = random(2, 4, scale=1e-7)
    bias = np.array([3.0, 0.0], np.float32)
    scale = scales_for_bias(channel_scales(weight, 0, pair_safe=pair_safe), bias, 1e-4)
    steps = quantized_bias(bias, scale * np.float32(1e-4))
    assert abs(steps[0] * float(scale[0]) * 1e-4 - 3.0) < 1e-6
    assert scale[1] == channel_scales(weight, 0, pair_safe=pair_safe)[1]


def test_onnx_runtime_multiplies_pair_safe_weights_exactly_at_the_extreme() -> None:
    """All activations at 255: eight-bit weights saturate in 16 bits on CPUs without VNNI, these do not."""
    weight = random(16, 32, 3, 3)
    found = quantized(weight, channel_scales(weight, 0, pair_safe=True), 0)
    ones, zero = np.ones(16, np.float32), np.zeros(16, np.int8)
    constants = {
        "one": np.float32(1), "zero": np.uint8(0), "w": found.values, "ws": ones, "wz": zero, "ys": np.float32(4000),
        "yz": np.uint8(128),
    }  # fmt: skip
    node = helper.make_node("QLinearConv", ["x", "one", "zero", "w", "ws", "wz", "ys", "yz"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 32, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 16, 6, 6])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with OrtSession(model.SerializeToString()) as session:
        y = session.run({"x": np.full((1, 32, 6, 6), 255, np.uint8)})["y"]
    padded = np.pad(np.full((32, 6, 6), 255.0), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    exact = np.einsum("chwij,ocij->ohw", windows, found.values.astype(float))
    assert np.array_equal(y[0], np.clip(np.rint(exact / 4000) + 128, 0, 255))
