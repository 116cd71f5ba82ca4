"""Finds the best INT8 model: each step is kept only if the measured error falls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from edgekit.errors import UsageError
from edgekit.quantize.calibrate import Progress, histograms
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.graph import Graph
from edgekit.quantize.judge import Judge
from edgekit.quantize.placement import candidates, place
from edgekit.quantize.qdq import cpu_int8
from edgekit.quantize.ranges import METHODS, Histogram, Method, Range, range_of
from edgekit.quantize.report import Attempt

if TYPE_CHECKING:
    import onnx


@dataclass
class Found:
    """The model that was kept, how it was made, and all that was tried."""

    model: onnx.ModelProto
    settings: dict[str, Any]
    attempts: list[Attempt]
    warnings: list[str] = field(default_factory=list)


def best_int8(
    model: onnx.ModelProto,
    data: CalibrationData,
    judge: Judge,
    *,
    method: Method | None,
    progress: Progress,
) -> Found:
    """The best INT8 form of `model` (prepared) by `judge`.

    Raises:
        UsageError: the model has no product that could run in eight bits.
        CheckError: NaN or infinite activations.
    """
    graph = Graph(model)
    products = candidates(graph)
    if not products:
        raise UsageError("The model has no Conv, Gemm or MatMul with float weights, so INT8 would change nothing.")
    seen = histograms(model, observed(graph), data.split()[0], progress=progress)
    best: tuple[float, onnx.ModelProto, Method] | None = None
    attempts = []
    for tried in [method] if method else METHODS:
        made = cpu_int8(model, ranges_of(seen, tried))
        found = judge.gap(made)
        attempts.append(Attempt.of(f"{tried} ranges", found))
        if best is None or found.error < best[0]:
            best = (found.error, made, tried)
    assert best is not None
    kept = [msgspec.structs.replace(a, kept=a.step == f"{best[2]} ranges") for a in attempts]
    settings: dict[str, Any] = {"method": best[2], "form": "cpu", "float_layers": []}
    return Found(best[1], settings, kept, _warnings(seen))


def observed(graph: Graph) -> list[str]:
    """Tensors whose ranges any placement may need, in the graph's order."""
    placement = place(graph)
    names = set(placement.spread)
    by_name = {n.name: n for n in graph.nodes}
    names.update(by_name[node].input[i] for node, i in placement.private)
    order = [*graph.inputs, *(o for n in graph.nodes for o in n.output)]
    return [name for name in order if name in names]


def ranges_of(seen: Mapping[str, Histogram], method: Method) -> dict[str, Range]:
    """The range of each tensor by `method`."""
    return {name: range_of(h, method) for name, h in seen.items()}


def _warnings(seen: Mapping[str, Histogram]) -> list[str]:
    flat = [name for name, h in seen.items() if h.low == h.high]
    if not flat:
        return []
    more = f" and {len(flat) - 1} more" if len(flat) > 1 else ""
    return [f"tensor '{flat[0]}'{more} is constant on the calibration data: is the data varied enough?"]
