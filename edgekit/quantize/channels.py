"""Channels that may be rescaled without changing the function: cross-layer equalisation and SmoothQuant in one.

Dividing channel c of a tensor by s and multiplying the weights that read it by s changes nothing in float, but it
changes what eight bits lose. Tensors tied by ReLU, pooling or residual sums share their factors: such a group can be
rescaled if every producer can take 1/s into its weights and every reader can take s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantize.calibrate import Progress, observe, quiet
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.graph import Graph, attribute
from edgekit.quantize.placement import weight_axis
from edgekit.quantize.qdq import is_depthwise
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

_PRODUCTS = ("Conv", "Gemm", "MatMul")
_RECURRENT = ("LSTM", "GRU")
_SAME = (
    "Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Flatten", "Squeeze",
)  # fmt: skip
"""f(s x) = s f(x) for s > 0, channel by channel."""

LIMIT = 2.0**12
"""Largest factor, either way."""


@dataclass
class Group:
    """Tensors that share their channels' factors. `axis` is where channels lie: 1, or -1 for the last."""

    tensors: set[str] = field(default_factory=set)
    makers: list[Any] = field(default_factory=list)
    offsets: list[tuple[Any, int]] = field(default_factory=list)
    readers: list[Any] = field(default_factory=list)
    axes: set[int] = field(default_factory=set)
    blocked: bool = False

    @property
    def kind(self) -> str:
        """What the group is about: "norm", "recurrent" or "conv"."""
        if any(n.op_type in _RECURRENT for n in self.readers):
            return "recurrent"
        return "norm" if any(n.op_type == "LayerNormalization" for n in self.makers) else "conv"

    @property
    def axis(self) -> int:
        """Where channels lie."""
        return next(iter(self.axes))


def channel_groups(graph: Graph) -> list[Group]:
    """All groups of `graph` that can be rescaled."""
    finder = _Finder(graph)
    return [g for g in finder.groups() if not g.blocked and g.makers and g.readers and len(g.axes) == 1]


class _Finder:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.parent: dict[str, str] = {}
        self.facts: list[tuple[str, str, Any, int]] = []
        for name in (*graph.inputs, *graph.outputs, *graph.captured):
            self.facts.append(("block", name, None, 0))
        for node in graph.nodes:
            self._read(node)

    def find(self, name: str) -> str:
        self.parent.setdefault(name, name)
        while self.parent[name] != name:
            name = self.parent[name]
        return name

    def union(self, *names: str) -> None:
        first = self.find(names[0])
        for name in names[1:]:
            self.parent[self.find(name)] = first

    def note(self, what: str, name: str, node: Any, index: int = 0) -> None:
        self.find(name)
        self.facts.append((what, name, node, index))

    def _read(self, node: Any) -> None:
        graph, kind = self.graph, node.op_type
        constant = [i in graph.constants for i in node.input]
        if kind in _PRODUCTS and graph.is_float(node.input[1]) and graph.constants[node.input[1]].ndim >= 2:
            self.note("reader", node.input[0], node)
            self.note("maker", node.output[0], node)
        elif kind == "LayerNormalization" and all(constant[1:]) and attribute(node, "axis", -1) in (-1,):
            self.note("block", node.input[0], node)
            self.note("maker", node.output[0], node)
        elif kind in _RECURRENT and constant[1] and graph.is_float(node.input[1]):
            self.note("reader", node.input[0], node)
            for name in (*node.input[3:], *node.output):
                if name and name not in graph.constants:
                    self.note("block", name, node)
        elif kind == "Transpose" and list(attribute(node, "perm", []))[-1:] == [len(attribute(node, "perm", [])) - 1]:
            self.union(node.input[0], node.output[0])
            self.note("last", node.input[0], node)
        elif kind in _SAME or (kind == "ReduceMean" and self._spatial(node)):
            self.union(node.input[0], node.output[0])
        elif kind == "Add" and sum(constant) == 0:
            self.union(*node.input, node.output[0])
        elif kind == "Add" and sum(constant) == 1 and graph.is_float(node.input[constant.index(True)]):
            self.union(node.input[constant.index(False)], node.output[0])
            self.note("offset", node.output[0], node, constant.index(True))
        elif kind == "Mul" and sum(constant) == 1:
            self.union(node.input[constant.index(False)], node.output[0])
        else:
            for name in (*node.input, *node.output):
                if name and name not in graph.constants:
                    self.note("block", name, node)

    def _spatial(self, node: Any) -> bool:
        axes = attribute(node, "axes") if len(node.input) < 2 else self.graph.constants.get(node.input[1])
        return axes is not None and all(int(a) >= 2 for a in axes)

    def groups(self) -> list[Group]:
        found: dict[str, Group] = {}
        for name in list(self.parent):
            found.setdefault(self.find(name), Group()).tensors.add(name)
        for what, name, node, index in self.facts:
            group = found.setdefault(self.find(name), Group())
            group.blocked |= what == "block"
            if what == "maker":
                group.makers.append(node)
            elif what == "reader":
                group.readers.append(node)
            elif what == "offset":
                group.offsets.append((node, index))
            if what in ("maker", "reader", "last"):
                group.axes.add(1 if node.op_type in ("Conv", "Gemm") else -1)
        return list(found.values())


