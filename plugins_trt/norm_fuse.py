"""Residual adds and the normalisations that follow them, in standard nodes: LayerNormalization and RMSNormalization,
and both written out, as exporters do for older operator sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from plugins_trt.operator import FLOATS, Operator, numpy_dtype

if TYPE_CHECKING:
    import onnx

    from plugins_trt.fuse import Graph


@dataclass(frozen=True)
class Norm:
    """A normalisation over the last dimension of `total`, in the order of its `nodes`: to the value `y`."""

    nodes: Sequence[onnx.NodeProto]
    total: str
    y: str
    weight: str
    bias: str
    epsilon: float
    rms: bool
    whole: bool = True
    """False if it does more than the operators do; it is then left."""


def fuse_norms(operator: Operator, graph: Graph, *, keep_sum: bool) -> None:
    """Put `operator` wherever an Add of two tensors of one shape is normalised: with `keep_sum` where the sum is needed
    elsewhere too, else where it is not.

    Casts to float32 before the normalisation and back after it are part of it, since the kernel computes in float32.
    """
    for found in _norms(graph):
        norm = _uncast(graph, found)
        add = graph.producer(norm.total, "Add")
        inside = {id(node) for node in norm.nodes}
        others = [node for node in graph.users(norm.total) if id(node) not in inside]
        shared = bool(others) or graph.leaves(norm.total)
        if add is None or shared != keep_sum or any(graph.constant(name) is not None for name in add.input):
            continue
        if norm.whole and len(found.nodes) == 1:
            _learn_columns(graph, norm.weight, (*add.input, norm.total, norm.y))
        last, shape, dtype = norm.nodes[-1], graph.shape(add.input[0]), graph.dtype(norm.total)
        if not norm.whole:
            graph.leave(operator, last, "it does not normalise over the last dimension alone, or gives its mean too.")
        elif not shape or graph.shape(add.input[1]) != shape:
            graph.leave(operator, last, f"{add.input[0]} and {add.input[1]} are not known to have one shape.")
        elif dtype not in FLOATS or graph.dtype(norm.y) != dtype:
            graph.leave(operator, last, f"its input is {dtype or 'of an unknown type'}, its output not the same.")
        else:
            row = [_row(graph, name, shape[-1], dtype, norm.weight) for name in (norm.weight, norm.bias)]
            if not all(row):
                graph.leave(operator, last, f"its weights are not rows of {shape[-1]} values in {dtype}.")
                continue
            outputs = (norm.y, norm.total) if keep_sum else (norm.y,)
            inputs, rms = [*add.input, *row], int(norm.rms)
            graph.replace(operator, [add, *norm.nodes], inputs, outputs, epsilon=norm.epsilon, rms=rms)


def _learn_columns(graph: Graph, weight: str, names: Sequence[str]) -> None:
    """A norm's weight is as long as the rows that it is for, which says what inference may not have found out."""
    row = graph.shape(weight)
    if row is None or len(row) != 1 or not isinstance(row[0], int) or row[0] == 1:
        return
    for name in names:
        shape = graph.shape(name)
        if shape and isinstance(shape[-1], str):
            graph.set_shape(name, (*shape[:-1], row[0]))


def _row(graph: Graph, name: str, columns: int | str, dtype: str, like: str) -> str:
    """`name` as a row of `columns` in `dtype` (a new constant where it is one of another type; zeros without a name);
    "" if it is not one."""
    import numpy as np

    if not name:
        return graph.add_constant(like, np.zeros(columns, numpy_dtype(dtype))) if isinstance(columns, int) else ""
    if graph.shape(name) != (columns,):
        return ""
    if graph.dtype(name) == dtype:
        return name
    value = graph.constant(name)
    return "" if value is None else graph.add_constant(name, value.astype(numpy_dtype(dtype)))


def _uncast(graph: Graph, norm: Norm) -> Norm:
    """`norm` with the casts around it, where its sum and what it gives have one shorter type."""
    before = graph.producer(norm.total, "Cast")
    after = graph.follower(norm.y, "Cast")
    inside = {id(node) for node in norm.nodes}
    if before is None or any(id(node) not in inside for node in graph.users(norm.total)) or graph.leaves(norm.total):
        return norm
    total = before.input[0]
    if after is None or graph.dtype(after.output[0]) != graph.dtype(total):
        return norm
    nodes = (before, *norm.nodes, after)
    return Norm(nodes, total, after.output[0], norm.weight, norm.bias, norm.epsilon, norm.rms, norm.whole)


