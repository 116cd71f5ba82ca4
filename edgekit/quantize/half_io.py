"""Half-precision inputs and outputs: what crosses the bus halves, and the casts at both ends go away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit._lazy import require
from edgekit.graphs import subgraphs
from edgekit.quantize.fp16 import FP16, types_of

if TYPE_CHECKING:
    import onnx

_FLOAT = 1


def with_half_io(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose float32 inputs and outputs are float16 under the same names.

    Readers that cast an input to FP16 read it directly; an output that was cast from FP16 is handed out before the
    cast. Where the graph needs float32 at an end, it is cast inside. Inputs beyond 65504 become infinite.
    """
    onnx = require("onnx", why="convert models to FP16")
    made = type(model)()
    made.CopyFrom(model)
    graph, types = made.graph, types_of(model)
    constants = {t.name for t in graph.initializer}
    for value in graph.input:
        if value.name not in constants and value.type.tensor_type.elem_type == _FLOAT:
            value.type.tensor_type.elem_type = FP16.onnx
            _open_input(onnx, graph, value.name)
    for value in graph.output:
        if value.type.tensor_type.elem_type == _FLOAT:
            value.type.tensor_type.elem_type = FP16.onnx
            _open_output(onnx, graph, value.name, types)
    return made


def _rename_readers(graph: Any, old: str, new: str) -> None:
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
        for a in node.attribute:
            for body in (a.g, *a.graphs):
                for inner in (n for g in subgraphs(body) for n in g.node):
                    for i, name in enumerate(inner.input):
                        if name == old:
                            inner.input[i] = new


def _is_cast(node: Any, kind: int) -> bool:
    return bool(node.op_type == "Cast" and next(a.i for a in node.attribute if a.name == "to") == kind)


def _open_input(onnx: Any, graph: Any, name: str) -> None:
    outputs = {o.name for o in graph.output}
    for node in [n for n in graph.node if n.input[:1] == [name] and _is_cast(n, FP16.onnx)]:
        if node.output[0] not in outputs:
            _rename_readers(graph, node.output[0], f"{name}__half")
            graph.node.remove(node)
    inner = f"{name}__float"
    _rename_readers(graph, name, inner)
    _rename_readers(graph, f"{name}__half", name)
    if any(inner in n.input or _captures(n, inner) for n in graph.node):
        cast = onnx.helper.make_node("Cast", [name], [inner], name=f"{name}_to_float", to=_FLOAT)
        graph.node.insert(0, cast)


def _captures(node: Any, name: str) -> bool:
    bodies = [b for a in node.attribute for b in (a.g, *a.graphs)]
    return any(name in n.input for b in bodies for g in subgraphs(b) for n in g.node)


def _open_output(onnx: Any, graph: Any, name: str, types: Mapping[str, int]) -> None:
    producer = next(n for n in graph.node if name in n.output)
    inner = f"{name}__float"
    for i, out in enumerate(producer.output):
        if out == name:
            producer.output[i] = inner
    _rename_readers(graph, name, inner)
    made = {o for n in graph.node for o in n.output} - {o.name for o in graph.output}
    read = any(inner in n.input or _captures(n, inner) for n in graph.node)
    source = producer.input[0] if producer.input else ""
    if _is_cast(producer, _FLOAT) and not read and types.get(source) == FP16.onnx and source in made:
        graph.node.remove(producer)
        maker = next(n for n in graph.node if source in n.output)
        for i, out in enumerate(maker.output):
            if out == source:
                maker.output[i] = name
        _rename_readers(graph, source, name)
        return
    graph.node.append(onnx.helper.make_node("Cast", [inner], [name], name=f"{name}_to_half", to=FP16.onnx))
