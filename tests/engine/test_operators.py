from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekit.engine.operators import at_least, first_release, missing_reason, operator_support, restriction
from edgekit.engine.options import BuildOptions
from edgekit.engine.trt_module import TrtModule
from edgekit.trt_api import no_collection
from tests.engine.fakes import RELEASES


def test_the_table_is_what_the_real_parser_of_tensorrt_rtx_says(rtx: TrtModule) -> None:
    """Every operator of ONNX, asked of NVIDIA's own parser: no guess is left in the table."""
    names = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    with no_collection():
        logger = rtx.logger(lambda _severity, _text: None, verbose=False)
        network = rtx.trt.Builder(logger).create_network(rtx.network_flags())
        parser = rtx.trt.OnnxParser(network, logger)
        taken = {n for n in names if parser.supports_operator(n)}
    promised = set(PARSED_BUT_NOT_BUILT)
    assert {n for n in names if operator_support(n, "1.7", rtx=True) == "yes"} == taken - promised
    assert promised <= taken


def suppression() -> onnx.ModelProto:
    """Three classes of fifty boxes."""
    values = {"most": np.array([10]), "iou": np.array([0.5], np.float32), "score": np.array([0.1], np.float32)}
    node = helper.make_node("NonMaxSuppression", ["boxes", "scores", *values], ["y"])
    shapes = {"boxes": (1, 50, 4), "scores": (1, 3, 50)}
    return _model(node, shapes, {"y": (onnx.TensorProto.INT64, (None, 3))}, values)


def region_alignment() -> onnx.ModelProto:
    """Five regions of one map."""
    node = helper.make_node("RoiAlign", ["x", "rois", "at"], ["y"], output_height=3, output_width=3, sampling_ratio=2)
    shapes = {"x": (1, 4, 16, 16), "rois": (5, 4)}
    return _model(node, shapes, {"y": (onnx.TensorProto.FLOAT, (5, 4, 3, 3))}, {"at": np.zeros(5, np.int64)})


def places() -> onnx.ModelProto:
    """Where a matrix is not zero."""
    node = helper.make_node("NonZero", ["x"], ["y"])
    return _model(node, {"x": (4, 5)}, {"y": (onnx.TensorProto.INT64, (2, None))}, {})


def linear_attention() -> onnx.ModelProto:
    """Four heads of eight, over four steps."""
    node = helper.make_node("LinearAttention", ["q", "k", "v"], ["y", "state"], q_num_heads=4, kv_num_heads=4)
    outputs = {"y": (onnx.TensorProto.FLOAT, (2, 4, 32)), "state": (onnx.TensorProto.FLOAT, (2, 4, 8, 8))}
    return _model(node, dict.fromkeys("qkv", (2, 4, 32)), outputs, {}, opset=27)


def causal_convolution() -> onnx.ModelProto:
    """Four channels, eight steps."""
    node = helper.make_node("CausalConvWithState", ["x", "w"], ["y", "state"])
    outputs = {"y": (onnx.TensorProto.FLOAT, (2, 4, 8)), "state": (onnx.TensorProto.FLOAT, (2, 4, 3))}
    return _model(node, {"x": (2, 4, 8)}, outputs, {"w": np.ones((4, 1, 4), np.float32)}, opset=27)