def _norms(graph: Graph) -> Iterator[Norm]:
    for op_type in ("LayerNormalization", "RMSNormalization"):
        for node in graph.nodes(op_type):
            given = {a.name: a for a in node.attribute}
            axis = given["axis"].i if "axis" in given else -1
            rank = len(graph.shape(node.input[0]) or ())
            whole = axis in (-1, rank - 1) and not any(node.output[1:])
            weight, bias = [*node.input[1:], ""][:2]
            epsilon = given["epsilon"].f if "epsilon" in given else 1e-5
            yield Norm([node], node.input[0], node.output[0], weight, bias, epsilon, op_type.startswith("RMS"), whole)
    for node in graph.nodes("Mul"):
        written = _written_out(graph, node)
        if written is not None:
            yield written


def _written_out(graph: Graph, scale: onnx.NodeProto) -> Norm | None:
    """The normalisation whose product with its weight is `scale`: c / sqrt(mean(c * c) + epsilon) * weight, and + bias,
    where c is the sum (RMSNorm) or the sum less its mean (LayerNorm)."""
    for normal, weight in (tuple(scale.input), tuple(reversed(scale.input))):
        cast = graph.producer(normal, "Cast")  # as in models that round before they scale
        inner = cast.input[0] if cast is not None and len(graph.users(normal)) == 1 else normal
        found = _normalised(graph, inner)
        if found is None or graph.constant(weight) is None:
            continue
        nodes, centred, epsilon = found
        nodes = [*nodes, *([cast] if inner != normal and cast is not None else []), scale]
        y, bias = scale.output[0], ""
        mean = _mean_removed(graph, centred)
        total = centred
        if mean is not None:
            add = graph.follower(y, "Add")
            other = [name for name in add.input if name != y] if add is not None else []
            if add is None or len(other) != 1 or graph.constant(other[0]) is None:
                return None
            nodes, total = [*mean[0], *nodes, add], mean[1]
            y, bias = add.output[0], other[0]
        if not _closed(graph, nodes, {total, y}):
            return None
        return Norm(nodes, total, y, weight, bias, epsilon, rms=mean is None)
    return None


def _normalised(graph: Graph, value: str) -> tuple[list[onnx.NodeProto], str, float] | None:
    """c / sqrt(mean(c * c) + epsilon), as a division or a product with the reciprocal: its nodes, c and epsilon."""
    last = graph.producer(value, "Div") or graph.producer(value, "Mul")
    if last is None:
        return None
    for centred, deviation in (tuple(last.input), tuple(reversed(last.input))):
        reciprocal = graph.producer(deviation, "Reciprocal")
        if (reciprocal is None) != (last.op_type == "Div"):
            continue
        root = graph.producer(reciprocal.input[0] if reciprocal is not None else deviation, "Sqrt")
        add = None if root is None else graph.producer(root.input[0], "Add")
        if root is None or add is None:
            continue
        for mean, constant in (tuple(add.input), tuple(reversed(add.input))):
            epsilon, squares = graph.constant(constant), _mean(graph, mean)
            square = None if squares is None else _square(graph, squares.input[0], centred)
            if epsilon is None or epsilon.size != 1 or squares is None or square is None:
                continue
            nodes = [square, squares, add, root, *([reciprocal] if reciprocal is not None else []), last]
            return nodes, centred, float(epsilon.reshape(-1)[0])
    return None


def _mean(graph: Graph, value: str) -> onnx.NodeProto | None:
    """The ReduceMean over the last dimension that makes `value`."""
    node = graph.producer(value, "ReduceMean")
    if node is None or next((a.i for a in node.attribute if a.name == "keepdims"), 1) != 1:
        return None
    axes = [list(a.ints) for a in node.attribute if a.name == "axes"]
    if len(node.input) > 1:
        given = graph.constant(node.input[1])
        axes = [] if given is None else [given.reshape(-1).tolist()]
    rank = len(graph.shape(node.input[0]) or ())
    return node if axes in ([[-1]], [[rank - 1]]) else None


def _square(graph: Graph, value: str, of: str) -> onnx.NodeProto | None:
    """The node that makes `value` of `of` squared."""
    power = graph.producer(value, "Pow")
    if power is not None and power.input[0] == of:
        exponent = graph.constant(power.input[1])
        return power if exponent is not None and exponent.size == 1 and exponent.reshape(-1)[0] == 2 else None
    product = graph.producer(value, "Mul")
    return product if product is not None and list(product.input) == [of, of] else None


def _mean_removed(graph: Graph, value: str) -> tuple[list[onnx.NodeProto], str] | None:
    """The nodes of x - mean(x), and x."""
    less = graph.producer(value, "Sub")
    mean = None if less is None else _mean(graph, less.input[1])
    if less is None or mean is None or mean.input[0] != less.input[0]:
        return None
    return [mean, less], less.input[0]


def _closed(graph: Graph, nodes: Sequence[onnx.NodeProto], ends: set[str]) -> bool:
    """Whether what `nodes` make is needed by no others, but for the values `ends`."""
    inside = {id(node) for node in nodes}
    made = {name for node in nodes for name in node.output} - ends
    return not any(graph.leaves(name) or any(id(n) not in inside for n in graph.users(name)) for name in made)
