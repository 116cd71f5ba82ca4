"""What is inside an engine: its layers with formats, the precision that each was meant to run in and runs in.

TensorRT tells it through its inspector (JSON, on the GPU that the engine is for); TensorRT-RTX writes the same list
to its log while it builds, on any machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.graphs import infer_shapes

if TYPE_CHECKING:
    import onnx

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators whose precision decides what an engine gains."""

_PRECISIONS = {
    "float": "fp32", "fp32": "fp32", "half": "fp16", "fp16": "fp16", "bfloat16": "bf16", "bf16": "bf16",
    "int8": "int8", "fp8": "fp8", "e4m3": "fp8", "int32": "int32", "int64": "int64", "bool": "bool", "uint8": "uint8",
}  # fmt: skip
_SILENT = ("signal", "wait", "shape_call", "constant")
"""Layers that only keep the streams in step or compute shapes."""


class EngineTensor(msgspec.Struct, frozen=True, kw_only=True):
    """An input or output of a layer: element type ("fp16"), layout as TensorRT words it, and shape (-1 is free)."""

    name: str
    dtype: str
    format: str
    shape: tuple[int, ...]


class EngineLayer(msgspec.Struct, frozen=True, kw_only=True):
    """One layer of an engine.

    Attributes:
        name, kind, tactic: as TensorRT calls them.
        inputs, outputs: without weights.
        nodes: names of the ONNX nodes that were fused into it.
        precision: what it computes in: the type of its first numeric input.
        reformat: whether it only changes type or layout.
    """

    name: str
    kind: str
    tactic: str
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    nodes: tuple[str, ...]
    precision: str
    reformat: bool


class Mismatch(msgspec.Struct, frozen=True, kw_only=True):
    """A product that runs in another precision than the graph asks for."""

    node: str
    intended: str
    actual: str


class EngineSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Counts over an engine's layers.

    Attributes:
        layers: layers that compute; precisions: how many in each precision.
        products, intended: Conv, Gemm and MatMul nodes by the precision they run in, and by what the graph asks for.
        reformats: layers that only change type or layout.
        mismatches: products that do not run in what the graph asks for.
        float_outputs: INT8 products whose result leaves the layer in float: the next layer reads four times the bytes.
    """

    layers: int
    precisions: dict[str, int]
    products: dict[str, int]
    intended: dict[str, int]
    reformats: int
    mismatches: tuple[Mismatch, ...]
    float_outputs: tuple[str, ...]


class EngineLayers(msgspec.Struct, frozen=True, kw_only=True):
    """What edgekit keeps beside an engine: its layers, and the products of the ONNX graph with their precision."""

    layers: tuple[EngineLayer, ...]
    intended: dict[str, str]


def layers_from_log(text: str) -> tuple[EngineLayer, ...]:
    """The layers in the "Layers:" message of a verbose build log."""
    return tuple(_layer_from_line(line) for line in text.splitlines() if line.startswith("Name: "))


def _layer_from_line(line: str) -> EngineLayer:
    head, _, metadata = line.partition(", Metadata:")
    flat = _flat(head)
    name, _, rest = flat.removeprefix("Name: ").partition(", LayerType: ")
    fields = {
        "Name": name,
        "LayerType": rest.partition(", Inputs:")[0],
        "TacticName": flat.rpartition(", TacticName: ")[2].partition(", StreamId:")[0],
    }
    found = {}
    for key in ("Inputs", "Outputs"):
        block = re.search(rf", {key}: \[(.*?)\](?=, [A-Z]\w+:|$)", flat)
        found[key] = tuple(_tensor_from_text(t) for t in re.findall(r"\{ (.*?) \}", block[1])) if block else ()
    return _layer(fields, found["Inputs"], found["Outputs"], metadata)


def _flat(text: str) -> str:
    """`text` with the brackets of shapes as parentheses, so that the brackets left are those of lists of tensors."""
    return (
        re.sub(r"\[(-?[\d,-]*)\]", r"(\1)", text)
        .replace("Inputs: ()", "Inputs: []")
        .replace("Outputs: ()", "Outputs: []")
    )


def _tensor_from_text(text: str) -> EngineTensor:
    fields = dict(re.findall(r"(Name|Dimensions|Datatype|Format): (\([-\d,]*\)|[^,]*)", text))
    wording = text.partition("Format: ")[2]
    shape = tuple(int(d) for d in fields.get("Dimensions", "").strip("()").split(",") if d)
    dtype = _precision(fields.get("Datatype", "") or wording)
    return EngineTensor(name=fields.get("Name", ""), dtype=dtype, format=wording.strip(), shape=shape)


def layers_from_json(text: str) -> tuple[EngineLayer, ...]:
    """The layers in the inspector's JSON, of TensorRT 10 ("Format/Datatype") or 11 ("Format" and "Datatype").

    An engine built with less than detailed verbosity lists names only: those layers have no tensors.
    """
    try:
        document = json.loads(text)
    except ValueError:
        return ()
    out = []
    for entry in document.get("Layers", []) if isinstance(document, dict) else []:
        if isinstance(entry, str):
            out.append(_layer({"Name": entry}, (), (), ""))
            continue
        fields = {k: str(entry.get(k, "")) for k in ("Name", "LayerType", "TacticName")}
        inputs = tuple(_tensor_from_json(t) for t in entry.get("Inputs", []))
        outputs = tuple(_tensor_from_json(t) for t in entry.get("Outputs", []))
        out.append(_layer(fields, inputs, outputs, str(entry.get("Metadata", ""))))
    return tuple(out)


def _tensor_from_json(tensor: Mapping[str, Any]) -> EngineTensor:
    wording = str(tensor.get("Format/Datatype") or tensor.get("Format") or "")
    dtype = _precision(str(tensor.get("Datatype") or wording))
    shape = tuple(int(d) for d in tensor.get("Dimensions", []))
    return EngineTensor(name=str(tensor.get("Name", "")), dtype=dtype, format=wording, shape=shape)


def _precision(wording: str) -> str:
    """The precision in "Half" or in "Channel major FP16 format where channel % 8 == 0"."""
    for word in re.findall(r"[a-z0-9]+", wording.lower()):
        if word in _PRECISIONS:
            return _PRECISIONS[word]
    return ""


def _layer(
    fields: Mapping[str, str], inputs: tuple[EngineTensor, ...], outputs: tuple[EngineTensor, ...], metadata: str
) -> EngineLayer:
    kind, name = fields.get("LayerType", "").strip(), fields.get("Name", "").strip()
    nodes = tuple(dict.fromkeys(re.findall(r"\[ONNX Layer: ([^\]]*)\]", metadata)))
    numeric = [t.dtype for t in inputs if t.dtype in ("int8", "fp8", "fp16", "bf16", "fp32")]
    move = kind.lower() in ("reformat", "noop") or name.lower().startswith("reformatting copynode")
    tactic = fields.get("TacticName", "").strip()
    return EngineLayer(
        name=name,
        kind=kind,
        tactic=tactic,
        inputs=inputs,
        outputs=outputs,
        nodes=nodes,
        precision=numeric[0] if numeric else "",
        reformat=move or _only_moves(tactic),
    )


def _only_moves(tactic: str) -> bool:
    """Whether a generated kernel's name is made of casts, copies and transposes alone ("__myl_CastMove_0x12…")."""
    words = re.fullmatch(r"__myl_((?:[A-Z][a-z]+)+)(?:_0x\w+)?", tactic)
    moves = {"Cast", "Move", "Tran", "Copy", "Resh", "Repl", "Conc", "Slic"}
    return words is not None and set(re.findall(r"[A-Z][a-z]+", words[1])) <= moves


