"""Channels-last models (Keras, TensorFlow) transpose around each convolution: bring what lies between together.

A convolution, a transpose, a few element-wise nodes and the transpose back become a convolution and the element-wise
nodes, which then fold into it (see `fold`) or fuse with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit._lazy import require
from edgekit.export.cleanup import remove_dead, replace_reads, uses

if TYPE_CHECKING:
    import onnx

UNARY = ("Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Softplus", "Gelu", "Clip")
BINARY = ("Add", "Sub", "Mul", "Div")
SOURCES = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "BatchNormalization")
"""Only transposes behind these are moved: elsewhere (in attention) there is nothing to meet."""


def sink_transposes(model: onnx.ModelProto) -> int:
    """Move transposes of convolutions' outputs behind element-wise nodes, and drop those that cancel, in place.

    Returns how many were dropped. f(transpose(x)) = transpose(f(x)) for element-wise f; a constant operand is
    transposed the other way.
    """
    graph = model.graph
    dropped = 0
    while True:
        values = {t.name: t for t in graph.initializer}
        makers = {o: n for n in graph.node for o in n.output}
        back = _transposed_back(graph, makers)
        if back is not None:
            replace_reads(graph, back.output[0], makers[back.input[0]].input[0])
            remove_dead(model)
            dropped += 1
            continue
        readers = {i: n for n in graph.node for i in n.input}
        read, outputs = uses(graph), {o.name for o in graph.output}
        for node in graph.node:
            if node.op_type != "Transpose" or not _behind_convolution(node.input[0], makers, values):
                continue
            reader = readers.get(node.output[0])
            if reader is None or read[node.output[0]] != 1 or node.output[0] in outputs:
                continue
            if _swap(graph, node, reader, values):
                break
        else:
            return dropped


def _transposed_back(graph: onnx.GraphProto, makers: dict[str, Any]) -> Any:
    """A transpose that undoes the one before it, or None."""
    outputs = {o.name for o in graph.output}
    for node in graph.node:
        before = makers.get(node.input[0]) if node.op_type == "Transpose" else None
        if before is None or before.op_type != "Transpose" or node.output[0] in outputs:
            continue
        first, second = _order(before), _order(node)
        if first and second and [first[i] for i in second] == list(range(len(first))):
            return node
    return None


def _order(transpose: Any) -> list[int]:
    return next((list(a.ints) for a in transpose.attribute if a.name == "perm"), [])


def _behind_convolution(name: str, makers: dict[str, Any], values: dict[str, Any]) -> bool:
    """Whether a convolution or pooling made the tensor, but for element-wise nodes in between."""
    node = makers.get(name)
    while node is not None and node.op_type in (*UNARY, *BINARY):
        others = [i for i in node.input if i and i not in values]
        if len(others) != 1:
            return False
        node = makers.get(others[0])
    return node is not None and node.op_type in SOURCES


def _swap(graph: onnx.GraphProto, transpose: Any, reader: Any, values: dict[str, Any]) -> bool:
    """Put `transpose` behind the element-wise `reader`, if that is one."""
    onnx = require("onnx", why="move transposes")
    order, place = _order(transpose), list(reader.input).index(transpose.output[0])
    if not order:
        return False
    if reader.op_type in BINARY:
        other = reader.input[1 - place]
        if other not in values or len(values[other].dims) > len(order):
            return False
        constant = onnx.numpy_helper.to_array(values[other])
        full = constant.reshape((1,) * (len(order) - constant.ndim) + constant.shape)
        name = f"{other}_moved_{reader.output[0]}"
        graph.initializer.append(
            onnx.numpy_helper.from_array(np.ascontiguousarray(full.transpose(np.argsort(order))), name)
        )
        reader.input[1 - place] = name
    elif reader.op_type not in UNARY or place != 0:
        return False
    end = reader.output[0]
    reader.input[place], reader.output[0] = transpose.input[0], f"{end}_before_transpose"
    transpose.input[0], transpose.output[0] = reader.output[0], end
    moved = type(transpose).FromString(transpose.SerializeToString())
    places = {id(n): i for i, n in enumerate(graph.node)}
    graph.node.insert(places[id(reader)] + 1, moved)
    del graph.node[places[id(transpose)]]
    return True
