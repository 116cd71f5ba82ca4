"""Experimental operators of ONNX 1.0 to 1.2, long removed, that ONNX Runtime still runs and TensorRT never did.

WinML's and Core ML's converters wrote them. Each is a few standard operators.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit._lazy import require

if TYPE_CHECKING:
    import onnx

_END = np.iinfo(np.int32).max


def replace_legacy_operators(model: onnx.ModelProto) -> dict[str, int]:
    """Rewrite ImageScaler, Affine, Crop, ParametricSoftplus and ScaledTanh, in place; how many of each.

    The new nodes are in the form of operator set 7, which onnx's converter brings to any later one.
    """
    graph = model.graph
    rewrites = {
        "ImageScaler": _image_scaler,
        "Affine": _affine,
        "Crop": _crop,
        "ParametricSoftplus": _parametric_softplus,
        "ScaledTanh": _scaled_tanh,
    }
    done: dict[str, int] = {}
    nodes: list[Any] = []
    for node in graph.node:
        rewrite = rewrites.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rewrite is None:
            nodes.append(node)
            continue
        build = _Builder(graph, node)
        rewrite(build)
        nodes.extend(build.nodes)
        done[node.op_type] = done.get(node.op_type, 0) + 1
    if done:
        kept = [type(n).FromString(n.SerializeToString()) for n in nodes]
        del graph.node[:]
        graph.node.extend(kept)
    return done


class _Builder:
    """Makes the nodes that stand for `node`: `chain` puts one behind the other, from its input to its output."""

    def __init__(self, graph: Any, node: Any) -> None:
        onnx = require("onnx", why="rewrite ONNX models")
        self.onnx, self.graph, self.node = onnx, graph, node
        self.attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        self.base = f"{node.name or node.op_type}_{node.output[0]}"
        self.nodes: list[Any] = []
        self.current = node.input[0]

    def chain(self, operator: str, value: Any = None, *, last: bool = False, **attributes: Any) -> None:
        """`current = operator(current, value)`; the `last` one makes the node's own output."""
        inputs = [self.current]
        if value is not None:
            name = f"{self.base}_{operator}_{len(self.nodes)}_value"
            self.graph.initializer.append(self.onnx.numpy_helper.from_array(np.asarray(value, np.float32), name))
            inputs.append(name)
        self.current = self.node.output[0] if last else f"{self.base}_{operator}_{len(self.nodes)}"
        made = self.onnx.helper.make_node(
            operator, inputs, [self.current], name=f"{self.base}_{operator}_{len(self.nodes)}", **attributes
        )
        self.nodes.append(made)


def _image_scaler(build: _Builder) -> None:
    bias = np.asarray(build.attributes.get("bias", [0.0]), np.float32)
    build.chain("Mul", build.attributes.get("scale", 1.0))
    build.chain("Add", bias.reshape(1, -1, 1, 1), last=True)


def _affine(build: _Builder) -> None:
    build.chain("Mul", build.attributes.get("alpha", 1.0))
    build.chain("Add", build.attributes.get("beta", 0.0), last=True)


def _crop(build: _Builder) -> None:
    left, top, right, bottom = build.attributes.get("border", [0, 0, 0, 0])
    ends = [-bottom if bottom else _END, -right if right else _END]
    if "scale" in build.attributes:
        height, width = build.attributes["scale"]
        ends = [top + height, left + width]
    build.chain("Slice", last=True, starts=[top, left], ends=ends, axes=[2, 3])


def _parametric_softplus(build: _Builder) -> None:
    build.chain("Mul", build.attributes.get("beta", 1.0))
    build.chain("Softplus")
    build.chain("Mul", build.attributes.get("alpha", 1.0), last=True)


def _scaled_tanh(build: _Builder) -> None:
    build.chain("Mul", build.attributes.get("beta", 1.0))
    build.chain("Tanh")
    build.chain("Mul", build.attributes.get("alpha", 1.0), last=True)
