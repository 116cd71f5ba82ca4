"""Rounding that compensates: each weight's rounding error is put on the weights not yet rounded.

The second-order method of optimal brain compression (GPTQ): with H = X'X over calibration inputs X, the error that
column i makes is best undone by the columns after it along the inverse of H. It answers the same question as learned
rounding (which way to round each weight), in closed form, and needs numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantize.calibrate import Progress, observe, quiet
from edgekit.quantize.correct import ChannelMeans, product_inputs
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.graph import Graph, attribute
from edgekit.quantize.placement import candidates, weight_axis
from edgekit.quantize.qdq import affine_u8, is_depthwise
from edgekit.quantize.ranges import Range
from edgekit.quantize.weights import LEVELS, QuantWeight, channel_scales, pair_repaired, trt_scales
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

DEEPEST = 2400
"""Largest depth of a product that is rounded this way: time grows with its cube."""

_POSITIONS = 512
"""Rows of a product's input taken from each batch."""

_DAMPING = 0.01


def roundable(graph: Graph) -> list[Any]:
    """Products with constant weights whose rounding can be compensated."""
    wanted = set(candidates(graph))
    out = []
    for node in graph.nodes:
        if node.name not in wanted or not graph.is_float(node.input[1]):
            continue
        weight = graph.constants[node.input[1]]
        flat = node.op_type != "Conv" or weight.ndim in (3, 4)
        if flat and rows_of(node, weight).shape[1] <= DEEPEST:
            out.append(node)
    return out


def groups_of(node: Any) -> int:
    """Number of groups of a convolution; 1 for other products."""
    return int(attribute(node, "group", 1)) if node.op_type == "Conv" else 1


def rows_of(node: Any, weight: Array) -> Array:
    """The weight as (output channels, depth), depth in the order of `_Products._inputs`."""
    moved = np.moveaxis(weight, weight_axis(node), 0)
    return moved.reshape(len(moved), -1)


