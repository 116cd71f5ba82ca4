"""The `int8-trt` form: Q/DQ pairs where TensorRT wants them.

Symmetric INT8 throughout, on the inputs of products only; bias stays float; a residual sum has its shortcut quantised
and the branch that ends in a convolution left float, so that the sum fuses into that convolution.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.graphs import infer_shapes, model_specs
from edgekit.quantize.graph import Graph, attribute
from edgekit.quantize.placement import FUSED, MOVES, weight_axis
from edgekit.quantize.ranges import Range
from edgekit.quantize.weights import LEVELS, QuantWeight, quantized, representable, trt_scales
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

SMALLEST_SIDE = 16
"""Products with fewer channels, or a smaller depth or width, are slower in INT8 than in FP16."""

MINIMUM_STEP = 1e-7
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def trt_products(model: onnx.ModelProto) -> list[str]:
    """Names of the products that pay in INT8 on TensorRT: constant weights, no matrix-vector, no small sides."""
    graph = Graph(model)
    sizes = {d: 1 for s in model_specs(model)[0] for d in s.shape if isinstance(d, str)}
    inferred = infer_shapes(model, sizes).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*inferred.value_info, *inferred.output)}
    return [n.name for n in graph.nodes if _pays(graph, n, shapes)]


def _pays(graph: Graph, node: Any, shapes: Mapping[str, Any]) -> bool:
    if node.op_type not in _PRODUCTS or not graph.is_float(node.input[1]) or node.input[0] in graph.constants:
        return False
    weight = graph.constants[node.input[1]]
    if node.op_type in ("Conv", "ConvTranspose"):
        group = attribute(node, "group", 1)
        sides = (weight.shape[0], weight.shape[1] * group)
        return bool(min(sides) >= SMALLEST_SIDE)
    if weight.ndim != 2 or min(weight.shape) < SMALLEST_SIDE or attribute(node, "transA", 0):
        return False
    dims = shapes.get(node.output[0])
    rows = math.prod(int(d.dim_value) or 2 for d in dims[:-1]) if dims else 2
    return rows > 1


def trt_edges(graph: Graph, products: Collection[str]) -> dict[tuple[str, int], str]:
    """`(node, input index)` that reads eight bits -> the tensor it reads."""
    edges = {(n.name, 0): str(n.input[0]) for n in graph.nodes if n.name in products}
    wanted = {n.input[0] for n in graph.nodes if n.name in products}
    for node in reversed(graph.nodes):
        if node.op_type in (*MOVES, *FUSED) and node.output[0] in wanted:
            wanted.add(node.input[0])
        if node.op_type == "Add" and node.output[0] in wanted:
            shortcut = _shortcut(graph, node, products)
            if shortcut is not None:
                edges[node.name, shortcut] = node.input[shortcut]
    return edges


def _shortcut(graph: Graph, add: Any, products: Collection[str]) -> int | None:
    """Which input of a residual sum is the shortcut: the one that is not a convolution's own output."""
    fusable = []
    for name in add.input:
        producer = graph.producer.get(name)
        fusable.append(producer is not None and producer.name in products and graph.only_use(name) is add)
    if not any(fusable) or any(i in graph.constants for i in add.input):
        return None
    return 0 if fusable[1] else 1  # both are: the second branch is the long one in exported residual blocks


def trt_int8(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    *,
    floats: Collection[str] = (),
    weights: Mapping[str, QuantWeight] | None = None,
) -> onnx.ModelProto:
    """`model` (prepared) with TensorRT's Q/DQ placement; `ranges` are symmetric, others as for `cpu_int8`."""
    graph = Graph(model)
    read = {n.name: n.input[0] for n in graph.nodes}
    products = {n for n in trt_products(model) if n not in floats and read[n] in ranges}
    edges = {k: v for k, v in trt_edges(graph, products).items() if v in ranges}
    steps = _steps(graph, ranges, set(edges.values()))
    copies: dict[str, str] = {}
    zero = graph.constant("int8_zero", np.zeros((), np.int8)) if edges else ""
    nodes = list(graph.nodes)
    for node in nodes:
        for i, name in enumerate(node.input):
            if (node.name, i) in edges:
                if name not in copies:
                    copies[name] = _pair(graph, name, steps[name], zero)
                node.input[i] = copies[name]
    for node in nodes:
        if node.name in products:
            _quantize_weight(graph, node, (weights or {}).get(node.name))
    graph.refresh()
    return graph.model()


def _steps(graph: Graph, ranges: Mapping[str, Range], tensors: set[str]) -> dict[str, float]:
    """One step a tensor; inputs and output of a Concat share the largest."""
    peaks = {t: ranges[t].peak for t in tensors}
    for node in graph.nodes:
        if node.op_type == "Concat":
            group = [t for t in (*node.input, *node.output) if t in peaks]
            largest = max((peaks[t] for t in group), default=0.0)
            peaks.update(dict.fromkeys(group, largest))
    return {t: float(representable(np.asarray(max(p / LEVELS, MINIMUM_STEP), np.float32))) for t, p in peaks.items()}


def _pair(graph: Graph, tensor: str, step: float, zero: str) -> str:
    scale = graph.constant(f"{tensor}_scale", np.asarray(step, np.float32))
    integers, floats = graph.fresh(f"{tensor}_quantized"), graph.fresh(f"{tensor}_dequantized")
    graph.node("QuantizeLinear", [tensor, scale, zero], [integers])
    graph.node("DequantizeLinear", [integers, scale, zero], [floats])
    return floats


def _quantize_weight(graph: Graph, node: Any, rounded: QuantWeight | None) -> None:
    name, axis = node.input[1], weight_axis(node)
    value: Array = graph.constants[name]
    weight = rounded or quantized(value, trt_scales(value, axis), axis)
    scale = graph.constant(f"{name}_scale", weight.scale)
    zero = graph.constant(f"{name}_zero_point", np.zeros(weight.scale.shape, np.int8))
    values = graph.constant(f"{name}_int8", weight.values)
    out = graph.fresh(f"{name}_dequantized")
    graph.node("DequantizeLinear", [values, scale, zero], [out], axis=axis)
    node.input[1] = out
