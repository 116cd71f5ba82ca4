"""ONNX files in and out, and facts about their graphs: shared by the stages that rewrite models.

Everything works on `onnx.ModelProto`; functions return a new model and never edit the one given, unless the name
says so.
"""

from __future__ import annotations

import ast
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit._lazy import require
from edgekit.errors import ModelError
from edgekit.tensors import UNNAMED_DIMS, TensorSpec, dtype_from_onnx

if TYPE_CHECKING:
    import onnx

EXTERNAL_BYTES = 1 << 30
"""Models larger than this keep their weights in `<file>.data`: protobuf ends at 2 GiB."""

SMALL_BYTES = 4096
"""Constants up to this size are kept where weights are left out: shapes are computed from them."""

STANDARD_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
PLUGIN_DOMAIN = "edgekit"
"""Operators of plugins_trt; the bodies of their functions hold for every operator set from 18 on."""
RUNTIME_DOMAINS = ("com.microsoft",)
"""Operators that ONNX Runtime brings itself."""


def load_model(path: Path) -> onnx.ModelProto:
    """The ONNX model in `path` with its external data.

    Raises:
        ModelError: missing, empty, truncated, not ONNX, or external data missing or outside the model's folder.
    """
    onnx = require("onnx", why="read ONNX models")
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"Model '{path}' cannot be read ({error.strerror}). Check the path.") from error
    if size == 0:
        raise ModelError(f"Model '{path.name}' is empty. Export or download it again.")
    try:
        model = onnx.load_model(str(path), load_external_data=False)
    except Exception as error:  # protobuf's DecodeError and its relatives
        raise ModelError(
            f"'{path.name}' is not a readable ONNX file (damaged, truncated, or another format). "
            "Export or download it again."
        ) from error
    if not model.graph.node and not model.graph.output:
        raise ModelError(f"'{path.name}' holds no ONNX graph. Export or download it again.")
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except Exception as error:  # ValidationError, FileNotFoundError, …
        raise ModelError(
            f"External data of '{path.name}' cannot be read: {str(error).splitlines()[0]}. "
            "Put its data files beside it."
        ) from error
    return model


def save_model(model: onnx.ModelProto, path: Path, *, external_bytes: int = EXTERNAL_BYTES) -> None:
    """Write `model` to `path`; from `external_bytes` of weights on, they go to `<path>.data` beside it.

    Raises:
        OSError: it cannot be written.
    """
    onnx = require("onnx", why="write ONNX models")
    if weight_bytes(model) < external_bytes:
        path.write_bytes(model.SerializeToString(deterministic=True))
        return
    light = _without_initializers(model)
    where = path.with_name(f"{path.name}.data")
    with where.open("wb") as file:
        for tensor in model.graph.initializer:  # one at a time: the weights may be half of the memory
            stub = light.graph.initializer.add()
            if tensor.data_type == onnx.TensorProto.STRING:
                stub.CopyFrom(tensor)
                continue
            stub.name, stub.data_type = tensor.name, tensor.data_type
            stub.dims.extend(tensor.dims)
            raw = tensor.raw_data or onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
            if len(raw) < 1024:
                stub.raw_data = raw
                continue
            file.write(b"\0" * (-file.tell() % 4096))  # aligned, so that runtimes can map the file
            stub.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", where.name), ("offset", file.tell()), ("length", len(raw))):
                stub.external_data.add(key=key, value=str(value))
            file.write(raw)
    path.write_bytes(light.SerializeToString(deterministic=True))


def _without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without its weights, made without copying them."""
    copy = type(model)()
    for source, target, skip in ((model, copy, "graph"), (model.graph, copy.graph, "initializer")):
        for field, value in source.ListFields():
            if field.name == skip:
                continue
            if isinstance(value, (str, bytes, int, float)):
                setattr(target, field.name, value)
            elif hasattr(value, "extend"):
                getattr(target, field.name).extend(value)
            else:
                getattr(target, field.name).CopyFrom(value)
    return copy


def weight_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all initializers' raw data."""
    return sum(len(t.raw_data) or t.ByteSize() for t in model.graph.initializer)


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """`graph` and every graph inside its control-flow nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from subgraphs(inner)


def all_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those inside control flow and model-local functions included."""
    for graph in subgraphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


SCOPES_KEY = "pkg.torch.onnx.name_scopes"
"""Metadata of a node that the PyTorch exporter writes: the modules around it, outermost first, then the operation."""