@dataclass
class _Products:
    """Accumulates X'X of each product's quantised input: (groups, depth, depth) by node name."""

    nodes: Mapping[str, list[Any]]
    kernels: Mapping[str, tuple[int, ...]]
    ranges: Mapping[str, Range]
    sums: dict[str, Array] = field(default_factory=dict)

    def __call__(self, name: str, values: Array) -> None:
        scale, zero = affine_u8(self.ranges[name])
        for node in self.nodes[name]:
            rows = self._inputs(node, values)
            steps = np.clip(np.rint(rows / scale) + float(zero), 0, 255) - float(zero)
            rows = (steps * scale).astype(np.float32)
            groups = groups_of(node)
            parts = rows.reshape(len(rows), groups, -1).transpose(1, 2, 0)
            gram = parts @ parts.transpose(0, 2, 1)
            self.sums[node.name] = self.sums[node.name] + gram if node.name in self.sums else gram.astype(np.float64)

    def _inputs(self, node: Any, values: Array) -> Array:
        if node.op_type != "Conv":
            rows = values.reshape(-1, values.shape[-1])
        else:
            rows = unfolded(values, self.kernels[node.name], node)
        step = max(1, len(rows) // _POSITIONS)
        return rows[::step]


def unfolded(values: Array, kernel: tuple[int, ...], node: Any) -> Array:
    """Windows that a 1-D or 2-D convolution sees: (positions, channels x kernel)."""
    if values.ndim == 3:
        values, kernel = values[:, :, None], (1, *kernel)
    pads = _flat(attribute(node, "pads", [0, 0, 0, 0]), [0, 0])
    if attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        total = [k - 1 for k in kernel]
        pads = [total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2]
    strides = _flat(attribute(node, "strides", [1, 1]), [1])
    dilations = _flat(attribute(node, "dilations", [1, 1]), [1])
    padded = np.pad(values, ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    n, c, h, w = windows.shape[:4]
    step = max(1, n * h * w // (4 * _POSITIONS))
    flat = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, c, *kernel) if step == 1 else None
    if flat is None:
        rows, columns = np.divmod(np.arange(0, n * h * w, step), h * w)
        flat = windows[rows, :, columns // w, columns % w]
    return flat.reshape(len(flat), -1)


def _flat(values: list[int], height: list[int]) -> list[int]:
    """Pads, strides or dilations of a 1-D convolution as those of a 2-D one of height 1."""
    if len(values) == 1:
        return [*height, *values]
    return [height[0], values[0], height[1], values[1]] if len(height) == 2 and len(values) == 2 else list(values)


@dataclass(frozen=True)
class Rounded:
    """Weights by node name for each form, and the mean of each channel of the products' inputs."""

    cpu: dict[str, QuantWeight]
    trt: dict[str, QuantWeight]
    means: dict[str, Array]


def compensated_weights(
    model: onnx.ModelProto, data: CalibrationData, ranges: Mapping[str, Range], *, progress: Progress = quiet
) -> Rounded:
    """Weights rounded so that errors cancel on `data`; `ranges` are those of the products' inputs."""
    graph = Graph(model)
    chosen = [n for n in roundable(graph) if n.input[0] in ranges]
    by_input: dict[str, list[Any]] = {}
    for node in chosen:
        by_input.setdefault(node.input[0], []).append(node)
    kernels = {n.name: tuple(graph.constants[n.input[1]].shape[2:]) for n in chosen}
    products = _Products(by_input, kernels, ranges)
    means = ChannelMeans(product_inputs(graph))

    def both(name: str, values: Array) -> None:
        means(name, values)
        if name in by_input:
            products(name, values)

    observe(model, list(means.axes), data, both, progress=progress, what="rounding")
    out = Rounded({}, {}, means.means)
    for node in chosen:
        weight, axis = graph.constants[node.input[1]], weight_axis(node)
        factors = _factors(products.sums.pop(node.name))
        is_paired = not is_depthwise(node, weight)
        out.trt[node.name] = _rounded(node, weight, factors, trt_scales(weight, axis))
        if not is_paired:
            out.cpu[node.name] = out.trt[node.name]
            continue
        found = _rounded(node, weight, factors, channel_scales(weight, axis, pair_safe=True))
        out.cpu[node.name] = QuantWeight(pair_repaired(found.values, axis), found.scale, axis)
    return out


def _rounded(node: Any, weight: Array, factors: tuple[Array, Array], scale: Array) -> QuantWeight:
    axis, groups = weight_axis(node), groups_of(node)
    rows = rows_of(node, weight).astype(np.float64)
    parts = rows.reshape(groups, len(rows) // groups, -1)
    steps = _compensated(parts, scale.astype(np.float64).reshape(groups, -1), *factors).reshape(rows.shape)
    shape = np.moveaxis(weight, axis, 0).shape
    return QuantWeight(np.moveaxis(steps.reshape(shape), 0, axis).astype(np.int8), scale, axis)


def _factors(gram: Array) -> tuple[Array, Array]:
    """The order in which columns are rounded (groups, depth), and the Cholesky factor of the inverse, in that order."""
    depth = gram.shape[-1]
    diagonal = np.diagonal(gram, axis1=1, axis2=2)
    damp = _DAMPING * diagonal.mean(axis=1)
    damp[damp <= 0] = 1.0
    order = np.argsort(-diagonal, axis=1, kind="stable")
    turned = np.take_along_axis(np.take_along_axis(gram, order[:, :, None], 1), order[:, None, :], 2)
    turned = turned + damp[:, None, None] * np.eye(depth)
    return order, np.linalg.cholesky(np.linalg.inv(turned)).transpose(0, 2, 1)


def _compensated(rows: Array, scale: Array, order: Array, upper: Array) -> Array:
    """Steps of `rows` (groups, channels, depth) at `scale` (groups, channels)."""
    depth = rows.shape[2]
    left, steps = np.take_along_axis(rows, order[:, None, :], 2), np.zeros(rows.shape)
    block = 64
    for start in range(0, depth, block):
        stop = min(depth, start + block)
        errors = np.zeros((*rows.shape[:2], stop - start))
        for i in range(start, stop):
            steps[:, :, i] = np.clip(np.rint(left[:, :, i] / scale), -LEVELS, LEVELS)
            error = (left[:, :, i] - steps[:, :, i] * scale) / upper[:, i, i, None]
            left[:, :, i + 1 : stop] -= error[:, :, None] * upper[:, None, i, i + 1 : stop]
            errors[:, :, i - start] = error
        left[:, :, stop:] -= errors @ upper[:, start:stop, stop:]
    out = np.zeros(rows.shape)
    np.put_along_axis(out, np.broadcast_to(order[:, None, :], rows.shape), steps, 2)
    return out
