"""Dynamic INT8: weights in eight bits, activations measured anew in every call. No calibration, any range.

On a CPU this is what pays for recurrent layers, and for products whose inputs vary too much for one range. The
operators are ONNX Runtime's own (domain com.microsoft), so the result is for ONNX Runtime only.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantize.graph import Graph, attribute
from edgekit.quantize.weights import channel_scales, quantized
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

_DOMAIN = "com.microsoft"


def recurrent(model: onnx.ModelProto) -> list[str]:
    """Names of LSTM nodes with constant weights; ONNX Runtime has no such kernel for GRU."""
    graph = Graph(model)
    return [n.name for n in graph.nodes if n.op_type == "LSTM" and _fits(graph, n)]


def _fits(graph: Graph, node: Any) -> bool:
    plain = attribute(node, "layout", 0) == 0 and attribute(node, "input_forget", 0) == 0
    return plain and graph.is_float(node.input[1]) and graph.is_float(node.input[2])


def dynamic_lstm(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` with its LSTMs (see `recurrent`) as DynamicQuantizeLSTM."""
    graph = Graph(model)
    names = set(recurrent(model))
    for node in list(graph.nodes):
        if node.name not in names:
            continue
        inputs = [*node.input, *[""] * (8 - len(node.input))][:8]
        for i in (1, 2):
            values, scale = _recurrent_weights(graph.constants[inputs[i]])
            base = inputs[i]
            inputs[i] = graph.constant(f"{base}_int8", values)
            zero = graph.constant(f"{base}_zero_point", np.zeros(scale.shape, np.int8))
            inputs += [graph.constant(f"{base}_scale", scale), zero]
        kept = [a for a in node.attribute if a.name != "layout"]
        graph.remove(node)
        made = graph.node("DynamicQuantizeLSTM", inputs, list(node.output), domain=_DOMAIN)
        made.name = node.name
        made.attribute.extend(kept)
    graph.set_opset(_DOMAIN, 1)
    graph.refresh()
    return graph.model()


def _recurrent_weights(weight: Array) -> tuple[Array, Array]:
    """(directions, 4 x hidden, depth) as int8 (directions, depth, 4 x hidden) and a scale a column."""
    parts, scales = [], []
    for direction in weight:
        scale = channel_scales(direction, 0, pair_safe=True)
        parts.append(quantized(direction, scale, 0).values.T)
        scales.append(scale)
    return np.ascontiguousarray(np.stack(parts)), np.stack(scales)


def dynamic_matmul(model: onnx.ModelProto, *, only: Collection[str] | None = None) -> onnx.ModelProto:
    """`model` with MatMuls of a constant (depth, width) weight, or those in `only`, as DynamicQuantizeMatMul."""
    graph = Graph(model)
    for node in list(graph.nodes):
        if node.op_type != "MatMul" or (only is not None and node.name not in only):
            continue
        if not graph.is_float(node.input[1]) or graph.constants[node.input[1]].ndim != 2:
            continue
        weight = quantized(
            graph.constants[node.input[1]], channel_scales(graph.constants[node.input[1]], 1, pair_safe=True), 1
        )
        base = node.input[1]
        inputs = [
            node.input[0],
            graph.constant(f"{base}_int8", weight.values),
            graph.constant(f"{base}_scale", weight.scale),
            graph.constant(f"{base}_zero_point", np.zeros(weight.scale.shape, np.int8)),
        ]
        graph.remove(node)
        graph.node("DynamicQuantizeMatMul", inputs, list(node.output), domain=_DOMAIN).name = node.name
    graph.set_opset(_DOMAIN, 1)
    graph.refresh()
    return graph.model()
