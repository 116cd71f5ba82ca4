"""Estimates from a graph alone: the memory of its intermediate tensors, and the values of its small constants."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit._lazy import require
from edgekit.graphs import infer_shapes, model_specs, subgraphs, tensor_shapes

if TYPE_CHECKING:
    import onnx


def small_constants(model: onnx.ModelProto) -> dict[str, Any]:
    """Values of initializers and Constant nodes small enough to be parameters of operators."""
    helper = require("onnx", why="read ONNX models").numpy_helper
    kinds = (1, 2, 3, 6, 7, 10)  # float, uint8, int8, int32, int64, float16
    out = {}
    for graph in subgraphs(model.graph):
        for tensor in graph.initializer:
            if math.prod(tensor.dims) <= 65536 and tensor.data_type in kinds:
                out[tensor.name] = helper.to_array(tensor)
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].t.data_type in kinds:
                out[node.output[0]] = helper.to_array(node.attribute[0].t)
    return out


def activation_bytes(model: onnx.ModelProto, sizes: Mapping[str, int]) -> int | None:
    """The most bytes of intermediate tensors alive at once, in graph order; None where a shape is unknown."""
    inferred = infer_shapes(model, dict(sizes))
    shapes = tensor_shapes(inferred)
    widths = {10: 2, 16: 2, 1: 4, 11: 8, 3: 1, 2: 1, 9: 1, 6: 4, 7: 8}
    values = (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info)
    width = {v.name: widths.get(v.type.tensor_type.elem_type, 4) for v in values}
    constants = {t.name for t in model.graph.initializer}
    last: dict[str, int] = {o.name: len(model.graph.node) for o in model.graph.output}
    for i, node in enumerate(model.graph.node):
        for name in node.input:
            last[name] = max(i, last.get(name, 0))
    alive = sum(_size(s.name, shapes, width) or 0 for s in model_specs(model)[0])
    peak = alive
    unknown = 0
    for i, node in enumerate(model.graph.node):
        made = [o for o in node.output if o and o not in constants]
        for name in made:
            size = _size(name, shapes, width)
            unknown += size is None
            alive += size or 0
        peak = max(peak, alive)
        for name in {*node.input, *made}:
            if last.get(name, i) == i and name not in constants:
                alive -= _size(name, shapes, width) or 0
    return None if unknown * 4 > len(model.graph.node) else peak


def _size(name: str, shapes: Mapping[str, tuple[int, ...]], width: Mapping[str, int]) -> int | None:
    shape = shapes.get(name)
    return None if shape is None else math.prod(shape) * width.get(name, 4)
