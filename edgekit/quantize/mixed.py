"""Which nodes must stay in float32 for FP16 or BF16 to be safe, from measured ranges."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgekit.graphs import infer_shapes, model_specs
from edgekit.quantize.calibrate import Progress, RangeCollector, observe, quiet
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.fp16 import BF16, LARGEST, Half
from edgekit.quantize.graph import Graph

if TYPE_CHECKING:
    import onnx

HEADROOM = 4.0
"""Values seen in calibration may grow by this before FP16 overflows."""

FAINT = 6e-5
"""Below this FP16 loses digits: a tensor that never gets larger stays in float32."""

_SUMS = ("ReduceSum", "ReduceMean", "ReduceL1", "ReduceLogSum", "ReduceLogSumExp", "GlobalAveragePool", "AveragePool")
_SQUARES = (
    "LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "BatchNormalization",
    "ReduceL2", "ReduceSumSquare", "LpNormalization", "LRN", "MeanVarianceNormalization",
)  # fmt: skip
_EXPONENTIALS = ("Softmax", "LogSoftmax", "Exp", "Log", "Pow", "Reciprocal", "Sqrt", "Div")
"""In BF16, whose eight bits are too few for them, these stay in float32 always."""


def peaks_of(model: onnx.ModelProto, data: CalibrationData, *, progress: Progress = quiet) -> dict[str, float]:
    """Largest magnitude of every float tensor of `model` on `data`.

    Raises:
        CheckError: a tensor is NaN or infinite already in float32.
    """
    graph = Graph(model)
    inferred = {v.name: v.type.tensor_type.elem_type for v in infer_shapes(model).graph.value_info}
    tensors = [o for n in graph.nodes for o in n.output if o and inferred.get(o, 1) == 1 and o not in graph.outputs]
    ends = RangeCollector(tolerant=True)
    observe(model, [*graph.inputs, *tensors], data, ends, progress=progress, what="ranges")
    return {name: max(abs(ends.low[name]), abs(ends.high[name])) for name in ends.low}


def float_nodes(model: onnx.ModelProto, peaks: Mapping[str, float], *, kind: Half) -> dict[str, str]:
    """Node name -> why it stays in float32: what it reads, computes or gives would overflow, or is too faint."""
    graph = Graph(model)
    sizes = {d: 1 for s in model_specs(model)[0] for d in s.shape if isinstance(d, str)}
    shapes = {
        v.name: [int(d.dim_value) for d in v.type.tensor_type.shape.dim]
        for v in infer_shapes(model, sizes).graph.value_info
    }
    out: dict[str, str] = {}
    for node in graph.nodes:
        why = _why_bf16(node) if kind is BF16 else _why_fp16(node, peaks, shapes)
        if why:
            out[node.name] = why
    return out


def _why_bf16(node: Any) -> str:
    if node.op_type in (*_SUMS, *_SQUARES, *_EXPONENTIALS):
        return f"{node.op_type} needs more than eight bits of precision"
    return ""


def _why_fp16(node: Any, peaks: Mapping[str, float], shapes: Mapping[str, list[int]]) -> str:
    limit = LARGEST / HEADROOM
    seen = {name: peaks[name] for name in (*node.input, *node.output) if name in peaks}
    for name, peak in seen.items():
        if not math.isfinite(peak) or peak > limit:
            return f"'{name}' reaches {peak:.3g}"
        if 0 < peak < FAINT:
            return f"'{name}' never passes {peak:.3g}"
    source = peaks.get(node.input[0]) if node.input else None
    if source is None:
        return ""
    depth = max(1, math.prod(shapes.get(node.input[0], [])[1:]))
    if node.op_type in _SUMS and source * depth > limit:
        return f"the sum inside {node.op_type} may reach {source * depth:.3g}"
    if node.op_type in _SQUARES and source * source * depth > limit:
        return f"the squares inside {node.op_type} may reach {source * source * depth:.3g}"
    return ""
