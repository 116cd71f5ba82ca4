"""Finds the best INT8 scheme: each step is kept only if the measured error falls."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgekit.errors import UsageError
from edgekit.quantize.attention import attention_equalized, attention_links
from edgekit.quantize.calibrate import Progress, histograms, observe
from edgekit.quantize.channels import ChannelPeaks, channel_groups, channel_peaks, equalized
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.dynamic import dynamic_lstm, recurrent
from edgekit.quantize.graph import Graph
from edgekit.quantize.judge import Judge
from edgekit.quantize.latency import timed
from edgekit.quantize.measure import Gap
from edgekit.quantize.placement import candidates, place
from edgekit.quantize.ranges import METHODS, Histogram, Method
from edgekit.quantize.report import Attempt
from edgekit.quantize.rounding import compensated_weights
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.sensitivity import LayerSensitivity, sensitivities, suspects
from edgekit.quantize.trt import trt_edges, trt_products

if TYPE_CHECKING:
    import onnx

NEGLIGIBLE = 1e-6
"""Output error (share of power) below which nothing is worth trying."""

SAME_FUNCTION = 1e-6
"""Output error of a rescaled float model above which it is another function."""

MOST_FLOATS = 16
"""Layers that may be left in float for the sake of accuracy, and never more than half of them."""

GOOD = 1e-4
"""Output error below which rescaling is not tried: what is left is rounding."""

POOR = 1e-3
"""Output error above which the most sensitive layers are tried in float even within the budget."""

WORST = 3
"""How many of them."""

SPARING = 0.9
"""A layer is left in float, within the budget, only if the error falls below this share.

Where the root of the error, in percent, is below the budget in points, none is: it would buy nothing asked for.
"""

DIFFERENT = 0.05
"""Two ranges of a tensor are worth telling apart if their widths differ by more than this share."""

FINER = 0.99
"""A tensor's range is taken in another way only if the error falls below this share."""

EFFORT_S = 60.0
"""Layers and tensors are tried one by one, without being asked to, only if that takes less."""

RANKING_ROWS = 8
"""Rows that layers are ranked on where all rows would take longer than that: their order is what counts."""

SLOWER = 0.9
"""Products of two activations go back to eight bits if leaving them in float makes the model slower than this share."""

PATIENCE_S = 20.0
"""Layers are left in float one by one if that takes less, else in portions that double."""

TRIAL_ROWS = 32
"""Rows that rescaled models are tried on; the one that is kept is calibrated on all."""

_STRENGTHS = (0.5, 0.8)


@dataclass
class Search:
    """The best scheme so far, and all that was tried; `fixed` if the user said how ranges are taken."""

    data: CalibrationData
    judge: Judge
    progress: Progress
    fixed: bool = False
    best: Scheme | None = None
    error: float = float("inf")
    attempts: list[Attempt] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    attempt_s: float = 0.0
    last: Gap | None = None
    _ranked: list[LayerSensitivity] = field(default_factory=list)

    def ranking(self) -> list[LayerSensitivity]:
        """The products, the most sensitive first; measured once.

        Where that would take long, fewer rows are used, and only products of the most sensitive parts are told apart.
        """
        if not self._ranked:
            nodes, rows = None, None
            if len(candidates(Graph(self.scheme.model))) * self.attempt_s > EFFORT_S:
                rows = RANKING_ROWS
                nodes = suspects(self.scheme, self.judge, wanted=MOST_FLOATS, rows=rows, progress=self.progress)
            self._ranked = sensitivities(self.scheme, self.judge, nodes=nodes, rows=rows, progress=self.progress)
        return self._ranked

    @property
    def scheme(self) -> Scheme:
        """The best scheme. There is one after the first attempt."""
        assert self.best is not None
        return self.best

    @property
    def tight(self) -> bool:
        """Whether the outputs' relative error, in percent, is above the budget in points."""
        return 100 * math.sqrt(self.error) > self.judge.budget

    def attempt(self, step: str, scheme: Scheme, *, margin: float = 1.0) -> bool:
        """Build and measure `scheme`; keep it if its error is below `margin` times the smallest so far."""
        started = time.monotonic()
        found = self.judge.gap(scheme.for_cpu())
        self.attempt_s, self.last = time.monotonic() - started, found
        better = self.best is None or found.error < margin * self.error
        self.attempts.append(Attempt.of(step, found, kept=better))
        if better:
            self.best, self.error = replace(scheme, steps=(*scheme.steps, step)), found.error
        return better

    def recalibrate(self, scheme: Scheme) -> None:
        """Put `scheme`, the best one with ranges of more rows, in its place, and measure it again."""
        self.best, self.error = scheme, self.judge.gap(scheme.for_cpu()).error
        kept = self._last_kept()
        self.attempts[kept] = msgspec.structs.replace(self.attempts[kept], error=self.error)

    def _last_kept(self) -> int:
        return max(i for i, a in enumerate(self.attempts) if a.kept)

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
    search = Search(used, judge, progress, fixed=method is not None)
    methods = [method] if method else list(METHODS)
    _ranges(search, model, methods)
    if plain:
        return search
    if search.error > GOOD:
        _equalize(search, only="conv", what="cross-layer equalisation")
        _equalize(search, only="norm", what="smoothing")
        _equalize_attention(search)
    _equalize_recurrent(search)
    if search.error > GOOD and search.tight and not search.fixed:
        _refine_ranges(search)
    if search.error > NEGLIGIBLE:
        _round_and_correct(search)
    if search.error > GOOD and search.tight:
        _spare(search)
    if search.error > POOR and search.tight:
        _spare_worst(search)
    return search


