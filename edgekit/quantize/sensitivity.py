"""Which layers eight bits hurt most: each one alone in eight bits, measured on the outputs."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import msgspec
import numpy as np

from edgekit._lazy import require
from edgekit.graphs import module_of
from edgekit.quantize.calibrate import Progress, quiet
from edgekit.quantize.graph import Graph
from edgekit.quantize.judge import Judge
from edgekit.quantize.placement import candidates
from edgekit.quantize.scheme import Scheme

_BARS = 25


class LayerSensitivity(msgspec.Struct, frozen=True, kw_only=True):
    """One layer alone in eight bits, all others in float.

    Attributes:
        node, operator: of the ONNX graph.
        module: the PyTorch module that it came from, or "".
        error: power of the output's error over the power of the output.
        snr_db: the same as signal-to-noise ratio in dB.
        agreement: share of samples that keep their class, or None.
        left_float: whether the result keeps it in float.
    """

    node: str
    operator: str
    module: str
    error: float
    snr_db: float
    agreement: float | None
    left_float: bool = False


def sensitivities(
    scheme: Scheme,
    judge: Judge,
    *,
    nodes: Collection[str] | None = None,
    rows: int | None = None,
    progress: Progress = quiet,
) -> list[LayerSensitivity]:
    """Every product of `scheme.model` (or those in `nodes`), the most sensitive first; measured on `rows` at most."""
    graph = Graph(scheme.model)
    every = candidates(graph)
    chosen = [n for n in every if nodes is None or n in nodes]
    by_name = {n.name: n for n in graph.nodes}
    out = []
    for i, name in enumerate(chosen):
        alone = replace(scheme, floats=frozenset(every) - {name}, means=None)
        gap = judge.gap(alone.for_cpu(), most=rows)
        out.append(
            LayerSensitivity(
                node=name,
                operator=by_name[name].op_type,
                module=module_of(by_name[name]),
                error=gap.error,
                snr_db=float(-10 * np.log10(max(gap.error, 1e-30))),
                agreement=gap.agreement,
                left_float=name in scheme.floats,
            )
        )
        progress("sensitivity", i + 1, len(chosen))
    return sorted(out, key=lambda s: -s.error)


def suspects(scheme: Scheme, judge: Judge, *, wanted: int, rows: int, progress: Progress = quiet) -> set[str]:
    """At least `wanted` products (if there are so many) of those parts of the model that eight bits hurt most.

    A part is a run of neighbours; each part alone is in eight bits, so that n products take about sqrt(n) runs.
    """
    every = candidates(Graph(scheme.model))
    size = math.isqrt(max(1, len(every) - 1)) + 1
    parts = [every[i : i + size] for i in range(0, len(every), size)]
    errors = []
    for i, part in enumerate(parts):
        alone = replace(scheme, floats=frozenset(every) - set(part), means=None)
        errors.append(judge.gap(alone.for_cpu(), most=rows).error)
        progress("sensitivity of parts", i + 1, len(parts))
    found: set[str] = set()
    for _, i in sorted(((error, i) for i, error in enumerate(errors)), reverse=True):
        if len(found) < wanted:
            found.update(parts[i])
    return found


def sensitivity_png(found: Sequence[LayerSensitivity]) -> bytes:
    """A bar chart of the most sensitive layers, as PNG."""
    require("matplotlib", why="draw the sensitivity of layers")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    worst = list(found[:_BARS])[::-1]
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(worst)), layout="constrained")
    axes = figure.subplots()
    colours = ["#9aa5b1" if s.left_float else "#c2452d" for s in worst]
    axes.barh([s.module or s.node for s in worst], [max(s.error, 1e-12) for s in worst], color=colours)
    axes.set_xscale("log")
    axes.set_xlabel("output error with this layer alone in INT8 (share of the output's power)")
    axes.set_title("What INT8 costs, layer by layer (grey: left in float)")
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()
