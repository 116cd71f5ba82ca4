"""Short ways to make models and recipes for the tests of export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RECIPES = Path(__file__).parent / "recipes"

HEAD = """
import numpy as np
import torch
from torch import nn
from edgekit import ModelSpec, TensorSpec

def samples(n, seed):
    return {"x": np.random.default_rng(seed).random((n, 4), dtype=np.float32)}

class Net(nn.Module):
    def __init__(self, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.full((4, 3), weight))

    def forward(self, x):
        return FORWARD

def build():
    return Net()

SPEC = ModelSpec(name="net", build=build, inputs=(TensorSpec("x", "float32", ("batch", 4)),), samples=samples)
"""


def recipe(folder: Path, *, forward: str = "x @ self.weight", tail: str = "") -> Path:
    """A recipe file of one product; `forward` is what the model returns, `tail` is added at the end."""
    path = folder / "net.py"
    path.write_text(HEAD.replace("FORWARD", forward) + tail)
    return path


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, Sequence[Any]],
    outputs: dict[str, Sequence[Any]],
    weights: dict[str, np.ndarray] | None = None,
    *,
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """An ONNX model of these nodes; shapes by name."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, kind, list(s)) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, kind, list(s)) for n, s in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(proto: onnx.ModelProto, **feed: np.ndarray) -> dict[str, np.ndarray]:
    """The outputs of a model in ONNX Runtime."""
    import onnxruntime as ort

    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feed)))


def operators(proto: onnx.ModelProto) -> list[str]:
    """Operator types in order."""
    return [n.op_type for n in proto.graph.node]


def left_behind(folder: Path) -> list[str]:
    """What an export that failed left in `folder` (recipes and caches of Python apart)."""
    return sorted(
        p.name for p in folder.iterdir() if p.suffix not in (".py", ".onnx", ".pt2") and p.name != "__pycache__"
    )


def unfolded(proto: onnx.ModelProto) -> list[str]:
    """BatchNormalization nodes that directly follow a layer that could hold them."""
    makers = {o: n.op_type for n in proto.graph.node for o in n.output}
    norms = [n for n in proto.graph.node if n.op_type == "BatchNormalization"]
    return [n.name for n in norms if makers.get(n.input[0]) in ("Conv", "ConvTranspose", "Gemm")]