@dataclass
class ChannelPeaks:
    """Largest magnitude of each channel of each tensor; `axes` says where its channels lie."""

    axes: Mapping[str, int]
    peaks: dict[str, Array] = field(default_factory=dict)

    def __call__(self, name: str, values: Array) -> None:
        """Take one batch of `name`."""
        axis = self.axes[name] % values.ndim
        peak = np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != axis))
        self.peaks[name] = np.maximum(self.peaks[name], peak) if name in self.peaks else peak


def channel_peaks(
    model: onnx.ModelProto, groups: Sequence[Group], data: CalibrationData, *, progress: Progress = quiet
) -> dict[str, Array]:
    """Per-channel magnitudes of what the readers of `groups` read, and what the makers make."""
    axes = {n.input[0]: g.axis for g in groups for n in g.readers}
    collector = ChannelPeaks(axes)
    observe(model, list(axes), data, collector, progress=progress, what="channels")
    return collector.peaks


def equalized(
    model: onnx.ModelProto, peaks: Mapping[str, Array], *, strength: float, only: str | None = None
) -> onnx.ModelProto:
    """`model` with every group rescaled by `strength` (1: activations level, 0: weights level).

    Where all readers are depthwise convolutions, weights lose nothing, so activations are made level. `only` takes
    "norm" (groups made by a LayerNorm), "recurrent" (groups that an LSTM or GRU reads) or "conv" (all others).
    """
    graph = Graph(model)
    for group in channel_groups(graph):
        if only is not None and group.kind != only:
            continue
        factor = _factor(graph, group, peaks, strength)
        if factor is not None:
            _rescale(graph, group, factor)
    return graph.model()


def _factor(graph: Graph, group: Group, peaks: Mapping[str, Array], strength: float) -> Array | None:
    widths = {_width(graph, n) for n in group.makers}
    if len(widths) != 1:
        return None
    width = widths.pop()
    active, columns = np.zeros(width), np.zeros(width)
    for node in group.readers:
        seen = peaks.get(node.input[0])
        if seen is None or seen.size % width:
            return None
        active = np.maximum(active, seen.reshape(width, -1).max(axis=1))
        weight = graph.constants[node.input[1]]
        if not is_depthwise(node, weight):
            reads = _column_peaks(node, weight)
            if reads.size % width:
                return None
            columns = np.maximum(columns, reads.reshape(width, -1).max(axis=1))
        elif weight.shape[0] != width:
            return None
    level = 1.0 if not columns.any() else strength
    live = (active > 0) & ((columns > 0) | (level == 1.0))
    if not live.any():
        return None
    factor = np.ones(width)
    factor[live] = active[live] ** level / (columns[live] ** (1 - level) if level < 1 else 1.0)
    factor[live] /= np.exp(np.log(factor[live]).mean())
    factor[~live] = 1.0
    return np.asarray(np.clip(factor, 1 / LIMIT, LIMIT))


def _width(graph: Graph, node: Any) -> int:
    if node.op_type == "LayerNormalization":
        return int(graph.constants[node.input[1]].size)
    return int(graph.constants[node.input[1]].shape[weight_axis(node)])


def _column_peaks(node: Any, weight: Array) -> Array:
    """Largest weight that reads each input channel."""
    if node.op_type == "Conv":
        group = attribute(node, "group", 1)
        parts = np.abs(weight).reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        return np.asarray(parts.max(axis=(1, 3)).reshape(-1))
    if node.op_type in _RECURRENT:
        return np.asarray(np.abs(weight).max(axis=(0, 1)))
    return np.asarray(np.abs(weight).max(axis=weight_axis(node)))


def _rescale(graph: Graph, group: Group, factor: Array) -> None:
    for node in group.makers:
        divide_output(graph, node, factor)
    for node, index in group.offsets:
        value = graph.constants[node.input[index]]
        shape = [-1] + [1] * (value.ndim - 2) if group.axis == 1 and value.ndim > 1 else [-1]
        scaled = value / factor.reshape(shape)
        node.input[index] = graph.constant(f"{node.input[index]}_equal", scaled.astype(np.float32))
    for node in group.readers:
        _multiply_input(graph, node, factor)


def divide_output(graph: Graph, node: Any, factor: Array) -> None:
    """Divide the output channels of a product or a LayerNormalization by `factor`, in its weights and bias."""
    norm = node.op_type == "LayerNormalization"
    for i in (1, 2):
        if i >= len(node.input) or not node.input[i]:
            continue
        value = graph.constants[node.input[i]].astype(np.float64)
        if i == 1 and not norm:
            shape = [1] * value.ndim
            shape[weight_axis(node)] = -1
            value = value / factor.reshape(shape)
        else:
            value = value / factor
        node.input[i] = graph.constant(f"{node.input[i]}_equal", value.astype(np.float32))


def _multiply_input(graph: Graph, node: Any, factor: Array) -> None:
    weight = graph.constants[node.input[1]].astype(np.float64)
    if node.op_type == "Conv":
        group = attribute(node, "group", 1)
        parts = weight.reshape(group, weight.shape[0] // group, weight.shape[1], -1)
        scaled = (parts * factor.reshape(group, 1, -1, 1)).reshape(weight.shape)
    elif node.op_type in _RECURRENT:
        scaled = weight * factor
    else:
        axis = 1 - weight_axis(node)
        spread = np.repeat(factor, weight.shape[axis] // factor.size)
        scaled = weight * (spread[:, None] if axis == 0 else spread[None])
    node.input[1] = graph.constant(f"{node.input[1]}_equal", scaled.astype(np.float32))
