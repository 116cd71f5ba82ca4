"""What is removed from an ONNX graph before it becomes a package: leftovers of exporters that no runtime needs.

Everything here edits the model that it is given; the caller owns it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from edgekit._lazy import require
from edgekit.graphs import opset_of, raised_to, subgraphs

if TYPE_CHECKING:
    import onnx


def clean(model: onnx.ModelProto) -> dict[str, int]:
    """Run every pass below on `model`, in place, and say how many nodes or inputs each removed."""
    done = {
        "initializers listed as inputs": drop_initializer_inputs(model),
        "constants made initializers": lift_constants(model),
        "Dropout nodes": remove_dropout(model),
        "Identity nodes": remove_identities(model),
        "dead nodes": remove_dead(model),
    }
    return {what: count for what, count in done.items() if count}


def uses(graph: onnx.GraphProto) -> Counter[str]:
    """How often each tensor is read: by nodes, by control flow inside them, and as a graph output."""
    count: Counter[str] = Counter()
    for inner in subgraphs(graph):
        for node in inner.node:
            count.update(n for n in node.input if n)
        count.update(o.name for o in inner.output)
    return count


def replace_reads(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Let everything that reads `old` read `new`, control flow included; graph outputs keep their names."""
    for inner in subgraphs(graph):
        for node in inner.node:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new
        if inner is not graph:
            for value in inner.output:
                if value.name == old:  # an inner graph may hand an outer tensor through
                    value.name = new


def drop_initializer_inputs(model: onnx.ModelProto) -> int:
    """Old exporters list weights as inputs too: callers could overwrite them, and runtimes cannot fold them."""
    graph = model.graph
    constants = {t.name for t in graph.initializer}
    kept = [v for v in graph.input if v.name not in constants]
    removed = len(graph.input) - len(kept)
    if removed:
        del graph.input[:]
        graph.input.extend(kept)
        model.ir_version = max(model.ir_version, 4)  # IR 3 demanded the listing
    return removed


def lift_constants(model: onnx.ModelProto) -> int:
    """Constant nodes become initializers, so that every pass finds weights in one place."""
    onnx = require("onnx", why="clean ONNX models")
    graph = model.graph
    lifted = []
    for node in graph.node:
        if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
            continue
        tensor = _constant(onnx, node.attribute[0])
        if tensor is None:
            continue
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
        lifted.append(node)
    _remove(graph, lifted)
    outputs = {o.name for o in graph.output}
    for tensor in graph.initializer:  # a constant output: runtimes want a node there
        if tensor.name in outputs:
            name = f"{tensor.name}_constant"
            replace_reads(graph, tensor.name, name)
            graph.node.append(onnx.helper.make_node("Identity", [name], [tensor.name]))
            tensor.name = name
    return len(lifted)


def _constant(onnx: Any, attribute: Any) -> Any:
    import numpy as np

    if attribute.name == "value":
        copy = type(attribute.t)()
        copy.CopyFrom(attribute.t)
        return copy
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if attribute.name in kinds:
        value = onnx.helper.get_attribute_value(attribute)
        return onnx.numpy_helper.from_array(np.asarray(value, kinds[attribute.name]))
    return None


def remove_dropout(model: onnx.ModelProto) -> int:
    """Dropout does nothing at inference; its mask, where something reads it, keeps it."""
    onnx = require("onnx", why="clean ONNX models")
    graph = model.graph
    values = {t.name: t for t in graph.initializer}
    read = uses(graph)
    count = 0
    for node in graph.node:
        if node.op_type != "Dropout" or node.domain not in ("", "ai.onnx"):
            continue
        mode = node.input[2] if len(node.input) > 2 else ""
        training = bool(mode) and (mode not in values or bool(onnx.numpy_helper.to_array(values[mode]).any()))
        mask = node.output[1] if len(node.output) > 1 else ""
        if training or (mask and read[mask]):
            continue
        del node.input[1:], node.output[1:], node.attribute[:]
        node.op_type = "Identity"
        count += 1
    return count


def remove_identities(model: onnx.ModelProto) -> int:
    """Identity nodes go, except where they join an input or weight directly to an output."""
    graph = model.graph
    outputs = {o.name for o in graph.output}
    removed = []
    for node in graph.node:
        if node.op_type != "Identity" or node.domain not in ("", "ai.onnx"):
            continue
        source, target = node.input[0], node.output[0]
        if target not in outputs:
            replace_reads(graph, target, source)
            removed.append(node)
            continue
        makers = [n for n in graph.node if source in n.output]
        if len(makers) != 1 or source in outputs or makers[0].op_type == "Identity":
            continue
        for i, name in enumerate(makers[0].output):
            if name == source:
                makers[0].output[i] = target
        replace_reads(graph, source, target)
        removed.append(node)
    _remove(graph, removed)
    return len(removed)


def remove_dead(model: onnx.ModelProto) -> int:
    """Nodes, weights and shapes that lead to no output."""
    graph = model.graph
    total = 0
    while True:
        read = uses(graph)
        dead = [n for n in graph.node if not any(read[o] for o in n.output if o)]
        if not dead:
            break
        _remove(graph, dead)
        total += len(dead)
    kept = [t for t in graph.initializer if read[t.name]]
    if len(kept) < len(graph.initializer):
        unused = [i for i, t in enumerate(graph.initializer) if not read[t.name]]
        for i in reversed(unused):
            del graph.initializer[i]
    _drop_stale_shapes(graph)
    return total


def _drop_stale_shapes(graph: onnx.GraphProto) -> None:
    made = {o for n in graph.node for o in n.output}
    ends = {v.name for v in (*graph.input, *graph.output)}
    kept = [v for v in graph.value_info if v.name in made and v.name not in ends]
    if len(kept) < len(graph.value_info):
        del graph.value_info[:]
        graph.value_info.extend(kept)


def _remove(graph: onnx.GraphProto, nodes: list[Any]) -> None:
    gone = {id(n) for n in nodes}
    if not gone:
        return
    for i in reversed([i for i, n in enumerate(graph.node) if id(n) in gone]):
        del graph.node[i]


def upgraded(model: onnx.ModelProto, opset: int) -> onnx.ModelProto | None:
    """`model` in operator set `opset`, or None where onnx's converter cannot do it. Newer models stay as they are."""
    if opset_of(model) >= opset:
        return model
    try:
        return raised_to(model, opset)
    except Exception:  # RuntimeError, ConvertError, ValueError of a model that cannot be serialised
        return None
