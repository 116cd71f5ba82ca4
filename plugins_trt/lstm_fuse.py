"""ONNX's LSTM with constant weights, or weights made of constants, as a matrix product and the operator `lstm`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from plugins_trt.operator import Operator

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx
    from numpy.typing import NDArray

    from plugins_trt.fuse import Graph

ACTIVATIONS = ("sigmoid", "tanh", "tanh")
_FOLDED = ("Slice", "Concat", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Identity", "Cast", "Add")
"""What may stand between a stored weight and the LSTM: PyTorch's exporter reorders gates in the file."""
_DEFAULTS = {"direction": "forward", "input_forget": 0, "layout": 0}


def fuse_lstm(operator: Operator, graph: Graph, *, most_hidden: Mapping[str, int]) -> None:
    """Replace every LSTM whose result the operator computes and whose kernel can hold it.

    Left as they are: weights that are not constants, lengths of sequences, peepholes, clipping, coupled gates, other
    activations, batch first, and more hidden units than `most_hidden` of the dtype (the operator's function would be
    slower than the node that was there).
    """
    for node in graph.nodes("LSTM"):
        names = [*node.input, *[""] * (8 - len(node.input))]
        x, w, r, b, _, h0, c0, _ = names
        weights = [_folded(graph, name) if name else None for name in (w, r, b)]
        shape, dtype = graph.shape(x), graph.dtype(x)
        reason = _reason(graph, node, names, weights, most_hidden)
        if reason or weights[1] is None or shape is None:
            graph.leave(operator, node, reason)
            continue
        directions, hidden = weights[1].shape[0], weights[1].shape[2]
        gates = _gates(graph, node, x, weights)
        r = r if graph.constant(r) is not None else graph.add_constant(r, weights[1])
        h0, c0 = (name or _zeros(graph, node, x, directions, hidden) for name in (h0, c0))
        outputs = [*node.output, *[""] * (3 - len(node.output))]
        y, h, c = (graph.new_name(f"{node.name or 'lstm'}_{word}") for word in "yhc")
        made = [y, outputs[1] or h, outputs[2] or c]
        way = _attributes(node)["direction"]
        if graph.replace(operator, [node], [gates, r, h0, c0], made, hidden_size=hidden, direction=way) and outputs[0]:
            _sides(graph, y, outputs[0], (*shape[:2], directions, hidden), dtype)


def _reason(
    graph: Graph, node: onnx.NodeProto, names: list[str], weights: list[Any], most_hidden: Mapping[str, int]
) -> str:
    """Why an LSTM stays; "" if it does not."""
    x, _, _, b, lengths, h0, c0, peepholes = names
    given = _attributes(node)
    if weights[0] is None or weights[1] is None or (b and weights[2] is None):
        return "its weights are not constants."
    if any(name and graph.shape(name) is None for name in (x, h0, c0)):
        return "the shape of its input or of a state is not known."
    if lengths:
        return "its sequences have lengths of their own, and the kernel runs all of them to the end."
    usual = [name.lower() for name in given["activations"]] in ([], [*ACTIVATIONS] * weights[1].shape[0])
    if peepholes or not usual or "clip" in given or given["input_forget"]:
        return "it has peepholes, clipping, coupled gates or other activations, which the kernel does not."
    if given["layout"]:
        return "its first dimension is the batch (layout 1)."
    hidden, dtype = weights[1].shape[2], graph.dtype(x)
    if hidden > most_hidden.get(dtype, 0):
        most = f"up to {most_hidden[dtype]} in {dtype}" if dtype in most_hidden else "of other dtypes"
        return f"it has {hidden} hidden units in {dtype or 'an unknown dtype'}, and the kernel takes sizes {most}."
    return ""


def _folded(graph: Graph, name: str) -> NDArray[Any] | None:
    """The value of `name`, if it is a constant or made of constants alone."""
    from onnx.reference import ReferenceEvaluator

    constant = graph.constant(name)
    node = next((n for kind in _FOLDED if (n := graph.producer(name, kind)) is not None), None)
    if constant is not None or node is None:
        return constant
    given = {wanted: _folded(graph, wanted) for wanted in node.input if wanted}
    if any(value is None for value in given.values()):
        return None
    (value,) = ReferenceEvaluator(node, opsets={"": graph.opset}).run(None, given)
    made: NDArray[Any] = value
    return made


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    from onnx import helper

    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    given = {name: value.decode() if isinstance(value, bytes) else value for name, value in given.items()}
    given["activations"] = [text.decode() for text in given.get("activations", ())]
    return {**_DEFAULTS, **given}


def _gates(graph: Graph, node: onnx.NodeProto, x: str, weights: list[Any]) -> str:
    """x W^T + both biases for all steps, [steps, batch, directions * 4 * hidden]."""
    w, _, b = weights
    rows, features = w.shape[0] * w.shape[1], w.shape[2]
    shape, dtype = (*(graph.shape(x) or ())[:2], rows), graph.dtype(x)
    matrix = graph.add_constant(node.input[1], w.reshape(rows, features).T.copy())
    gates = graph.add_node("MatMul", [x, matrix], dtype, shape)
    if b is None:
        return gates
    half = b.shape[1] // 2
    bias = b[:, :half] + b[:, half:]
    return graph.add_node("Add", [gates, graph.add_constant(node.input[3], bias.reshape(rows))], dtype, shape)


def _zeros(graph: Graph, node: onnx.NodeProto, x: str, directions: int, hidden: int) -> str:
    """States that are zero, for the batch of x."""
    import numpy as np

    batch, dtype = (graph.shape(x) or ())[1], graph.dtype(x)
    like = node.name or "lstm"
    if isinstance(batch, int):
        return graph.add_constant(f"{like}_zeros", np.zeros((directions, batch, hidden), dtype))
    count = graph.add_node("Shape", [x], "int64", (1,), start=1, end=2)
    ends = [graph.add_constant(f"{like}_{n}", np.array([n], np.int64)) for n in (directions, hidden)]
    shape = graph.add_node("Concat", [ends[0], count, ends[1]], "int64", (3,), axis=0)
    zero = graph.add_constant(f"{like}_zero", np.zeros(1, dtype))
    return graph.add_node("Expand", [zero, shape], dtype, (directions, batch, hidden))


def _sides(graph: Graph, y: str, output: str, sizes: tuple[int | str, ...], dtype: str) -> None:
    """From [steps, batch, directions * hidden] to ONNX's [steps, directions, batch, hidden]."""
    import numpy as np

    steps, batch, directions, hidden = sizes
    if directions == 1:
        axes = graph.add_constant(f"{y}_axes", np.array([1], np.int64))
        graph.add_node("Unsqueeze", [y, axes], dtype, (steps, 1, batch, hidden), output=output)
        return
    shape = graph.add_constant(f"{y}_shape", np.array([0, 0, directions, hidden], np.int64))
    apart = graph.add_node("Reshape", [y, shape], dtype, sizes)
    graph.add_node("Transpose", [apart], dtype, (steps, directions, batch, hidden), output=output, perm=[0, 2, 1, 3])
