"""What TensorRT would misread in a Q/DQ graph, found before it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.graphs import all_nodes
from edgekit.quantize.graph import Graph, attribute
from edgekit.quantize.placement import weight_axis

if TYPE_CHECKING:
    import onnx

_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def lint_trt(model: onnx.ModelProto) -> list[str]:
    """One sentence for each thing in `model` that TensorRT refuses or silently misreads; empty when it is clean."""
    graph = Graph(model)
    found: list[str] = []
    for node in all_nodes(model):
        kind = node.op_type
        if kind.startswith("QLinear") or kind in ("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"):
            found.append(f"{_name(node)} is {kind}: TensorRT takes Q/DQ pairs only.")
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            found += _pair_faults(graph, node)
        elif node.op_type in _WEIGHTED:
            found += _product_faults(graph, node)
    return found


def _pair_faults(graph: Graph, node: Any) -> list[str]:
    if len(node.input) < 3 or not node.input[2]:
        return [f"{_name(node)} has no zero point: TensorRT 8.6 wants an INT8 zero there."]
    scale, zero = (graph.constants.get(i) for i in node.input[1:3])
    if scale is None or zero is None:
        return [f"{_name(node)} has a scale or zero point that is not constant: TensorRT wants constants."]
    out = []
    if zero.dtype != np.int8:
        out.append(f"{_name(node)} has a {zero.dtype} zero point: TensorRT reads INT8 only, and misreads UINT8.")
    elif zero.any():
        out.append(f"{_name(node)} has a zero point other than 0: TensorRT quantises symmetrically.")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        out.append(f"{_name(node)} has a scale that is not positive.")
    if scale.size > 1 and node.input[0] not in graph.constants:
        out.append(f"{_name(node)} scales an activation by channel: TensorRT takes one scale for each activation.")
    return out


def _product_faults(graph: Graph, node: Any) -> list[str]:
    out = []
    if len(node.input) > 2 and node.input[2]:
        maker = graph.producer.get(node.input[2])
        if maker is not None and maker.op_type == "DequantizeLinear":
            out.append(f"{_name(node)} has a quantised bias: TensorRT wants it in float.")
    makers = [graph.producer.get(i) for i in node.input[:2]]
    weight = makers[1]
    if weight is not None and weight.op_type == "DequantizeLinear" and weight.input[0] in graph.constants:
        scale = graph.constants.get(weight.input[1])
        rank = graph.constants[weight.input[0]].ndim
        if scale is not None and scale.size > 1 and attribute(weight, "axis", 1) % rank != weight_axis(node) % rank:
            out.append(
                f"{_name(node)} has weight scales along axis {attribute(weight, 'axis', 1)}, not {weight_axis(node)}."
            )
        if makers[0] is None or makers[0].op_type != "DequantizeLinear":
            out.append(f"{_name(node)} has a quantised weight but a float input: it would run in float.")
    return out


def _name(node: Any) -> str:
    return f"Node '{node.name or node.output[0]}'"