def _model(
    node: onnx.NodeProto,
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    constants: Mapping[str, Any],
    *,
    opset: int = 18,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        [node],
        "one",
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


PARSED_BUT_NOT_BUILT = {
    "CausalConvWithState": causal_convolution,
    "LinearAttention": linear_attention,
    "NonMaxSuppression": suppression,
    "NonZero": places,
    "RoiAlign": region_alignment,
}


@pytest.mark.parametrize("operator", PARSED_BUT_NOT_BUILT)
def test_the_builder_of_tensorrt_rtx_does_not_keep_what_its_parser_promises(
    rtx: TrtModule, operator: str, tmp_path: Path
) -> None:
    onnx.save(PARSED_BUT_NOT_BUILT[operator](), tmp_path / "one.onnx")
    said: list[str] = []
    with no_collection():
        logger = rtx.logger(lambda _severity, text: said.append(text), verbose=False)
        builder, network, faults = rtx.parsed(str(tmp_path / "one.onnx"), logger)
        if not faults:
            engine = rtx.serialized(builder, network, rtx.config(builder, BuildOptions(), sm=86))
            assert engine is None, f"it builds now: take {operator} out of the table of what TensorRT-RTX lacks"
    words = " ".join([*said, *(f.text for f in faults)])
    assert "no runners that implement it" in words or "plugin" in words, "the reason is the one in the table"
    assert operator_support(operator, "1.7", rtx=True) == "no"


def test_what_to_use_instead_is_said() -> None:
    assert "plugins_trt.torch.decode_nms" in missing_reason("NonMaxSuppression", rtx=True)
    assert "plugins_trt.torch.roi_align" in missing_reason("RoiAlign", rtx=True)
    assert missing_reason("Det", rtx=True) == "no release of it does"
    for operator in ("NonMaxSuppression", "NonZero", "RoiAlign"):
        assert operator_support(operator, "10.3") == "yes", "TensorRT itself has it"


@pytest.mark.parametrize(
    ("operator", "first"),
    [("Conv", "8.5"), ("LayerNormalization", "8.6"), ("Hardmax", "10.0"), ("DeformConv", "10.1"), ("STFT", "10.5"),
     ("Attention", "10.14"), ("RMSNormalization", "10.15")],
)  # fmt: skip
def test_an_operator_is_there_from_its_first_release_on(operator: str, first: str) -> None:
    assert first_release(operator) == first
    for release in ("8.5", "8.6", *RELEASES):
        expected = "yes" if at_least(release, first) else "no"
        assert operator_support(operator, release) == expected


def test_what_was_not_seen_is_said_to_be_unsure() -> None:
    assert [operator_support("Gelu", r) for r in ("8.6", "10.3", "10.13", "10.16", "11.4")] == [
        "no", "unsure", "unsure", "yes", "yes",
    ]  # fmt: skip
    assert operator_support("Det", "11.4") == "no"
    assert first_release("Det") == ""


def test_releases_are_ordered_by_number() -> None:
    assert at_least("10.13", "10.3")
    assert not at_least("10.3", "10.13")
    assert at_least("11.4", "10.16")


NONE: Mapping[str, Any] = {}


@pytest.mark.parametrize(
    ("node", "constants", "says"),
    [
        (helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"]), {"z": np.int8(0)}, ""),
        (helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"]), {"z": np.int8(3)}, "symmetric"),
        (helper.make_node("DequantizeLinear", ["x", "s", "z"], ["y"]), {"z": np.uint8(0)}, "uint8"),
        (helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"]), NONE, "computed"),
        (helper.make_node("QuantizeLinear", ["x", "s"], ["y"]), NONE, "no zero point"),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2]), NONE, ""),
        (helper.make_node("MaxPool", ["x"], ["y", "i"], kernel_shape=[2, 2]), NONE, "indices"),
        (helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2], dilations=[2, 2]), NONE, "dilations"),
        (helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4, layout=1), NONE, "layout=1"),
        (helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4, input_forget=1), NONE, "couples"),
        (helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear"), NONE, ""),
        (helper.make_node("Resize", ["x", "", "s"], ["y"], mode="cubic"), NONE, "cubic"),
        (helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear", antialias=1), NONE, "antialias"),
        (helper.make_node("ScatterND", ["x", "i", "u"], ["y"], reduction="add"), NONE, "add"),
        (helper.make_node("TopK", ["x", "k"], ["v", "i"]), {"k": np.array([5000])}, "5000"),
        (helper.make_node("TopK", ["x", "k"], ["v", "i"]), {"k": np.array([5])}, ""),
        (helper.make_node("Relu", ["x"], ["y"]), NONE, ""),
    ],
)  # fmt: skip
def test_what_the_parser_demands_of_a_node(node: onnx.NodeProto, constants: Mapping[str, Any], says: str) -> None:
    found = restriction(node, constants)
    assert says in found
    assert bool(found) == bool(says)
