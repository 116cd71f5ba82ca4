"""Channels-last models: the transposes around their convolutions meet and go."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from edgekit.export.layout import sink_transposes
from tests.export.common import model, operators, run

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.random((2, 4, 5, 3), np.float32)
TO_FIRST, TO_LAST = [0, 3, 1, 2], [0, 2, 3, 1]


def transpose(before: str, after: str, order: list[int]) -> onnx.NodeProto:
    return helper.make_node("Transpose", [before], [after], perm=order)


def conv(before: str, after: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [before, "weight"], [after], pads=[1, 1, 1, 1])


def channels_last(between: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:
    """Two convolutions of images (batch, 4, 5, 3), with nodes from tensor "a" to "b" between them."""
    nodes = [
        transpose("x", "first", TO_FIRST), conv("first", "c"), transpose("c", "a", TO_LAST), *between,
        transpose("b", "back", TO_FIRST), conv("back", "d"), transpose("d", "y", TO_LAST),
    ]  # fmt: skip
    weights = {"weight": RANDOM.random((3, 3, 3, 3), np.float32) - 0.5, **constants}
    return model(nodes, {"x": ["batch", 4, 5, 3]}, {"y": ["batch", 4, 5, 3]}, weights)


def same_after(proto: onnx.ModelProto) -> tuple[int, list[str]]:
    """Transposes dropped from `proto` and the operators left; it must still give what it gave, and be valid."""
    expected = run(proto, x=IMAGE)
    dropped = sink_transposes(proto)
    onnx.checker.check_model(proto, full_check=True)
    for name, value in run(proto, x=IMAGE).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
    return dropped, operators(proto)


@pytest.mark.parametrize("shape", [(3,), (1, 1, 1, 3), (4, 1, 3), (1,), ()])
def test_constants_turn_with_the_transpose(shape: tuple[int, ...]) -> None:
    nodes = [
        helper.make_node("Sub", ["a", "k"], ["s"]),
        helper.make_node("Mul", ["k", "s"], ["m"]),
        helper.make_node("Relu", ["m"], ["b"]),
    ]
    dropped, left = same_after(channels_last(nodes, k=RANDOM.random(shape).astype(np.float32)))
    assert dropped == 1
    assert left == ["Transpose", "Conv", "Sub", "Mul", "Relu", "Conv", "Transpose"]


def test_a_tensor_that_others_read_keeps_its_transpose() -> None:
    nodes = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Add", ["a", "r"], ["b"])]
    dropped, left = same_after(channels_last(nodes))
    assert dropped == 0
    assert left.count("Transpose") == 4


def test_an_output_keeps_its_layout() -> None:
    proto = channels_last([helper.make_node("Relu", ["a"], ["b"])])
    proto.graph.output.add().CopyFrom(helper.make_tensor_value_info("b", 1, ["batch", 4, 5, 3]))
    dropped, left = same_after(proto)
    assert dropped == 1, "the convolution reads what was before the transpose"
    assert left.count("Transpose") == 3


def test_a_softmax_over_channels_stops_the_transpose() -> None:
    dropped, left = same_after(channels_last([helper.make_node("Softmax", ["a"], ["b"], axis=3)]))
    assert dropped == 0
    assert left.count("Transpose") == 4


def test_transposes_of_attention_stay_where_they_are() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["q"]),
        transpose("q", "t", [0, 2, 1]),
        helper.make_node("Mul", ["t", "k"], ["y"]),
    ]
    weights = {"w": RANDOM.random((3, 3), np.float32), "k": np.float32([2.0])}
    proto = model(nodes, {"x": ["batch", 4, 3]}, {"y": ["batch", 3, 4]}, weights)
    assert sink_transposes(proto) == 0
    assert operators(proto) == ["MatMul", "Transpose", "Mul"]
