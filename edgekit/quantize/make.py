"""Makes the variants of one precision: the models, how they were made, and what was tried."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgekit.errors import CheckError
from edgekit.package import Package
from edgekit.quantize.calibrate import Progress
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.dynamic import dynamic_lstm, recurrent
from edgekit.quantize.fp16 import BF16, FP16, Half, half_model, raised_for, rounded_model
from edgekit.quantize.graph import Graph
from edgekit.quantize.half_io import with_half_io
from edgekit.quantize.judge import Judge, Verdict
from edgekit.quantize.latency import FASTER, Timing, timed
from edgekit.quantize.lint import lint_trt
from edgekit.quantize.mixed import float_nodes, peaks_of
from edgekit.quantize.placement import candidates
from edgekit.quantize.qdq import is_depthwise
from edgekit.quantize.ranges import Method
from edgekit.quantize.report import Attempt
from edgekit.quantize.scheme import Scheme
from edgekit.quantize.search import MOST_FLOATS, Search, best_scheme, leave_float, named, portions, warnings_of
from edgekit.quantize.sensitivity import LayerSensitivity, sensitivities
from edgekit.quantize.store import calibration_of, encoded
from edgekit.quantize.trt import trt_products
from edgekit.quantize.weight_only import BLOCK, weight_only

if TYPE_CHECKING:
    import onnx

PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "int8": ("int8", "int8-trt"),
    "fp16": ("fp16",),
    "bf16": ("bf16",),
    "w8": ("w8",),
    "w4": ("w4",),
}
"""Precision -> ids of the variants that it gives."""


MANY_ROWS = 16
"""INT8 pays if it is faster for one sample or for a batch of this many."""


WEIGHT_BITS = {"w8": 8, "w4": 4}
"""Weight-only precisions: eight or four bits for weights, float32 for all else."""


@dataclass(frozen=True)
class Options:
    """How to go about it; see `quantize_package`."""

    method: Method | None = None
    plain: bool = False
    sensitivity: bool = False
    half_io: bool = False


@dataclass(frozen=True)
class MadeVariant:
    """One model; `literal` if it is judged as written (see `model_session`), `verdict` if it was judged already."""

    id: str
    model: onnx.ModelProto
    settings: dict[str, Any]
    literal: bool = False
    verdict: Verdict | None = None


@dataclass
class Made:
    """All that one `quantize` gives."""

    variants: list[MadeVariant]
    attempts: list[Attempt]
    calibration: bytes | None = None
    layers: list[LayerSensitivity] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def make(
    package: Package,
    model: onnx.ModelProto,
    data: CalibrationData,
    judge: Judge,
    *,
    precision: str,
    options: Options,
    progress: Progress,
) -> Made:
    """The variants of `precision` from `model` (prepared)."""
    if precision in ("fp16", "bf16"):
        kind = FP16 if precision == "fp16" else BF16
        return _half(model, data, judge, kind, progress, half_io=options.half_io)
    if precision in WEIGHT_BITS:
        made = weight_only(model, bits=WEIGHT_BITS[precision])
        timing = timed(model, made, data)
        settings = {"block": BLOCK, **_timing_settings(timing, paid=timing.speed_up >= FASTER, name=precision)}
        step = f"weights in {WEIGHT_BITS[precision]} bits, blocks of {BLOCK}"
        return Made([MadeVariant(precision, made, settings)], [Attempt.of(step, judge.gap(made), kept=True)])
    return _int8(package, model, data, judge, options, progress)


def _half(
    model: onnx.ModelProto, data: CalibrationData, judge: Judge, kind: Half, progress: Progress, *, half_io: bool
) -> Made:
    """16 bits but for the nodes whose ranges ask for 32; the error without them is measured for the report.

    An overflow inside a node does not show on a CPU, which adds in float32, so ranges decide and not the error.
    """
    model = raised_for(model, kind)
    floats = float_nodes(model, peaks_of(model, data, progress=progress), kind=kind)
    steps: list[tuple[str, frozenset[str]]] = [(f"{kind.name} throughout", frozenset())]
    if floats:
        steps.append((f"{len(floats)} nodes in float32, by their ranges", frozenset(floats)))
    attempts = []
    for i, (step, left) in enumerate(steps):
        gap = judge.gap(rounded_model(model, floats=left, kind=kind))
        attempts.append(Attempt.of(step, gap, kept=i == len(steps) - 1))
    made = half_model(model, floats=floats, kind=kind)
    verdict = judge.verdict(rounded_model(model, floats=floats, kind=kind)) if kind is BF16 else None
    settings: dict[str, Any] = {"float_nodes": floats}
    if half_io:
        made, settings["inputs_outputs"] = with_half_io(made), "fp16"
    return Made([MadeVariant(kind.name, made, settings, verdict=verdict)], attempts)


def _int8(
    package: Package,
    model: onnx.ModelProto,
    data: CalibrationData,
    judge: Judge,
    options: Options,
    progress: Progress,
) -> Made:
    search = best_scheme(model, data, judge, method=options.method, plain=options.plain, progress=progress)
    if not options.plain and not judge.verdict(search.scheme.for_cpu()).within:
        leave_float(search)
    timing, paid, notes = _worth(search, model, data)
    scheme = search.scheme
    cpu = scheme.for_cpu()
    dynamic = recurrent(cpu)
    if dynamic and not options.plain:
        cpu, timing, kept = _dynamic(search, model, cpu, timing, data)
        dynamic = dynamic if kept else []
        if timing.speed_up >= FASTER:
            paid, notes = True, []
    trt_scheme, trt_verdict = _trt_form(search, plain=options.plain)
    trt = trt_scheme.for_trt()
    faults = lint_trt(trt)
    if faults:
        raise CheckError(f"The int8-trt graph is not one that TensorRT reads as meant: {faults[0]} Report this.")
    settings = {
        "method": scheme.method,
        "steps": list(scheme.steps),
        "float_layers": sorted(scheme.floats),
        "weights": "int8, no overflow of 16-bit sums",
    }
    settings["dynamic_layers"] = dynamic
    cpu_settings = {**settings, "form": "cpu", **_timing_settings(timing, paid=paid)}
    trt_settings = {**settings, "form": "trt", "weights": "int8", "float_layers": sorted(trt_scheme.floats)}
    if options.half_io:
        trt, trt_settings["inputs_outputs"] = with_half_io(trt), "fp16"
    layers = sensitivities(scheme, judge, progress=progress) if options.sensitivity else []
    return Made(
        [
            MadeVariant("int8", cpu, cpu_settings),
            MadeVariant("int8-trt", trt, trt_settings, literal=True, verdict=trt_verdict),
        ],
        search.attempts,
        encoded(calibration_of(package, data, scheme)),
        layers,
        [*warnings_of(search.scheme.seen), *search.notes, *notes],
    )


def _trt_form(search: Search, *, plain: bool) -> tuple[Scheme, Verdict | None]:
    """The scheme for TensorRT's form: with rounded weights and biases only if they bring that closer too.

    Symmetric ranges are coarser than the CPU's, so that its budget may need more layers in FP16. The verdict is None
    where the form has not been judged on all rows.
    """
    judge, scheme = search.judge, search.scheme
    started = time.monotonic()
    found = judge.gap(scheme.for_trt(half=False), literal=True)
    trial_s = time.monotonic() - started
    if scheme.trt_weights or scheme.means is not None:
        nearest = replace(scheme, trt_weights={}, means=None)
        without = judge.gap(nearest.for_trt(half=False), literal=True)
        if without.error <= found.error:
            scheme, found = nearest, without
    verdict = judge.verdict(scheme.for_trt(), literal=True) if plain or judge.may_pass(found) else None
    if plain or (verdict is not None and verdict.within):
        return scheme, verdict
    products = set(trt_products(scheme.model))
    ranked = [s.node for s in search.ranking() if s.node in products and s.node not in scheme.floats]
    for names in portions(ranked[: min(MOST_FLOATS, len(products) // 2)], trial_s):
        trial = replace(scheme, floats=scheme.floats | set(names))
        after = judge.gap(trial.for_trt(half=False), literal=True)
        search.attempts.append(Attempt.of(f"{named(names)} in FP16 (int8-trt)", after, kept=after.error < found.error))
        if after.error >= found.error:
            continue
        scheme, found = trial, after
        verdict = judge.verdict(scheme.for_trt(), literal=True) if judge.may_pass(found) else None
        if verdict is not None and verdict.within:
            break
    return scheme, verdict


def _timing_settings(timing: Timing, *, paid: bool, name: str = "int8") -> dict[str, Any]:
    out: dict[str, Any] = {
        "speed_up": round(timing.speed_up, 3),
        "latency_ms": {"fp32": round(timing.float_ms, 4), name: round(timing.other_ms, 4), "threads": timing.threads},
    }
    if not paid:
        out["not_faster"] = True
    return out


def _dynamic(
    search: Search, model: onnx.ModelProto, cpu: onnx.ModelProto, timing: Timing, data: CalibrationData
) -> tuple[onnx.ModelProto, Timing, bool]:
    """LSTMs in dynamic INT8, if that is faster here and within the budget."""
    changed = dynamic_lstm(cpu)
    gap, faster = search.judge.gap(changed), timed(cpu, changed, data)
    kept = faster.speed_up >= FASTER and search.judge.verdict(changed).within
    note = f"{faster.speed_up:.2f} times as fast as without"
    search.attempts.append(Attempt.of("LSTM in dynamic INT8", gap, kept=kept, note=note))
    return (changed, timed(model, changed, data), True) if kept else (cpu, timing, False)


def _worth(search: Search, model: onnx.ModelProto, data: CalibrationData) -> tuple[Timing, bool, list[str]]:
    """INT8 against float on this machine, whether it pays, and what to say about it.

    Depthwise convolutions go back to float if that makes the difference.
    """
    timing = timed(model, search.scheme.for_cpu(), data)
    if timing.speed_up >= FASTER:
        return timing, True, []
    if data.batched and data.count > 1:
        many = timed(model, search.scheme.for_cpu(), data, rows=MANY_ROWS)
        if many.speed_up >= FASTER:
            note = (
                f"int8 pays in batches only: {many.speed_up:.2f} times the speed of fp32 for {MANY_ROWS} samples a call"
            )
            return timing, True, [note]
    graph = Graph(search.scheme.model)
    products = set(candidates(graph))
    thin = {
        n.name
        for n in graph.nodes
        if n.name in products and graph.is_float(n.input[1]) and is_depthwise(n, graph.constants[n.input[1]])
    }
    if thin and thin < products:
        again = replace(search.scheme, floats=search.scheme.floats | thin)
        faster = timed(model, again.for_cpu(), data)
        if faster.speed_up >= FASTER and search.attempt("depthwise layers in float, for speed", again):
            return faster, True, []
    note = (
        f"int8 is not faster on this machine ({timing.other_ms:.3g} ms against {timing.float_ms:.3g} ms for fp32 on "
        f"{timing.threads} threads): {_reason(graph, products, thin)}; it is kept, but not chosen by itself"
    )
    return timing, False, [note]


def _reason(graph: Graph, products: set[str], thin: set[str]) -> str:
    if len(thin) * 3 > len(products):
        return "most of its time goes to depthwise convolutions, which have little to gain"
    elsewhere = [n.op_type for n in graph.nodes if n.op_type in ("LSTM", "GRU", "ConvTranspose", "If", "Loop")]
    if elsewhere:
        return f"its {elsewhere[0]} nodes stay in float"
    return "its products are too small to make up for quantising what they read"