def module_of(node: onnx.NodeProto) -> str:
    """The PyTorch module that `node` came from ("blocks.0.conv1"), or an empty string."""
    for entry in node.metadata_props:
        if entry.key == SCOPES_KEY:
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                return ""
            modules = [s for s in scopes[:-1] if isinstance(s, str)] if isinstance(scopes, list) else []
            return modules[-1] if modules else ""
    return ""


def unknown_operators(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Nodes that no plain runtime has: `(operator, node name)` for each; function bodies count as known."""
    onnx = require("onnx", why="read ONNX models")
    functions = {(f.domain, f.name) for f in model.functions}
    out = []
    for node in all_nodes(model):
        if (node.domain, node.op_type) in functions or node.domain in RUNTIME_DOMAINS:
            continue
        if node.domain in STANDARD_DOMAINS and onnx.defs.has(node.op_type, domain=node.domain):
            continue
        operator = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        out.append((operator, node.name))
    return out


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operator set. Raises ModelError if the model imports none."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    raise ModelError("The model imports no standard ONNX operator set.")


def raised_to(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """`model` in a later operator set, with its functions, which onnx's converter drops.

    Raises:
        ValueError: it has functions other than the plugins', whose nodes may mean something else there.
        Exception: whatever onnx's converter raises for a model that it cannot convert.
    """
    converter = require("onnx.version_converter", why="raise a model's operator set")
    others = [f"{f.domain}::{f.name}" for f in model.functions if f.domain != PLUGIN_DOMAIN]
    if others:
        raise ValueError(f"functions are not converted: {others[0]}")
    out: onnx.ModelProto = converter.convert_version(model, opset)
    del out.functions[:]
    for function in model.functions:
        kept = out.functions.add()
        kept.CopyFrom(function)
        for entry in kept.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = opset
    if model.functions and all(entry.domain != PLUGIN_DOMAIN for entry in out.opset_import):
        out.opset_import.add(domain=PLUGIN_DOMAIN, version=1)
    return out


def spec_from_value(value: onnx.ValueInfoProto) -> TensorSpec:
    """A graph input or output as a TensorSpec; unnamed dimensions get a name of their own.

    Raises:
        ModelError: not a tensor, or of a type that edgekit does not carry.
    """
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise ModelError(
            f"'{value.name}' is a {kind or 'value without a type'}; edgekit carries tensors only. "
            "Change the model to take and give tensors."
        )
    tensor = value.type.tensor_type
    dtype = dtype_from_onnx(tensor.elem_type, tensor=value.name).name
    shape: list[int | str] = []
    for i, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            shape.append(int(dim.dim_value))
        else:
            shape.append(f"{value.name}_{i}" if dim.dim_param in UNNAMED_DIMS else dim.dim_param)
    return TensorSpec(value.name, dtype, tuple(shape))


def model_specs(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs (without initializers) and outputs of the graph. Raises ModelError as `spec_from_value`."""
    constants = {t.name for t in model.graph.initializer}
    inputs = tuple(spec_from_value(v) for v in model.graph.input if v.name not in constants)
    return inputs, tuple(spec_from_value(v) for v in model.graph.output)


def infer_shapes(model: onnx.ModelProto, sizes: dict[str, int] | None = None) -> onnx.ModelProto:
    """A copy of `model` with shapes of intermediate tensors; named dimensions in `sizes` are fixed first.

    The copy is to be read, not run: large weights keep their type and shape but not their values, so that a model of
    any size is quick to infer. A model whose shapes cannot be inferred comes back without them.
    """
    onnx = require("onnx", why="read ONNX models")
    copy = _skeleton(model)
    if sizes:
        for value in (*copy.graph.input, *copy.graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in sizes:
                    dim.dim_value = sizes[dim.dim_param]
        del copy.graph.value_info[:]
    try:
        return onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except Exception:  # inference is a service; the checker decides what is valid
        return copy


def annotated(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model`, whole, with shapes of intermediate tensors; named dimensions stay free."""
    copy = type(model)()
    copy.CopyFrom(model)
    inferred = infer_shapes(model).graph
    for part in ("output", "value_info"):
        getattr(copy.graph, part).clear()
        getattr(copy.graph, part).extend(getattr(inferred, part))
    return copy


def _skeleton(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without the values of its large weights."""
    copy = type(model)(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    copy.graph.name = model.graph.name
    for part in ("node", "input", "output", "value_info"):
        getattr(copy.graph, part).extend(getattr(model.graph, part))
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= SMALL_BYTES:
            copy.graph.initializer.add().CopyFrom(tensor)
        else:
            copy.graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
    return copy


@dataclass(frozen=True)
class GraphFacts:
    """What a graph holds, for one sample: counted, not measured.

    `flops` counts two operations a multiply-accumulate in Conv, ConvTranspose, MatMul, Gemm, RNN, GRU and LSTM;
    None where a shape is unknown. `parameters` and `weight_bytes` count initializers.
    """

    operators: dict[str, int]
    parameters: int
    weight_bytes: int
    flops: int | None
    opset: int


def facts(model: onnx.ModelProto) -> GraphFacts:
    """Count operators, parameters and FLOPs of one sample (named dimensions taken as 1)."""
    inputs, _ = model_specs(model)
    sizes = {d: 1 for spec in inputs for d in spec.shape if isinstance(d, str)}
    shapes = tensor_shapes(infer_shapes(model, sizes))
    flops: int | None = 0
    for node in model.graph.node:
        count = node_flops(node, shapes)
        flops = None if flops is None or count is None else flops + count
    tensors = list(model.graph.initializer)
    return GraphFacts(
        operators=dict(Counter(n.op_type for n in all_nodes(model)).most_common()),
        parameters=sum(math.prod(t.dims) for t in tensors),
        weight_bytes=weight_bytes(model),
        flops=flops,
        opset=opset_of(model),
    )


def tensor_shapes(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Tensors of the main graph whose shape is known -> shape; run `infer_shapes` with sizes first."""
    graph = model.graph
    out: dict[str, tuple[int, ...]] = {t.name: tuple(t.dims) for t in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        dims = value.type.tensor_type.shape.dim
        known = value.type.tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in dims)
        if known and value.name not in out:
            out[value.name] = tuple(int(d.dim_value) for d in dims)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in out:
            out.setdefault(node.output[0], out[node.input[0]])
    return out


def node_flops(node: Any, shapes: dict[str, tuple[int, ...]]) -> int | None:
    """Operations of one node, counted as in `GraphFacts.flops`; 0 for cheap operators, None for unknown shapes."""
    kind = node.op_type
    if kind not in ("Conv", "ConvTranspose", "MatMul", "Gemm", "RNN", "GRU", "LSTM", "QLinearConv"):
        return 0
    get = [shapes.get(name) for name in (*node.input, "", "", "")]
    result = shapes.get(node.output[0]) if node.output[0] else None
    if kind in ("RNN", "GRU", "LSTM"):
        x, w, r = get[:3]
        if x is None or w is None or r is None:
            return None
        return 2 * x[0] * x[1] * (math.prod(w) + math.prod(r))
    weight = get[3] if kind == "QLinearConv" else get[1]
    if get[0] is None or weight is None or result is None:
        return None
    if kind == "ConvTranspose":  # every input element meets every weight of its input channel
        return 2 * math.prod(get[0]) * math.prod(weight[1:])
    if kind in ("Conv", "QLinearConv"):
        return 2 * math.prod(result) * math.prod(weight[1:])
    if kind == "Gemm":
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        return 2 * math.prod(result) * get[0][0 if transposed else 1]
    return 2 * math.prod(result) * get[0][-1]


def precision_of(model: onnx.ModelProto) -> str:
    """The precision that a model computes in: "int8" where it quantizes activations, else its most frequent float.

    Weights that are only stored in INT8 (DequantizeLinear alone) still compute in float. The float is "fp32", "fp16",
    "bf16" or "fp64", by the number of weights (by the inputs, for a model without).
    """
    quantized = ("QuantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
    if any(n.op_type in quantized or n.op_type.startswith("QLinear") for n in all_nodes(model)):
        return "int8"
    names = {1: "fp32", 10: "fp16", 16: "bf16", 11: "fp64"}
    weights: Counter[str] = Counter()
    for graph in subgraphs(model.graph):
        for tensor in graph.initializer:
            if tensor.data_type in names:
                weights[names[tensor.data_type]] += math.prod(tensor.dims)
    if not weights:
        kinds = [v.type.tensor_type.elem_type for v in model.graph.input]
        weights.update(names[k] for k in kinds if k in names)
    return weights.most_common(1)[0][0] if weights else "fp32"
