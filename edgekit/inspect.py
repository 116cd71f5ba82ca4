"""What is inside a package or an ONNX file: facts of the manifest, every file checked, the graph's layers."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edgekit import graphs
from edgekit._lazy import available
from edgekit.contents import strangers
from edgekit.engine.apply import stored_layers
from edgekit.engine.inspect import EngineLayer, EngineSummary, summary_of
from edgekit.errors import ModelError
from edgekit.manifest import File, Manifest, Tensor, Variant
from edgekit.package import Package, sha256_of
from edgekit.signature import Signed, signed
from edgekit.tensors import dtype_from_onnx

if TYPE_CHECKING:
    import onnx

WITHOUT_ONNX = "operators, parameters and FLOPs need onnx. Run: pip install 'edgekit[export]'"
_SCOPES = "pkg.torch.onnx.name_scopes"
_CARRIERS = ("DequantizeLinear", "Cast", "Identity", "Transpose", "Reshape", "QuantizeLinear")
"""Operators that hand a weight on: what they read counts as the weight of the layer behind them."""


class Layer(msgspec.Struct, frozen=True, kw_only=True):
    """One node. Constants, and nodes that only decode weights, are part of the layer that reads them.

    Attributes:
        op, name: operator ("domain::Op" outside the standard) and node name.
        module: path of the PyTorch module that it came from; empty where the exporter did not say.
        shape: of its first output, for one sample; None where it cannot be inferred.
        dtype: element type of its first output; None where it cannot be inferred.
        weights: element type of its weights; None without weights.
        weight_bytes: bytes of its weights, each counted at the first layer that reads it.
        flops: for one sample; None where a shape is unknown.
    """

    op: str
    name: str
    module: str
    shape: tuple[int, ...] | None
    dtype: str | None
    weights: str | None
    weight_bytes: int
    flops: int | None


class Graph(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of one ONNX graph for one sample; two operations a multiply-accumulate.

    `taken_as_1` names the free dimensions other than the batch: FLOPs and shapes grow with them.
    """

    variant: str
    opset: int
    producer: str
    operators: dict[str, int]
    parameters: int
    weight_bytes: int
    flops: int | None
    taken_as_1: tuple[str, ...]
    layers: tuple[Layer, ...]


