"""Q/DQ pairs in FP16: between a DequantizeLinear and its product, or a value and its QuantizeLinear, no cast stands.

A strongly typed TensorRT fuses pairs into the product behind them; a Cast between makes of that a conversion. So where
all that a pair touches is FP16, its scale is FP16 too (opset 19). Scales were chosen representable in FP16
(`weights.representable`), so that no value moves by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.graphs import opset_of, raised_to
from edgekit.quantize.fp16 import FP16, types_of
from edgekit.quantize.graph import Graph, attribute

if TYPE_CHECKING:
    import onnx

_FLOAT = 1
_HALF_PAIRS_OPSET = 19


def with_half_pairs(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` (from `half_model`) with FP16 scales wherever that takes a cast away; as it is if it cannot be raised."""
    raised = _raised(model)
    if raised is None:
        return model
    graph = Graph(raised)
    halves: dict[str, str] = {}
    types = types_of(raised)
    for node in list(graph.nodes):
        if node.op_type == "DequantizeLinear":
            _open_dequantizer(graph, node, halves)
        elif node.op_type == "QuantizeLinear":
            _open_quantizer(graph, node, halves, types)
    graph.refresh()
    made = graph.model()
    del made.graph.value_info[:]  # it tells the types of before
    return made


def _raised(model: onnx.ModelProto) -> onnx.ModelProto | None:
    if opset_of(model) >= _HALF_PAIRS_OPSET:
        return model
    try:
        return raised_to(model, _HALF_PAIRS_OPSET)
    except Exception:  # what cannot be raised keeps its casts
        return None


def _half_scale(graph: Graph, name: str, halves: dict[str, str]) -> str | None:
    """The constant `name` in FP16, or None where that would change it."""
    if name not in halves:
        scale = graph.constants.get(name)
        if scale is None or scale.dtype != np.float32:
            return None
        half = scale.astype(np.float16)
        if (half.astype(np.float32) != scale).any():
            return None
        halves[name] = graph.constant(f"{name}_half", half)
    return halves[name]


def _is_cast(node: Any, kind: int) -> bool:
    return bool(node.op_type == "Cast" and attribute(node, "to") == kind)


def _open_dequantizer(graph: Graph, node: Any, halves: dict[str, str]) -> None:
    """A DQ whose every reader casts to FP16 gives FP16."""
    out = node.output[0]
    casts = [n for n, _ in graph.consumers.get(out, [])]
    if not casts or out in graph.outputs or out in graph.captured or not all(_is_cast(n, FP16.onnx) for n in casts):
        return
    if any(n.output[0] in graph.outputs or n.output[0] in graph.captured for n in casts):
        return
    scale = _half_scale(graph, node.input[1], halves)
    if scale is None:
        return
    node.input[1] = scale
    for cast in casts:
        for reader, i in graph.consumers.get(cast.output[0], []):
            reader.input[i] = out
        graph.remove(cast)
    graph.refresh()


def _open_quantizer(graph: Graph, node: Any, halves: dict[str, str], types: Mapping[str, int]) -> None:
    """A Q that reads a cast from FP16 reads what was cast."""
    cast = graph.producer.get(node.input[0])
    if cast is None or not _is_cast(cast, _FLOAT) or types.get(cast.input[0]) != FP16.onnx:
        return
    scale = _half_scale(graph, node.input[1], halves)
    if scale is not None:
        node.input[0], node.input[1] = cast.input[0], scale
        graph.refresh()
