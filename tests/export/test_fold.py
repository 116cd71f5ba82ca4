from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.export.fold import fold_affine, fold_batchnorm
from tests.export.common import model, operators, run

RNG = np.random.default_rng(0)


def norm_weights(channels: int) -> dict[str, np.ndarray]:
    values = {
        "s": RNG.uniform(0.5, 2, channels),
        "b": RNG.normal(size=channels),
        "m": RNG.normal(size=channels),
        "v": RNG.uniform(0.5, 2, channels),
    }
    return {k: v.astype(np.float32) for k, v in values.items()}


def f32(*shape: int) -> np.ndarray:
    return np.asarray(RNG.normal(size=shape), np.float32)


CASES = {
    "Conv": ({"group": 1}, {"w": f32(6, 4, 3, 3)}, (2, 4, 8, 8), 6),
    "Conv with bias": ({"group": 1}, {"w": f32(6, 4, 1, 1), "c": f32(6)}, (2, 4, 8, 8), 6),
    "Conv depthwise": ({"group": 4}, {"w": f32(4, 1, 3, 3)}, (2, 4, 8, 8), 4),
    "Conv 1d": ({}, {"w": f32(6, 4, 3)}, (2, 4, 8), 6),
    "ConvTranspose": ({"strides": [2, 2]}, {"w": f32(4, 6, 2, 2)}, (2, 4, 5, 5), 6),
    "ConvTranspose grouped": ({"group": 2, "strides": [2, 2]}, {"w": f32(4, 3, 2, 2), "c": f32(6)}, (2, 4, 5, 5), 6),
    "Gemm": ({}, {"w": f32(4, 6), "c": f32(6)}, (3, 4), 6),
    "Gemm transposed": ({"transB": 1, "alpha": 0.5, "beta": 2.0}, {"w": f32(6, 4), "c": f32(1)}, (3, 4), 6),
}


@pytest.mark.parametrize("case", CASES)
def test_folded_model_computes_the_same(case: str) -> None:
    attributes, weights, shape, channels = CASES[case]
    nodes = [
        helper.make_node(case.split()[0], ["x", *weights], ["h"], **attributes),
        helper.make_node("BatchNormalization", ["h", "s", "b", "m", "v"], ["y"], epsilon=1e-3),
    ]
    proto = model(nodes, {"x": shape}, {"y": [None] * len(shape)}, {**weights, **norm_weights(channels)})
    x = f32(*shape)
    before = run(proto, x=x)["y"]
    assert fold_batchnorm(proto) == 1
    assert operators(proto) == [case.split()[0]]
    assert {t.name for t in proto.graph.initializer} == set(proto.graph.node[0].input[1:])
    np.testing.assert_allclose(run(proto, x=x)["y"], before, rtol=1e-4, atol=1e-5)


def conv_and_norm(**norm: int) -> list:
    return [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", "s", "b", "m", "v"], ["y"], **norm),
    ]


def test_a_convolution_that_something_else_reads_keeps_its_batchnorm() -> None:
    nodes = [*conv_and_norm(), helper.make_node("Relu", ["h"], ["z"])]
    weights = {"w": f32(4, 4, 1, 1), **norm_weights(4)}
    proto = model(nodes, {"x": (1, 4, 2, 2)}, {"y": [None] * 4, "z": [None] * 4}, weights)
    assert fold_batchnorm(proto) == 0
    assert "BatchNormalization" in operators(proto)


def test_training_mode_is_left_alone() -> None:
    weights = {"w": f32(4, 4, 1, 1), **norm_weights(4)}
    proto = model(conv_and_norm(training_mode=1), {"x": (1, 4, 2, 2)}, {"y": [None] * 4}, weights)
    assert fold_batchnorm(proto) == 0


def test_weights_shared_by_two_convolutions_stay_right() -> None:
    nodes = [*conv_and_norm(), helper.make_node("Conv", ["x", "w"], ["z"])]
    weights = {"w": f32(4, 4, 1, 1), **norm_weights(4)}
    proto = model(nodes, {"x": (1, 4, 2, 2)}, {"y": [None] * 4, "z": [None] * 4}, weights)
    x = f32(1, 4, 2, 2)
    before = run(proto, x=x)
    assert fold_batchnorm(proto) == 1
    after = run(proto, x=x)
    for name in ("y", "z"):
        np.testing.assert_allclose(after[name], before[name], rtol=1e-4, atol=1e-5)


def test_a_chain_of_batchnorms_is_folded_one_into_the_next() -> None:
    nodes = [*conv_and_norm(), helper.make_node("BatchNormalization", ["y", "s", "b", "m", "v"], ["z"])]
    proto = model(nodes, {"x": (1, 4, 2, 2)}, {"z": [None] * 4}, {"w": f32(4, 4, 1, 1), **norm_weights(4)})
    x = f32(1, 4, 2, 2)
    before = run(proto, x=x)["z"]
    fold_batchnorm(proto)
    assert operators(proto) == ["Conv"]
    np.testing.assert_allclose(run(proto, x=x)["z"], before, rtol=1e-4, atol=1e-5)


AFFINE = {
    "Add": lambda y, k: y + k,
    "Sub": lambda y, k: y - k,
    "Mul": lambda y, k: y * k,
    "Div": lambda y, k: y / k,
}


@pytest.mark.parametrize("operator", AFFINE)
@pytest.mark.parametrize("layer", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("shape", [(1, 6, 1, 1), (6, 1, 1), (1,)])
def test_a_constant_a_channel_folds(operator: str, layer: str, shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    weights = {
        "w": random.random((4, 3, 3, 3) if layer == "ConvTranspose" else (6, 2, 3, 3), np.float32),
        "b": random.random(6, np.float32),
        "k": random.random(shape, np.float32) + 0.5,
    }
    nodes = [
        helper.make_node(layer, ["x", "w", "b"], ["c"], group=2),
        helper.make_node(operator, ["c", "k"], ["y"]),
    ]
    proto = model(nodes, {"x": ["batch", 4, 8, 8]}, {"y": ["batch", 6, "h", "w"]}, weights)
    x = random.random((2, 4, 8, 8), np.float32)
    expected = run(proto, x=x)["y"]
    assert fold_affine(proto) == 1
    assert operators(proto) == [layer]
    np.testing.assert_allclose(run(proto, x=x)["y"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "constant"),
    [
        ([helper.make_node("Add", ["c", "k"], ["y"])], (1, 1, 6, 6)),
        ([helper.make_node("Add", ["c", "k"], ["y"])], (6,)),
        ([helper.make_node("Sub", ["k", "c"], ["y"])], (6, 1, 1)),
        ([helper.make_node("Div", ["c", "k"], ["y"])], (0,)),
        ([helper.make_node("Add", ["c", "k"], ["d"]), helper.make_node("Mul", ["c", "d"], ["y"])], (6, 1, 1)),
    ],
    ids=["places", "last axis", "constant first", "zero", "read twice"],
)
def test_what_is_no_scale_or_shift_of_a_channel_stays(nodes: list[onnx.NodeProto], constant: tuple[int, ...]) -> None:
    value = np.zeros(1, np.float32) if constant == (0,) else np.ones(constant, np.float32)
    weights = {"w": np.ones((6, 4, 3, 3), np.float32), "k": value}
    layer = helper.make_node("Conv", ["x", "w"], ["c"])
    proto = model([layer, *nodes], {"x": ["batch", 4, 8, 8]}, {"y": ["batch", 6, 6, 6]}, weights)
    before = operators(proto)
    assert fold_affine(proto) == 0
    assert operators(proto) == before
