"""A way to quantise a model, as data: from one scheme come both forms, for ONNX Runtime and for TensorRT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from edgekit.quantize.correct import bias_corrected
from edgekit.quantize.fp16 import half_model
from edgekit.quantize.graph import Graph, attribute
from edgekit.quantize.half_pairs import with_half_pairs
from edgekit.quantize.placement import candidates, weight_axis
from edgekit.quantize.qdq import cpu_int8, is_depthwise
from edgekit.quantize.ranges import Histogram, Method, Range, range_of
from edgekit.quantize.trt import trt_int8
from edgekit.quantize.weights import QuantWeight, channel_scales, quantized, trt_scales
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx


def leaky_slopes(model: onnx.ModelProto) -> dict[str, float]:
    """Tensors that only a LeakyRelu reads, and its slope for negative values."""
    readers: dict[str, list[Any]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {o.name for o in model.graph.output}
    return {
        name: abs(float(attribute(nodes[0], "alpha", 0.01)))
        for name, nodes in readers.items()
        if len(nodes) == 1 and nodes[0].op_type == "LeakyRelu" and name not in outputs
    }


@dataclass(frozen=True)
class Scheme:
    """One set of ranges and decisions.

    Attributes:
        model: the float graph, prepared and perhaps rescaled.
        seen: distribution of each of its tensors that may be quantised.
        method: how ranges are taken from them.
        methods: tensors whose ranges are taken in another way.
        floats: names of products left in float.
        weights: weights by node name that were rounded better than to the nearest step, for the CPU's form.
        trt_weights: the same for TensorRT's form, whose steps are finer.
        means: mean of each channel of the products' inputs, where biases are to be corrected.
        steps: what was done to get here.
    """

    model: onnx.ModelProto
    seen: Mapping[str, Histogram]
    method: Method
    methods: Mapping[str, Method] = field(default_factory=dict)
    floats: frozenset[str] = frozenset()
    weights: Mapping[str, QuantWeight] = field(default_factory=dict)
    trt_weights: Mapping[str, QuantWeight] = field(default_factory=dict)
    means: Mapping[str, Array] | None = None
    steps: tuple[str, ...] = ()

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """Asymmetric ranges by tensor."""
        slopes = leaky_slopes(self.model)
        return {
            name: range_of(h, self.methods.get(name, self.method), slope=slopes.get(name, 1.0))
            for name, h in self.seen.items()
        }

    @cached_property
    def symmetric_ranges(self) -> dict[str, Range]:
        """Symmetric ranges by tensor."""
        return {name: range_of(h, self.methods.get(name, self.method), symmetric=True) for name, h in self.seen.items()}

    def for_cpu(self) -> onnx.ModelProto:
        """The form that ONNX Runtime's CPU provider runs fastest."""
        model = self._corrected(pair_safe=True)
        return cpu_int8(model, self.ranges, floats=self.floats, weights=self.weights)

    def for_trt(self, *, half: bool = True) -> onnx.ModelProto:
        """TensorRT's form: symmetric, its placement, the float remainder in FP16 (in float32 without `half`)."""
        model = self._corrected(pair_safe=False)
        made = trt_int8(model, self.symmetric_ranges, floats=self.floats, weights=self.trt_weights)
        return with_half_pairs(half_model(made)) if half else made

    def _corrected(self, *, pair_safe: bool) -> onnx.ModelProto:
        if self.means is None:
            return self.model
        graph = Graph(self.model)
        wanted = set(candidates(graph)) - self.floats
        rounded: dict[str, Array] = {}
        for node in graph.nodes:
            if node.name in wanted and graph.is_float(node.input[1]):
                rounded[node.name] = self._rounded(graph.constants[node.input[1]], node, pair_safe)
        return bias_corrected(self.model, self.means, rounded)

    def _rounded(self, weight: Array, node: object, pair_safe: bool) -> Array:
        known = (self.weights if pair_safe else self.trt_weights).get(node.name)  # type: ignore[attr-defined]
        if known is not None:
            return known.dequantized()
        axis = weight_axis(node)
        if not pair_safe:
            return quantized(weight, trt_scales(weight, axis), axis).dequantized()
        scale = channel_scales(weight, axis, pair_safe=not is_depthwise(node, weight))
        return quantized(weight, scale, axis).dequantized()