def leave_float(search: Search) -> None:
    """Leave the most sensitive layers in float, one after the other, until the budget holds.

    A layer stays in eight bits if the error does not fall without it.
    """
    ranked = [s for s in search.ranking() if s.node not in search.scheme.floats]
    room = min(MOST_FLOATS, len(candidates(Graph(search.scheme.model))) // 2 - len(search.scheme.floats))
    for names in portions([s.node for s in ranked[: max(0, room)]], search.attempt_s):
        floats = search.scheme.floats | set(names)
        if not search.attempt(f"{named(names)} in float", replace(search.scheme, floats=floats)):
            continue
        if search.last is None or not search.judge.may_pass(search.last):
            continue
        if search.judge.verdict(search.scheme.for_cpu()).within:
            break


def portions(names: Sequence[str], trial_s: float) -> list[list[str]]:
    """`names` one by one, or in portions that double where one trial of each would take longer than `PATIENCE_S`."""
    if len(names) * trial_s <= PATIENCE_S:
        return [[name] for name in names]
    out, start = [], 0
    while start < len(names):
        out.append(list(names[start : start + max(1, start)]))
        start += len(out[-1])
    return out


def named(nodes: Sequence[str]) -> str:
    """One or several layers in a line of a table."""
    return nodes[0] if len(nodes) == 1 else f"{nodes[0]} and {len(nodes) - 1} more"


def _ranges(search: Search, model: onnx.ModelProto, methods: Sequence[Method]) -> None:
    seen = histograms(model, observed(model), search.data, progress=search.progress)
    search.one_of([(f"{m} ranges", Scheme(model, seen, m)) for m in methods])


def _equalize(search: Search, *, only: str, what: str) -> None:
    model = search.scheme.model
    groups = [g for g in channel_groups(Graph(model)) if g.kind == only]
    if groups:
        peaks = channel_peaks(model, groups, search.data, progress=search.progress)
        _rescaled(search, what, {s: equalized(model, peaks, strength=s, only=only) for s in _STRENGTHS})


def _equalize_recurrent(search: Search) -> None:
    """Level what LSTMs read, judged with the LSTMs in dynamic INT8, where one scale has to cover all channels."""
    before = search.scheme
    groups = [g for g in channel_groups(Graph(before.model)) if g.kind == "recurrent"]
    if not groups or not recurrent(before.model):
        return
    peaks = channel_peaks(before.model, groups, search.data, progress=search.progress)
    changed = equalized(before.model, peaks, strength=0.5, only="recurrent")
    seen = histograms(changed, list(before.seen), search.data, progress=search.progress)
    after = replace(before, model=changed, seen=seen, steps=(*before.steps, "recurrent equalisation"))
    gaps = [search.judge.gap(dynamic_lstm(s.for_cpu())) for s in (before, after)]
    kept = gaps[1].error < gaps[0].error
    search.attempts.append(Attempt.of("recurrent equalisation (LSTM in dynamic INT8)", gaps[1], kept=kept))
    if kept:
        search.best, search.error = after, search.judge.gap(after.for_cpu()).error


def _equalize_attention(search: Search) -> None:
    model = search.scheme.model
    links = attention_links(model, search.data)
    if not links:
        return
    nodes = {n.name: n for n in model.graph.node}
    peaks = ChannelPeaks({nodes[link.reader].input[0]: -1 for link in links})
    observe(model, list(peaks.axes), search.data, peaks, progress=search.progress, what="channels")
    changed = {s: attention_equalized(model, links, peaks.peaks, strength=s) for s in _STRENGTHS}
    _rescaled(search, "attention equalisation", changed)


def _rescaled(search: Search, what: str, models: Mapping[float, onnx.ModelProto]) -> None:
    """Try rescaled models with ranges of some rows; calibrate the one that is kept on all."""
    before = search.scheme
    few = search.data.take(np.arange(min(search.data.count, TRIAL_ROWS)))
    methods = (before.method,) if search.fixed else tuple(dict.fromkeys((before.method, "minmax", "mse")))
    steps = []
    for strength, changed in models.items():
        if search.judge.gap(changed).error > SAME_FUNCTION:
            continue
        seen = histograms(changed, list(before.seen), few, progress=search.progress)
        steps += [
            (f"{what} {strength:g}, {m} ranges", replace(before, model=changed, seen=seen, method=m)) for m in methods
        ]
    search.one_of(steps)
    if search.scheme is not before and few.count < search.data.count:
        seen = histograms(search.scheme.model, list(before.seen), search.data, progress=search.progress)
        search.recalibrate(replace(search.scheme, seen=seen))


def _refine_ranges(search: Search) -> None:
    """Choose how the range of each tensor is taken, one after the other, where the ways differ."""
    start, error = search.scheme, search.error
    every = {m: replace(start, method=m, methods={}).ranges for m in METHODS}
    trials: list[tuple[str, Method]] = []
    for name, now in start.ranges.items():
        tried = [now]
        for m in METHODS:
            other = every[m][name]
            if all(abs(other.width - t.width) > DIFFERENT * t.width for t in tried):
                tried.append(other)
                trials.append((name, m))
    if not trials or len(trials) * search.attempt_s > EFFORT_S:
        return
    best = start
    for done, (name, m) in enumerate(trials):
        search.progress("ranges, tensor by tensor", done, len(trials))
        trial = replace(best, methods={**best.methods, name: m})
        found = search.judge.gap(trial.for_cpu()).error
        if found < FINER * error:
            best, error = trial, found
    if best is not start:
        search.attempt(f"ranges of {len(best.methods)} tensors taken in their own way", best)


def _round_and_correct(search: Search) -> None:
    scheme = search.scheme
    rounded = compensated_weights(scheme.model, search.data, scheme.ranges, progress=search.progress)
    if rounded.cpu:
        search.attempt("compensated rounding", replace(scheme, weights=rounded.cpu, trt_weights=rounded.trt))
    search.attempt("bias correction", replace(search.scheme, means=rounded.means))


def _spare(search: Search) -> None:
    """Leave in float what costs little time there: products of two activations, and those that make the outputs.

    Only for a clear gain, since each takes a little of the speed.
    """
    graph = Graph(search.scheme.model)
    every = candidates(graph)
    products = [n for n in graph.nodes if n.name in set(every)]
    attention = frozenset(n.name for n in products if n.input[1] not in graph.constants)
    for what, names in (("attention products in float", attention), ("output products in float", heads(graph))):
        if names and len(search.scheme.floats | names) <= len(every) // 2:
            before, error = search.scheme, search.error
            after = replace(before, floats=before.floats | names)
            if search.attempt(what, after, margin=SPARING) and names is attention:
                _back_if_slower(search, before, error)


def _back_if_slower(search: Search, before: Scheme, error: float) -> None:
    """Return to `before` if it is clearly faster than what was just kept, and within the budget."""
    faster = timed(before.for_cpu(), search.scheme.for_cpu(), search.data)
    if faster.speed_up >= SLOWER or not search.judge.verdict(before.for_cpu()).within:
        return
    search.best, search.error = before, error
    note = f"{faster.speed_up:.2f} times as fast as without"
    search.attempts[-1] = msgspec.structs.replace(search.attempts[-1], kept=False, note=note)


def _spare_worst(search: Search) -> None:
    products = len(candidates(Graph(search.scheme.model)))
    expected_s = products * search.attempt_s
    if expected_s > EFFORT_S:
        search.notes.append(
            f"its {products} layers were not tried one by one, which would take about {expected_s:.0f} s: "
            "--sensitivity does it, and so does a budget that is not met"
        )
        return
    ranked = search.ranking()
    for layer in [s for s in ranked if not s.left_float][:WORST]:
        floats = search.scheme.floats | {layer.node}
        if len(floats) <= len(ranked) // 2:
            search.attempt(f"{layer.node} in float", replace(search.scheme, floats=floats), margin=SPARING)


def heads(graph: Graph) -> frozenset[str]:
    """Products that reach an output of the graph without passing another product."""
    every = set(candidates(graph))
    found: set[str] = set()
    waiting, seen = list(graph.outputs), set(graph.outputs)
    while waiting:
        node = graph.producer.get(waiting.pop())
        if node is None:
            continue
        if node.name in every:
            found.add(node.name)
            continue
        waiting += [i for i in node.input if i and i not in seen]
        seen.update(node.input)
    return frozenset(found)


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
