"""Which tensors of a graph become eight bits in the form that ONNX Runtime's CPU provider runs fastest.

A convolution wants its input, weight, bias *and* output quantised; a matrix product takes eight bits in and may hand
floats out, which keeps residual streams and normalisations exact. Between quantised nodes, operators that only move
or average values pass eight bits on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgekit.quantize.graph import Graph, attribute

COMPUTE = ("Conv", "Gemm", "MatMul")
"""Operators with integer kernels in ONNX Runtime's CPU provider."""

MOVES = (
    "MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Split", "DepthToSpace",
    "SpaceToDepth", "Expand", "Tile",
)  # fmt: skip
"""Operators whose outputs have values of their first input only: one scale over both."""

MATHS = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid")
"""Operators with kernels from eight bits to eight bits of another scale."""

FUSED = ("Relu", "Clip")
"""Activations that become the limits of the range of the node before."""


@dataclass
class Placement:
    """Where Q/DQ pairs go.

    Attributes:
        nodes: names of the Conv, Gemm and MatMul nodes that run in eight bits.
        spread: tensors that exist in eight bits: every reader sees the rounded values.
        private: `(node name, input index)` that read a rounded copy of a tensor that stays float for others.
        same_range: output of a move -> tensor whose range it shares.
    """

    nodes: set[str] = field(default_factory=set)
    spread: set[str] = field(default_factory=set)
    private: set[tuple[str, int]] = field(default_factory=set)
    same_range: dict[str, str] = field(default_factory=dict)

    def root(self, tensor: str) -> str:
        """The tensor whose range `tensor` uses."""
        while tensor in self.same_range:
            tensor = self.same_range[tensor]
        return tensor


def result_of(graph: Graph, node: Any) -> str:
    """The tensor that `node` and a fused activation after it produce."""
    out = str(node.output[0])
    after = graph.only_use(out)
    if after is not None and after.op_type in FUSED and _fusable(graph, after):
        return str(after.output[0])
    return out


def _fusable(graph: Graph, node: Any) -> bool:
    limits = [i for i in node.input[1:] if i]
    if node.op_type == "Relu" or not limits:
        return True
    return (
        all(i in graph.constants for i in limits) and bool(node.input[1]) and float(graph.constants[node.input[1]]) <= 0
    )


def quantizable(graph: Graph, node: Any) -> bool:
    """Whether `node` is a product that can run in eight bits."""
    if node.op_type not in COMPUTE or node.input[0] in graph.constants:
        return False
    if node.op_type == "MatMul":
        return node.input[1] not in graph.constants or (
            graph.is_float(node.input[1]) and graph.constants[node.input[1]].ndim == 2
        )
    if not graph.is_float(node.input[1]):
        return False
    if len(node.input) > 2 and node.input[2]:
        if not graph.is_float(node.input[2]):
            return False
        if node.op_type == "Gemm" and graph.constants[node.input[2]].size != channels(graph, node):
            return False
    plain = not attribute(node, "transA", 0) and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    return node.op_type == "Conv" or plain


def weight_axis(node: Any) -> int:
    """The axis of output channels in the constant weight of a Conv, ConvTranspose, Gemm or MatMul."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return 1


def channels(graph: Graph, node: Any) -> int:
    """Number of output channels of a product with constant weight."""
    return int(graph.constants[node.input[1]].shape[weight_axis(node)])


def candidates(graph: Graph) -> list[str]:
    """Names of all products that can run in eight bits, in the graph's order."""
    return [n.name for n in graph.nodes if quantizable(graph, n)]


def place(graph: Graph, *, floats: Collection[str] = ()) -> Placement:
    """The placement for `graph` with the products named in `floats` left as they are."""
    chosen = {n.name for n in graph.nodes if quantizable(graph, n) and n.name not in floats}
    wanted = _wanted(graph, chosen)
    out = Placement(nodes=chosen)
    for node in graph.nodes:
        if node.name in chosen:
            _place_product(graph, node, wanted, out)
        elif node.op_type in (*MOVES, *MATHS):
            _place_between(graph, node, wanted, out)
    for node in graph.nodes:
        if node.name in chosen:
            sources = node.input[:1] if node.input[1] in graph.constants else node.input[:2]
            out.private.update((node.name, i) for i, name in enumerate(sources) if name not in out.spread)
    return out


def _wanted(graph: Graph, chosen: set[str]) -> set[str]:
    """Tensors that some product reads in eight bits, directly or through operators that pass them on."""
    wanted: set[str] = set()
    for node in reversed(graph.nodes):
        if node.name in chosen or (node.op_type in (*MOVES, *MATHS, *FUSED) and wanted & set(node.output)):
            last = 1 if node.op_type in MOVES or (node.name in chosen and node.input[1] in graph.constants) else None
            wanted.update(i for i in node.input[:last] if i and i not in graph.constants)
    return wanted


def _free(graph: Graph, tensor: str) -> bool:
    return tensor not in graph.captured


def _place_product(graph: Graph, node: Any, wanted: set[str], out: Placement) -> None:
    result = result_of(graph, node)
    if not _free(graph, result):
        return
    uses = graph.consumers.get(result, [])
    passed_on = bool(uses) and result not in graph.outputs and all(_takes_eight_bits(n, out, wanted) for n, _ in uses)
    if node.op_type == "Conv" or (node.op_type == "Gemm" and passed_on):
        out.spread.add(result)


def _takes_eight_bits(node: Any, out: Placement, wanted: set[str]) -> bool:
    return node.name in out.nodes or (node.op_type in (*MOVES, *MATHS) and bool(wanted & set(node.output)))


def _place_between(graph: Graph, node: Any, wanted: set[str], out: Placement) -> None:
    result = result_of(graph, node) if node.op_type == "Add" else str(node.output[0])
    useful = wanted & {result, *node.output}
    if not useful or any(o in graph.outputs or not _free(graph, o) for o in (*node.output, result)):
        return
    if node.op_type in MOVES:
        if node.input[0] in out.spread and not (node.op_type == "MaxPool" and len(node.output) > 1):
            for name in node.output:
                out.spread.add(name)
                out.same_range[name] = node.input[0]
        return
    if all(i in out.spread or _small_constant(graph, i) for i in node.input) and node.input[0] in out.spread:
        out.spread.add(result)


def _small_constant(graph: Graph, name: str) -> bool:
    return graph.is_float(name) and bool(np.isfinite(graph.constants[name]).all())
