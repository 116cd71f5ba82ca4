"""FP16 and BF16 with float32 inputs and outputs: node by node, casts only where the type changes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit._lazy import require
from edgekit.graphs import infer_shapes, opset_of, raised_to, subgraphs
from edgekit.quantize.graph import Graph
from edgekit.quantize.half_bodies import Conversion, halve_bodies
from edgekit.quantize.half_plugins import half_ends, is_plugin
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

LARGEST = 65504.0
"""Largest finite FP16 value."""

SMALLEST = 6e-8
"""Smallest FP16 value above zero."""

_FLOAT = 1
_BF16_OPSET = 22
_FLOAT_NAME = "tensor(float)"


@dataclass(frozen=True)
class Half:
    """A 16-bit float type: its name, its number and type string in ONNX."""

    name: str
    onnx: int
    type_string: str

    @property
    def dtype(self) -> str:
        """numpy's name, or "bfloat16"."""
        return self.type_string[len("tensor(") : -1]


FP16 = Half("fp16", 10, "tensor(float16)")
BF16 = Half("bf16", 16, "tensor(bfloat16)")
_KEEP = (
    "Cast", "CastLike", "ConstantOfShape", "DequantizeLinear", "DynamicQuantizeLinear", "If", "Loop",
    "NonMaxSuppression", "QuantizeLinear", "RandomNormal", "RandomUniform", "Range", "Scan",
)  # fmt: skip
"""Operators that are tied to float32, or hold graphs of their own."""


def raised_for(model: onnx.ModelProto, kind: Half) -> onnx.ModelProto:
    """`model` at an opset that has `kind` for every common operator (BF16 convolutions came with 22)."""
    if kind.name == "fp16" or opset_of(model) >= _BF16_OPSET:
        return model
    try:
        return raised_to(model, _BF16_OPSET)
    except Exception:  # a model that cannot be raised keeps more nodes in float32
        return model


def half_model(model: onnx.ModelProto, *, floats: Collection[str] = (), kind: Half = FP16) -> onnx.ModelProto:
    """`model` (prepared) in `kind`, its inputs and outputs still float32.

    Nodes named in `floats` stay in float32. Weights beyond FP16's range are clamped to it.
    """
    graph, opset = Graph(model), opset_of(model)
    half = {n.name for n in graph.nodes if n.name not in floats and can_be_half(n, opset, kind)}
    types = types_of(model)
    casts: dict[str, str] = {}
    made: dict[str, str] = {}
    nodes = list(graph.nodes)
    for node in nodes:
        for i, name in enumerate(node.output):
            if node.name in half and types.get(name) == _FLOAT and gives_half(node, i, kind):
                made[name] = graph.fresh(f"{name}_half")
                node.output[i] = made[name]
    for node in nodes:
        for i, name in enumerate(node.input):
            if node.name in half and types.get(name) == _FLOAT and takes_half(node, i, opset, kind):
                node.input[i] = made.get(name) or _half_input(graph, name, casts, kind)
    for name, inner in made.items():
        if any(name in n.input for n in graph.nodes) or name in graph.outputs or name in graph.captured:
            graph.node("Cast", [inner], [name], to=_FLOAT)
    graph.refresh()
    out = graph.model()
    _keep_shapes(model, out, made, kind)
    bodies = body_types(model)
    if bodies:
        how = Conversion(
            types={**types, **bodies},
            to=kind.onnx,
            can=lambda n: n.name not in floats and can_be_half(n, opset, kind),
            takes=lambda n, i: takes_half(n, i, opset, kind),
            fresh=graph.fresh,
        )
        halve_bodies(out.graph, how)
    return out


def _keep_shapes(model: onnx.ModelProto, out: onnx.ModelProto, made: dict[str, str], kind: Half) -> None:
    """Tell `out` what `model` says of the shapes of values that are 16 bits now: more than can be inferred."""
    for value in (*model.graph.value_info, *model.graph.output):
        if value.name in made:
            info = out.graph.value_info.add()
            info.CopyFrom(value)
            info.name, info.type.tensor_type.elem_type = made[value.name], kind.onnx


