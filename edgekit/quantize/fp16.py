"""FP16 with float32 inputs and outputs: node by node, casts only where the type changes."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit._lazy import require
from edgekit.graphs import infer_shapes, opset_of
from edgekit.quantize.graph import Graph
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

LARGEST = 65504.0
"""Largest finite FP16 value."""

SMALLEST = 6e-8
"""Smallest FP16 value above zero."""

_FLOAT, _HALF = 1, 10
_KEEP = (
    "Cast", "CastLike", "ConstantOfShape", "DequantizeLinear", "DynamicQuantizeLinear", "If", "Loop",
    "NonMaxSuppression", "QuantizeLinear", "RandomNormal", "RandomUniform", "Range", "Scan",
)  # fmt: skip
"""Operators that are tied to float32, or hold graphs of their own."""


def half_model(model: onnx.ModelProto, *, floats: Collection[str] = ()) -> onnx.ModelProto:
    """`model` (prepared) in FP16, its inputs and outputs still float32.

    Nodes named in `floats` stay in float32. Weights beyond FP16's range are clamped to it.
    """
    graph = Graph(model)
    half = {n.name for n in graph.nodes if n.name not in floats and can_be_half(n, opset_of(model))}
    types = _types(model)
    casts: dict[tuple[str, int], str] = {}
    halved: dict[str, str] = {}
    made_half: dict[str, str] = {}
    nodes = list(graph.nodes)
    for node in nodes:
        if node.name not in half:
            continue
        for i, name in enumerate(node.output):
            if types.get(name) == _FLOAT:
                made_half[name] = graph.fresh(f"{name}_half")
                node.output[i] = made_half[name]
    for node in nodes:
        wanted = node.name in half
        for i, name in enumerate(node.input):
            if not name or types.get(name) != _FLOAT:
                continue
            if wanted and takes_half(node, i, opset_of(model)):
                node.input[i] = _half_input(graph, name, made_half, halved, casts)
    for name, inner in made_half.items():
        read = any(name in n.input for n in graph.nodes) or name in graph.outputs or name in graph.captured
        if read:
            graph.node("Cast", [inner], [name], to=_FLOAT)
    graph.refresh()
    return graph.model()


def _half_input(
    graph: Graph, name: str, made: dict[str, str], halved: dict[str, str], casts: dict[tuple[str, int], str]
) -> str:
    if name in made:
        return made[name]
    if name in graph.constants:
        if name not in halved:
            halved[name] = graph.constant(f"{name}_half", half_weights(graph.constants[name]))
        return halved[name]
    key = (name, _HALF)
    if key not in casts:
        casts[key] = graph.fresh(f"{name}_half")
        graph.node("Cast", [name], [casts[key]], to=_HALF)
    return casts[key]


def half_weights(value: Array) -> Array:
    """`value` in FP16, clamped to its range; what was not zero stays not zero where FP16 can tell."""
    return np.clip(value, -LARGEST, LARGEST).astype(np.float16)


def can_be_half(node: Any, opset: int) -> bool:
    """Whether every float tensor of `node` may be FP16 by the operator's definition."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _KEEP:
        return False
    schema = _schema(node, opset)
    if schema is None:
        return False
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    kinds = [v.type_str for v in (*schema.inputs[:1], *schema.outputs[:1])]
    return all(_HALF_NAME in allowed.get(k, {_HALF_NAME}) or _FLOAT_NAME not in allowed.get(k, set()) for k in kinds)


_HALF_NAME, _FLOAT_NAME = "tensor(float16)", "tensor(float)"


def takes_half(node: Any, index: int, opset: int) -> bool:
    """Whether input `index` of `node` follows its first input's type (Resize's scales, for one, do not)."""
    schema = _schema(node, opset)
    if schema is None or not schema.inputs:
        return False
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    kind = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
    return _HALF_NAME in allowed.get(kind, {kind})


def _schema(node: Any, opset: int) -> Any:
    onnx = require("onnx", why="convert models to FP16")
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except Exception:  # SchemaError: an operator that ONNX does not define
        return None


def _types(model: onnx.ModelProto) -> dict[str, int]:
    graph = infer_shapes(model).graph
    out = {v.name: int(v.type.tensor_type.elem_type) for v in (*graph.input, *graph.output, *graph.value_info)}
    out.update((t.name, int(t.data_type)) for t in graph.initializer)
    return out
