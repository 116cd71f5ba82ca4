"""Small float models with real structure, built in ONNX so that tests stay quick."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model_of(
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    inputs: dict[str, Sequence[Any]],
    outputs: Sequence[str],
    *,
    opset: int = 17,
) -> onnx.ModelProto:
    """A checked model with float inputs of the given shapes."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(k, TensorProto.FLOAT, list(v)) for k, v in inputs.items()],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model)
    return model


def random(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def conv_net(*, activation: str = "Relu", weight_scale: float = 0.2) -> onnx.ModelProto:
    """conv - act - depthwise conv - conv + shortcut - relu - pool - gemm: (batch, 3, 12, 12) to 5 scores."""
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        node(activation, ["c1"], ["a1"]),
        node("Conv", ["a1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1], group=8),
        node("Relu", ["c2"], ["a2"]),
        node("Conv", ["a2", "w3", "b3"], ["c3"]),
        node("Add", ["c3", "a1"], ["s"]),
        node("Relu", ["s"], ["a3"]),
        node("GlobalAveragePool", ["a3"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w4", "b4"], ["scores"], transB=1),
    ]
    weights = {
        "w1": random(8, 3, 3, 3, scale=weight_scale, seed=1),
        "b1": random(8, scale=0.1, seed=2),
        "w2": random(8, 1, 3, 3, scale=0.3, seed=3),
        "b2": random(8, scale=0.1, seed=4),
        "w3": random(8, 8, 1, 1, scale=0.3, seed=5),
        "b3": random(8, scale=0.1, seed=6),
        "w4": random(5, 8, scale=1.0, seed=7),
        "b4": random(5, scale=0.1, seed=8),
    }
    return model_of(nodes, weights, {"x": ("batch", 3, 12, 12)}, ["scores"])


def images(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures (batch, 3, 12, 12)."""
    coarse = random(count, 3, 4, 4, seed=seed + 100)
    return np.repeat(np.repeat(coarse, 3, axis=2), 3, axis=3)


def mlp_block() -> onnx.ModelProto:
    """A transformer's feed-forward block with LayerNorm and a residual: (batch, 6, 32) to the same."""
    node = helper.make_node
    nodes = [
        node("LayerNormalization", ["x", "g", "b"], ["n"], axis=-1),
        node("MatMul", ["n", "w1"], ["h0"]),
        node("Add", ["h0", "b1"], ["h1"]),
        node("Relu", ["h1"], ["h2"]),
        node("MatMul", ["h2", "w2"], ["h3"]),
        node("Add", ["h3", "x"], ["y"]),
    ]
    weights = {
        "g": np.ones(32, np.float32),
        "b": np.zeros(32, np.float32),
        "w1": random(32, 64, scale=0.2, seed=1),
        "b1": random(64, scale=0.1, seed=2),
        "w2": random(64, 32, scale=0.2, seed=3),
    }
    return model_of(nodes, weights, {"x": ("batch", 6, 32)}, ["y"])


def operators(data: bytes | str) -> list[str]:
    """The operators that ONNX Runtime runs after its own fusions."""
    import tempfile
    from pathlib import Path

    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "fused.onnx")
        ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]
