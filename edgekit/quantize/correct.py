"""Bias correction: rounding a weight shifts the mean of what it produces; the bias takes the shift back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantize.graph import Graph, attribute
from edgekit.quantize.placement import candidates, channels, weight_axis
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx


@dataclass
class ChannelMeans:
    """Mean of each channel of each tensor; `axes` says where its channels lie."""

    axes: Mapping[str, int]
    sums: dict[str, Array] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __call__(self, name: str, values: Array) -> None:
        """Take one batch of `name`."""
        axis = self.axes[name] % values.ndim
        others = tuple(i for i in range(values.ndim) if i != axis)
        total = values.sum(axis=others, dtype=np.float64)
        self.sums[name] = self.sums.get(name, 0.0) + total
        self.counts[name] = self.counts.get(name, 0) + values.size // values.shape[axis]

    @property
    def means(self) -> dict[str, Array]:
        """Tensor -> mean of each channel."""
        return {name: np.asarray(self.sums[name] / self.counts[name]) for name in self.sums}


def product_inputs(graph: Graph) -> dict[str, int]:
    """What the products of `graph` with constant weights read, and where its channels lie."""
    wanted = set(candidates(graph))
    nodes = [n for n in graph.nodes if n.name in wanted and graph.is_float(n.input[1])]
    return {n.input[0]: 1 if n.op_type == "Conv" else -1 for n in nodes}


def bias_corrected(model: onnx.ModelProto, means: Mapping[str, Array], rounded: Mapping[str, Array]) -> onnx.ModelProto:
    """`model` with biases that undo the mean error of `rounded`: node name -> dequantised weights.

    Products without a bias get one (a MatMul, the constant of the Add after it, where there is one).
    """
    graph = Graph(model)
    for node in list(graph.nodes):
        if node.name not in rounded or node.input[0] not in means:
            continue
        weight = graph.constants[node.input[1]].astype(np.float64)
        shift = _shift(node, weight - rounded[node.name], means[node.input[0]])
        if node.op_type == "MatMul":
            _add_after(graph, node, shift)
        elif len(node.input) > 2 and node.input[2]:
            bias = graph.constants[node.input[2]]
            node.input[2] = graph.constant(f"{node.input[2]}_corrected", (bias + shift.reshape(-1)).astype(np.float32))
        else:
            del node.input[2:]
            width = channels(graph, node)
            node.input.append(graph.constant(f"{node.name}_corrected", shift.reshape(width).astype(np.float32)))
    return graph.model()


def _shift(node: Any, error: Array, mean: Array) -> Array:
    """What `error` of the weights, met by inputs of this mean, takes from each output channel."""
    if node.op_type == "Conv":
        group = attribute(node, "group", 1)
        parts = error.reshape(group, error.shape[0] // group, error.shape[1], -1).sum(axis=3)
        return np.asarray((parts * mean.reshape(group, 1, -1)).sum(axis=2).reshape(-1))
    return np.asarray(mean @ error if weight_axis(node) == 1 else error @ mean)


def _add_after(graph: Graph, node: Any, shift: Array) -> None:
    after = graph.only_use(node.output[0])
    if after is None or after.op_type != "Add":
        return
    index = 1 if after.input[0] == node.output[0] else 0
    name = after.input[index]
    if graph.is_float(name) and graph.constants[name].size == shift.size:
        value = graph.constants[name]
        after.input[index] = graph.constant(
            f"{name}_corrected", (value + shift.reshape(value.shape)).astype(np.float32)
        )