def intended_precisions(model: onnx.ModelProto) -> dict[str, str]:
    """Product nodes of an ONNX graph -> the precision that the graph asks for: "int8" behind a DequantizeLinear."""
    types = _types(model)
    producer = {o: n for n in model.graph.node for o in n.output}
    out = {}
    for node in model.graph.node:
        if node.op_type not in PRODUCTS or not node.name:
            continue
        source = producer.get(node.input[0])
        while source is not None and source.op_type in ("Cast", "Reshape", "Transpose"):
            source = producer.get(source.input[0])
        if source is not None and source.op_type == "DequantizeLinear":
            out[node.name] = "int8"
        else:
            out[node.name] = types.get(node.input[0], "")
    return out


def _types(model: onnx.ModelProto) -> dict[str, str]:
    names = {1: "fp32", 10: "fp16", 16: "bf16", 11: "fp32"}
    graph = infer_shapes(model).graph
    values = (*graph.input, *graph.output, *graph.value_info)
    out = {v.name: names.get(v.type.tensor_type.elem_type, "") for v in values}
    out.update((t.name, names.get(t.data_type, "")) for t in graph.initializer)
    return out


def summary_of(found: EngineLayers) -> EngineSummary:
    """The counts over an engine's layers; see `EngineSummary`."""
    working = [x for x in found.layers if x.kind not in _SILENT and x.precision]
    actual = _actual(working, found.intended)
    float_outputs = [
        x.name
        for x in working
        if x.precision == "int8"
        and any(n in found.intended for n in x.nodes)
        and any(t.dtype == "fp32" for t in x.outputs)
    ]
    wrong = [
        Mismatch(node=node, intended=wanted, actual=actual[node])
        for node, wanted in found.intended.items()
        if wanted and node in actual and actual[node] != wanted
    ]
    return EngineSummary(
        layers=len(working),
        precisions=_count(x.precision for x in working),
        products=_count(actual.values()),
        intended=_count(v for k, v in found.intended.items() if k in actual),
        reformats=sum(x.reformat for x in working),
        mismatches=tuple(wrong),
        float_outputs=tuple(float_outputs),
    )


def _actual(layers: Sequence[EngineLayer], products: Mapping[str, str]) -> dict[str, str]:
    """Product node -> the precision of the layer that computes it.

    Fusing spreads a node over several layers: the one that is not a generated element-wise kernel does the product.
    """
    out: dict[str, str] = {}
    for generated in (False, True):
        for layer in layers:
            if (layer.kind == "kgen") == generated and not layer.reformat:
                for node in layer.nodes:
                    if node in products:
                        out.setdefault(node, layer.precision)
    return out


def _count(words: Iterable[str]) -> dict[str, int]:
    out: dict[str, int] = {}
    for word in words:
        out[word] = out.get(word, 0) + 1
    return out
