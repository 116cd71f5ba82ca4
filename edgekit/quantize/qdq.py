"""The `int8` form: Q/DQ pairs as ONNX Runtime's CPU provider fuses them.

Activations U8 with a zero point, weights S8 a channel, bias INT32, a DQ on every input and a Q on the output.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.quantize.graph import Graph, attribute
from edgekit.quantize.placement import Placement, place, weight_axis
from edgekit.quantize.ranges import Range
from edgekit.quantize.weights import QuantWeight, channel_scales, quantized, quantized_bias, scales_for_bias
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

MINIMUM_STEP = 1e-9
"""Smallest scale of an activation: a tensor that is always zero still needs one."""


_ROUNDED_BY_ORT = ("Conv", "ConvTranspose", "Gemm")


def affine_u8(span: Range) -> tuple[Array, Array]:
    """Scale (float32) and zero point (uint8) that map [low, high] to 0..255 with zero exact."""
    low, high = min(0.0, span.low), max(0.0, span.high)
    scale = np.float32(max((high - low) / 255, MINIMUM_STEP))
    zero = np.clip(np.rint(-low / float(scale)), 0, 255)
    return np.asarray(scale), np.asarray(zero, np.uint8)


def cpu_int8(
    model: onnx.ModelProto,
    ranges: Mapping[str, Range],
    *,
    floats: Collection[str] = (),
    weights: Mapping[str, QuantWeight] | None = None,
) -> onnx.ModelProto:
    """`model` (prepared) with Q/DQ pairs.

    Attributes are data: `ranges` for every tensor that may be quantised, `floats` products to leave, `weights` by node
    name where they were rounded better than to the nearest step.
    """
    graph = Graph(model)
    known = set(ranges)
    blocked = {n.name for n in graph.nodes if n.name not in floats and _lacks_range(graph, n, known)}
    placement = place(graph, floats={*floats, *blocked})
    _Writer(graph, placement, ranges, weights or {}).write()
    return graph.model()


def _lacks_range(graph: Graph, node: Any, known: set[str]) -> bool:
    inputs = [i for i in node.input[:2] if i not in graph.constants]
    return node.op_type in ("Conv", "Gemm", "MatMul") and any(i and i not in known for i in inputs)


class _Writer:
    def __init__(
        self, graph: Graph, placement: Placement, ranges: Mapping[str, Range], weights: Mapping[str, QuantWeight]
    ) -> None:
        self.graph = graph
        self.placement = placement
        self.ranges = ranges
        self.weights = weights
        self.scales: dict[str, tuple[str, str, float]] = {}
        self.nodes = list(graph.nodes)
        self.input_scale: dict[str, float] = {}
        self._made: dict[str, Any] = {}

    def write(self) -> None:
        graph, placement = self.graph, self.placement
        copies: dict[str, str] = {}
        for node in self.nodes:
            for i, name in enumerate(node.input):
                if name in placement.spread or (node.name, i) in placement.private:
                    if i == 0 and node.name in placement.nodes:
                        self.input_scale[node.name] = self._params(name)[2]
                    if name not in copies:
                        copies[name] = self._pair(name)
                    node.input[i] = self._shielded(node, copies[name]) if i == 0 else copies[name]
        for name in list(graph.outputs):
            if name in placement.spread:
                self._quantize_output(name, copies)
        for node in self.nodes:
            if node.name in placement.nodes and node.input[1] in graph.constants:
                self._quantize_weight(node)
            elif node.op_type in ("Add", "Mul", "Concat"):
                self._quantize_operands(node)
        graph.refresh()

    def _params(self, tensor: str) -> tuple[str, str, float]:
        root = self.placement.root(tensor)
        if root not in self.scales:
            scale, zero = affine_u8(self.ranges[root])
            names = (self.graph.constant(f"{root}_scale", scale), self.graph.constant(f"{root}_zero_point", zero))
            self.scales[root] = (*names, float(scale))
        return self.scales[root]

    def _pair(self, tensor: str) -> str:
        scale, zero, _ = self._params(tensor)
        integers, floats = self.graph.fresh(f"{tensor}_quantized"), self.graph.fresh(f"{tensor}_dequantized")
        self.graph.node("QuantizeLinear", [tensor, scale, zero], [integers])
        self._made[floats] = self.graph.node("DequantizeLinear", [integers, scale, zero], [floats])
        return floats

    def _shielded(self, node: Any, copy: str) -> str:
        """`copy`, or for a product that stays float the same values from a DQ with one scale a channel.

        ONNX Runtime (WeightBiasQuantization) would round float weights between a DQ of one scale and a Q to eight bits
        with one scale for the whole tensor, and undo what the product was left in float for.
        """
        graph = self.graph
        if node.op_type not in _ROUNDED_BY_ORT or node.name in self.placement.nodes:
            return copy
        if node.input[1] not in graph.constants or attribute(node, "transA", 0):
            return copy
        weight = graph.constants[node.input[1]]
        inputs = {
            "Conv": weight.shape[1] * attribute(node, "group", 1),
            "ConvTranspose": weight.shape[0],
            "Gemm": weight.shape[1 if attribute(node, "transB", 0) else 0],
        }
        width, pair = int(inputs[node.op_type]), self._made[copy]
        scale = graph.constant(f"{copy}_scales", np.full(width, graph.constants[pair.input[1]], np.float32))
        zero = graph.constant(f"{copy}_zero_points", np.full(width, graph.constants[pair.input[2]], np.uint8))
        out = graph.fresh(f"{copy}_channels")
        graph.node("DequantizeLinear", [pair.input[0], scale, zero], [out], axis=1)
        return out

    def _quantize_output(self, name: str, copies: Mapping[str, str]) -> None:
        """The graph's output keeps its name, now behind a Q/DQ pair."""
        graph = self.graph
        inner = graph.fresh(f"{name}_float")
        for node in self.nodes:
            for i, out in enumerate(node.output):
                if out == name:
                    node.output[i] = inner
        scale, zero, _ = self._params(name)
        if name in copies:
            for node in graph.nodes:
                if node.op_type == "QuantizeLinear" and node.input[0] == name:
                    node.input[0] = inner
                    graph.node("DequantizeLinear", [node.output[0], scale, zero], [name])
            return
        integers = graph.fresh(f"{name}_quantized")
        graph.node("QuantizeLinear", [inner, scale, zero], [integers])
        graph.node("DequantizeLinear", [integers, scale, zero], [name])

    def _quantize_weight(self, node: Any) -> None:
        graph = self.graph
        name, axis = node.input[1], weight_axis(node)
        bias = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
        weight = self.weights.get(node.name) or self._rounded(node, graph.constants[name], axis, bias)
        scale = graph.constant(f"{name}_scale", weight.scale)
        zero = graph.constant(f"{name}_zero_point", np.zeros(weight.scale.shape, np.int8))
        values = graph.constant(f"{name}_int8", weight.values)
        out = graph.fresh(f"{name}_dequantized")
        graph.node("DequantizeLinear", [values, scale, zero], [out], axis=axis)
        node.input[1] = out
        if bias is not None:
            self._quantize_bias(node, bias.reshape(-1), weight.scale)

    def _rounded(self, node: Any, weight: Array, axis: int, bias: Array | None) -> QuantWeight:
        scale = channel_scales(weight, axis, pair_safe=not is_depthwise(node, weight))
        if bias is not None:
            scale = scales_for_bias(scale, bias.reshape(-1), self.input_scale[node.name])
        return quantized(weight, scale, axis)

    def _quantize_bias(self, node: Any, bias: Array, weight_scale: Array) -> None:
        graph, name = self.graph, node.input[2]
        steps = (np.float32(self.input_scale[node.name]) * weight_scale).astype(np.float32)
        scale = graph.constant(f"{name}_scale", steps)
        zero = graph.constant(f"{name}_zero_point", np.zeros(steps.shape, np.int32))
        values = graph.constant(f"{name}_int32", quantized_bias(bias, steps))
        out = graph.fresh(f"{name}_dequantized")
        graph.node("DequantizeLinear", [values, scale, zero], [out], axis=0)
        node.input[2] = out

    def _quantize_operands(self, node: Any) -> None:
        """Constants that meet an eight-bit tensor become eight bits too, or the node would run in float."""
        graph = self.graph
        after = graph.only_use(node.output[0])
        fused = after.output[0] if after is not None and after.op_type in ("Relu", "Clip") else ""
        if not self.placement.spread & {node.output[0], fused}:
            return
        for i, name in enumerate(node.input):
            if name in graph.constants:
                value = graph.constants[name]
                scale, zero = affine_u8(Range(float(value.min()), float(value.max())))
                steps = np.clip(np.rint(value / scale) + zero, 0, 255).astype(np.uint8)
                names = [graph.constant(f"{name}_{k}", v) for k, v in (("u8", steps), ("s", scale), ("z", zero))]
                out = graph.fresh(f"{name}_dequantized")
                graph.node("DequantizeLinear", names, [out])
                node.input[i] = out


def is_depthwise(node: Any, weight: Array) -> bool:
    """Whether ONNX Runtime multiplies this convolution channel by channel, with no 16-bit sums of two products."""
    group = attribute(node, "group", 1) if node.op_type == "Conv" else 1
    return bool(group > 1 and weight.shape[0] == group and weight.shape[1] == 1)