def rounded_model(model: onnx.ModelProto, *, floats: Collection[str] = (), kind: Half = FP16) -> onnx.ModelProto:
    """`model` in float32 with every value rounded as `half_model` would: runs where `kind` has no kernels."""
    graph, opset = Graph(model), opset_of(model)
    types = types_of(model)
    rounded: dict[str, str] = {}
    for node in list(graph.nodes):
        if node.name in floats or not can_be_half(node, opset, kind):
            continue
        for i, name in enumerate(node.input):
            if types.get(name) != _FLOAT or not takes_half(node, i, opset, kind):
                continue
            if name not in rounded:
                rounded[name] = graph.fresh(f"{name}_rounded")
                if name in graph.constants:
                    value = half_weights(graph.constants[name], kind).astype(np.float32)
                    graph.constants[rounded[name]] = value
                else:
                    inner = graph.fresh(f"{name}_half")
                    graph.node("Cast", [name], [inner], to=kind.onnx)
                    graph.node("Cast", [inner], [rounded[name]], to=_FLOAT)
            node.input[i] = rounded[name]
    graph.refresh()
    return graph.model()


def _half_input(graph: Graph, name: str, casts: dict[str, str], kind: Half) -> str:
    if name not in casts:
        if name in graph.constants:
            casts[name] = graph.constant(f"{name}_half", half_weights(graph.constants[name], kind))
        else:
            casts[name] = graph.fresh(f"{name}_half")
            graph.node("Cast", [name], [casts[name]], to=kind.onnx)
    return casts[name]


def half_weights(value: Array, kind: Half = FP16) -> Array:
    """`value` in `kind`, clamped to the range of FP16."""
    if kind.name == "fp16":
        return np.clip(value, -LARGEST, LARGEST).astype(np.float16)
    types = require("ml_dtypes", why="convert weights to BF16")
    return np.asarray(value.astype(types.bfloat16))


def can_be_half(node: Any, opset: int, kind: Half = FP16) -> bool:
    """Whether every float tensor of `node` may be `kind` by the operator's definition."""
    if is_plugin(node):
        return half_ends(node.op_type, kind.dtype) is not None
    if node.domain not in ("", "ai.onnx") or node.op_type in _KEEP:
        return False
    schema = _schema(node, opset)
    if schema is None:
        return False
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    for value in (*schema.inputs[:1], *schema.outputs[:1]):
        types = allowed.get(value.type_str, {value.type_str})
        if _FLOAT_NAME in types and kind.type_string not in types:
            return False
    return True


def takes_half(node: Any, index: int, opset: int, kind: Half = FP16) -> bool:
    """Whether input `index` of `node` follows its first input's type (Resize's scales, for one, do not)."""
    if is_plugin(node):
        ends = half_ends(node.op_type, kind.dtype)
        return ends is not None and index in ends[0]
    schema = _schema(node, opset)
    if schema is None or not schema.inputs:
        return False
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    name = schema.inputs[min(index, len(schema.inputs) - 1)].type_str
    return kind.type_string in allowed.get(name, {name})


def gives_half(node: Any, index: int, kind: Half = FP16) -> bool:
    """Whether the float output `index` of `node`, which takes `kind`, is `kind` too."""
    ends = half_ends(node.op_type, kind.dtype) if is_plugin(node) else None
    return ends is None or index in ends[1]


def _schema(node: Any, opset: int) -> Any:
    onnx = require("onnx", why="convert models to FP16")
    try:
        return onnx.defs.get_schema(node.op_type, opset, "")
    except Exception:  # SchemaError: an operator that ONNX does not define
        return None


def body_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX element type of each tensor in the bodies of control flow, as far as it can be inferred."""
    if not any(n.op_type == "If" for n in model.graph.node):
        return {}
    out: dict[str, int] = {}
    for graph in list(subgraphs(infer_shapes(model).graph))[1:]:
        out.update((v.name, int(v.type.tensor_type.elem_type)) for v in (*graph.output, *graph.value_info))
        out.update((t.name, int(t.data_type)) for t in graph.initializer)
    return out


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX element type of each tensor of the main graph, as far as it can be inferred."""
    graph = infer_shapes(model).graph
    out = {v.name: int(v.type.tensor_type.elem_type) for v in (*graph.input, *graph.output, *graph.value_info)}
    out.update((t.name, int(t.data_type)) for t in graph.initializer)
    return out
