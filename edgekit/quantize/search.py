"""Finds the best INT8 scheme: each step is kept only if the measured error falls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec

from edgekit.errors import UsageError
from edgekit.quantize.attention import attention_equalized, attention_links
from edgekit.quantize.calibrate import Progress, histograms, observe
from edgekit.quantize.channels import ChannelPeaks, channel_groups, channel_peaks, equalized
from edgekit.quantize.correct import input_means
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.graph import Graph
from edgekit.quantize.judge import Judge, Verdict
from edgekit.quantize.placement import candidates, place
from edgekit.quantize.ranges import METHODS, Histogram, Method
from edgekit.quantize.report import Attempt
from edgekit.quantize.rounding import compensated_weights
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.sensitivity import sensitivities
from edgekit.quantize.trt import trt_edges, trt_products

if TYPE_CHECKING:
    import onnx

NEGLIGIBLE = 1e-6
"""Output error (share of power) below which nothing is worth trying."""

SAME_FUNCTION = 1e-6
"""Output error of a rescaled float model above which it is another function."""

MOST_FLOATS = 16
"""Layers that may be left in float for the sake of accuracy, and never more than half of them."""

_STRENGTHS = (0.5, 0.8)


@dataclass
class Search:
    """The best scheme so far, and all that was tried."""

    data: CalibrationData
    judge: Judge
    progress: Progress
    best: Scheme | None = None
    error: float = float("inf")
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def scheme(self) -> Scheme:
        """The best scheme. There is one after the first attempt."""
        assert self.best is not None
        return self.best

    def attempt(self, step: str, scheme: Scheme) -> bool:
        """Build and measure `scheme`; keep it if its error is the smallest so far."""
        found = self.judge.gap(scheme.for_cpu())
        better = self.best is None or found.error < self.error
        self.attempts.append(Attempt.of(step, found, kept=better))
        if better:
            self.best, self.error = replace(scheme, steps=(*scheme.steps, step)), found.error
        return better

    def one_of(self, steps: Sequence[tuple[str, Scheme]]) -> None:
        """Keep the best of several alternatives to one another, if it is better than what there is."""
        start = len(self.attempts)
        for step, scheme in steps:
            self.attempt(step, scheme)
        kept = [i for i in range(start, len(self.attempts)) if self.attempts[i].kept]
        for i in kept[:-1]:
            self.attempts[i] = msgspec.structs.replace(self.attempts[i], kept=False)


def best_scheme(
    model: onnx.ModelProto,
    data: CalibrationData,
    judge: Judge,
    *,
    method: Method | None,
    progress: Progress,
    plain: bool = False,
) -> Search:
    """The best way to quantise `model` (prepared), by `judge`; `plain` stops at ranges.

    Raises:
        UsageError: the model has no product that could run in eight bits.
        CheckError: NaN or infinite activations.
    """
    if not candidates(Graph(model)):
        raise UsageError("The model has no Conv, Gemm or MatMul with float weights, so INT8 would change nothing.")
    used = data.split()[0]
    search = Search(used, judge, progress)
    methods = [method] if method else list(METHODS)
    _ranges(search, model, methods)
    if plain:
        return search
    if search.error > NEGLIGIBLE:
        _equalize(search, methods, only="conv", what="cross-layer equalisation")
        _equalize(search, methods, only="norm", what="smoothing")
        _equalize_attention(search, methods)
    if search.error > NEGLIGIBLE:
        _round(search)
        _correct(search)
    return search


def leave_float(search: Search, verdict: Verdict) -> Verdict:
    """Leave the most sensitive layers in float, one after the other, until `verdict` is within its budget.

    A layer stays in eight bits if the error does not fall without it. Returns the last verdict.
    """
    ranked = sensitivities(search.scheme, search.judge, progress=search.progress)
    room = min(MOST_FLOATS, len(ranked) // 2 - len(search.scheme.floats))
    for layer in ranked[: max(0, room)]:
        floats = search.scheme.floats | {layer.node}
        if not search.attempt(f"{layer.node} in float", replace(search.scheme, floats=floats)):
            continue
        verdict = search.judge.verdict(search.scheme.for_cpu())
        if verdict.within:
            break
    return verdict


def _ranges(search: Search, model: onnx.ModelProto, methods: Sequence[Method]) -> None:
    seen = histograms(model, observed(model), search.data, progress=search.progress)
    search.one_of([(f"{m} ranges", Scheme(model, seen, m)) for m in methods])


def _equalize(search: Search, methods: Sequence[Method], *, only: str, what: str) -> None:
    model = search.scheme.model
    groups = [
        g
        for g in channel_groups(Graph(model))
        if (only == "norm") == any(n.op_type == "LayerNormalization" for n in g.makers)
    ]
    if not groups:
        return
    peaks = channel_peaks(model, groups, search.data, progress=search.progress)
    steps = []
    for strength in _STRENGTHS:
        changed = equalized(model, peaks, strength=strength, only=only)
        seen = histograms(changed, list(search.scheme.seen), search.data, progress=search.progress)
        steps += [
            (f"{what} {strength:g}, {m} ranges", replace(search.scheme, model=changed, seen=seen, method=m))
            for m in methods
        ]
    search.one_of(steps)


def _equalize_attention(search: Search, methods: Sequence[Method]) -> None:
    model = search.scheme.model
    links = attention_links(model, search.data)
    if not links:
        return
    nodes = {n.name: n for n in model.graph.node}
    collector = ChannelPeaks({nodes[link.reader].input[0]: -1 for link in links})
    observe(model, list(collector.axes), search.data, collector, progress=search.progress, what="channels")
    steps = []
    for strength in _STRENGTHS:
        changed = attention_equalized(model, links, collector.peaks, strength=strength)
        if search.judge.gap(changed).error > SAME_FUNCTION:
            continue
        seen = histograms(changed, list(search.scheme.seen), search.data, progress=search.progress)
        steps += [
            (
                f"attention equalisation {strength:g}, {m} ranges",
                replace(search.scheme, model=changed, seen=seen, method=m),
            )
            for m in methods
        ]
    search.one_of(steps)


def _correct(search: Search) -> None:
    means = input_means(search.scheme.model, search.data, progress=search.progress)
    search.attempt("bias correction", replace(search.scheme, means=means))


def _round(search: Search) -> None:
    scheme = search.scheme
    weights = compensated_weights(scheme.model, search.data, scheme.ranges, progress=search.progress)
    if weights:
        search.attempt("compensated rounding", replace(scheme, weights=weights))


def observed(model: onnx.ModelProto) -> list[str]:
    """Tensors whose ranges any placement of either form may need, in the graph's order."""
    graph = Graph(model)
    placement = place(graph)
    names = set(placement.spread)
    by_name = {n.name: n for n in graph.nodes}
    names.update(by_name[node].input[i] for node, i in placement.private)
    names.update(trt_edges(graph, trt_products(model)).values())
    order = [*graph.inputs, *(o for n in graph.nodes for o in n.output)]
    return [name for name in order if name in names]


def warnings_of(seen: Mapping[str, Histogram]) -> list[str]:
    """What the distributions say about the calibration data."""
    flat = [name for name, h in seen.items() if h.low == h.high]
    if not flat:
        return []
    more = f" and {len(flat) - 1} more" if len(flat) > 1 else ""
    return [f"tensor '{flat[0]}'{more} is constant on the calibration data: is the data varied enough?"]