class EngineInspection(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled engine: how it was built (see `Variant.settings`), its layers, and counts over them."""

    variant: str
    settings: dict[str, object]
    layers: tuple[EngineLayer, ...]
    summary: EngineSummary


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """A package: its manifest, the files whose digest was checked, those that the manifest does not know, a graph.

    `signed` is what its signature says, unchecked: that takes a key (`edgekit verify --verify-key`). None without one.
    `graph` is None where there is nothing to read it with, and `graph_note` says so; for an engine, `engine` takes its
    place.
    """

    path: str
    manifest: Manifest
    labels: int
    checked: tuple[File, ...]
    strangers: tuple[str, ...]
    signed: Signed | None
    graph: Graph | None
    graph_note: str = ""
    engine: EngineInspection | None = None


class ModelInspection(msgspec.Struct, frozen=True, kw_only=True):
    """A bare ONNX file. Without onnx, only its size and digest are known."""

    path: str
    bytes: int
    sha256: str
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    graph: Graph | None = None
    graph_note: str = ""


def inspect_package(package: Package, *, variant: str | None = None) -> Inspection:
    """Check every file of `package` and read the graph of `variant` (default: the reference).

    Raises:
        IntegrityError: a file is missing or its bytes changed.
        UsageError: no such variant.
        ModelError: the variant's file is not a readable ONNX file.
    """
    chosen = package.variant(variant) if variant is not None else package.reference
    files = package.manifest.all_files()
    for name in files:
        package.file(name)
    graph, note = _graph_of(package, chosen)
    return Inspection(
        path=str(package.path),
        manifest=package.manifest,
        labels=len(package.labels()),
        checked=tuple(files.values()),
        strangers=tuple(strangers(package)),
        signed=signed(package),
        graph=graph,
        graph_note=note,
        engine=_engine_of(package, chosen),
    )


def _engine_of(package: Package, variant: Variant) -> EngineInspection | None:
    found = stored_layers(package, variant) if variant.format != "onnx" else None
    if found is None or not found.layers:
        return None
    return EngineInspection(
        variant=variant.id, settings=dict(variant.settings), layers=found.layers, summary=summary_of(found)
    )


def _graph_of(package: Package, variant: Variant) -> tuple[Graph | None, str]:
    if variant.format != "onnx":
        return None, f"'{variant.id}' is a {variant.format} engine; the list of its layers was not kept"
    if not available("onnx"):
        return None, WITHOUT_ONNX
    return graph_of(graphs.load_model(package.model_file(variant)), variant=variant.id), ""


def inspect_model(path: Path) -> ModelInspection:
    """An ONNX file on its own.

    Raises:
        ModelError: there is no such file, or it is not ONNX.
    """
    try:
        size, digest = path.stat().st_size, sha256_of(path)
    except OSError as error:
        raise ModelError(f"Model '{path}' cannot be read ({error.strerror}). Check the path.") from error
    if not available("onnx"):
        return ModelInspection(path=str(path), bytes=size, sha256=digest, graph_note=WITHOUT_ONNX)
    model = graphs.load_model(path)
    inputs, outputs = graphs.model_specs(model)
    return ModelInspection(
        path=str(path),
        bytes=size,
        sha256=digest,
        inputs=tuple(map(Tensor.of, inputs)),
        outputs=tuple(map(Tensor.of, outputs)),
        graph=graph_of(model, variant=path.stem),
    )


def graph_of(model: onnx.ModelProto, *, variant: str) -> Graph:
    """The facts and layers of a loaded model. Raises ModelError as `graphs.model_specs`."""
    facts = graphs.facts(model)
    inputs, _ = graphs.model_specs(model)
    batch = inputs[0].shape[0] if inputs and inputs[0].batched else None
    free = dict.fromkeys(d for spec in inputs for d in spec.shape if isinstance(d, str) and d != batch)
    return Graph(
        variant=variant,
        opset=facts.opset,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        operators=facts.operators,
        parameters=facts.parameters,
        weight_bytes=facts.weight_bytes,
        flops=facts.flops,
        taken_as_1=tuple(free),
        layers=tuple(_layers(model)),
    )


def _layers(model: onnx.ModelProto) -> Iterator[Layer]:
    inputs, _ = graphs.model_specs(model)
    sizes = {d: 1 for spec in inputs for d in spec.shape if isinstance(d, str)}
    inferred = graphs.infer_shapes(model, sizes)
    shapes = graphs.tensor_shapes(inferred)
    types = _types(inferred)
    weights = _weights(model)
    carried = _carried(model, weights)
    counted: set[str] = set()
    for node in model.graph.node:
        if node.op_type == "Constant" or (node.output and node.output[0] in carried):
            continue
        own = {name for i in node.input if i in carried for name in carried[i]}
        fresh = own - counted
        counted |= fresh
        main = max(own, key=lambda n: weights[n][1], default=None)
        result = next((o for o in node.output if o), "")
        yield Layer(
            op=f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type,
            name=node.name,
            module=_module(node),
            shape=shapes.get(result),
            dtype=types.get(result),
            weights=None if main is None else weights[main][0],
            weight_bytes=sum(weights[n][1] for n in fresh),
            flops=graphs.node_flops(node, shapes),
        )


def _types(model: onnx.ModelProto) -> dict[str, str]:
    """Tensor -> element type, where it is known and carried."""
    out = {}
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        number = value.type.tensor_type.elem_type
        try:
            out[value.name] = dtype_from_onnx(number, tensor=value.name).name
        except ModelError:
            continue
    return out


def _weights(model: onnx.ModelProto) -> dict[str, tuple[str, int]]:
    """Initializer -> element type and bytes."""
    out = {}
    for tensor in model.graph.initializer:
        try:
            dtype = dtype_from_onnx(tensor.data_type, tensor=tensor.name)
            out[tensor.name] = (dtype.name, math.prod(tensor.dims) * dtype.itemsize)
        except ModelError:
            out[tensor.name] = (f"type {tensor.data_type}", len(tensor.raw_data) or tensor.ByteSize())
    return out


def _carried(model: onnx.ModelProto, weights: Mapping[str, object]) -> dict[str, frozenset[str]]:
    """Tensor -> the initializers that it is made of, when it is made of initializers only."""
    out = {name: frozenset((name,)) for name in weights}
    for node in model.graph.node:
        if node.op_type in _CARRIERS and node.output and all(i in out for i in node.input if i):
            out[node.output[0]] = frozenset(n for i in node.input if i for n in out[i])
    return out


def _module(node: onnx.NodeProto) -> str:
    """The PyTorch module that the node was exported from ("blocks.0.bn"), or an empty string."""
    for entry in node.metadata_props:
        if entry.key != _SCOPES:
            continue
        try:
            scopes = ast.literal_eval(entry.value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return ""
        if isinstance(scopes, list) and len(scopes) >= 2:  # the last one is the operation itself
            return str(scopes[-2])
    return ""
