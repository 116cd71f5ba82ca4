"""Streaming statistics of activations: the float model is run, its inner tensors are read in bounded groups."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgekit._lazy import require
from edgekit.errors import CheckError
from edgekit.graphs import EXTERNAL_BYTES, infer_shapes, save_model, weight_bytes
from edgekit.quantize.checkpoint import Checkpoint
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.ranges import BINS, Histogram
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import Array

if TYPE_CHECKING:
    import onnx

GROUP_BYTES = 256 << 20
"""Activations that one run hands out; more tensors mean more runs, never more memory."""

KEEP_S = 2.0
"""A calibration that took longer is kept, so that it need not be made again."""

COUNTED = 1 << 18
"""Values of one tensor and batch that are counted into its histogram, evenly spread; its ends are always exact."""

MAX_ROWS = 16
Visit: TypeAlias = Callable[[str, Array], None]
Progress: TypeAlias = Callable[[str, int, int], None]
"""`(what, done, total)`."""


def quiet(what: str, done: int, total: int) -> None:
    """A Progress that says nothing."""


@contextmanager
def model_session(
    model: onnx.ModelProto, *, threads: int | None = None, name: str = "onnx", literal: bool = False
) -> Iterator[OrtSession]:
    """`model` in ONNX Runtime; through a temporary file when it is too large for one message.

    `literal` runs the graph as it is written, with no fusion: Q/DQ pairs are then simulated in float, which is what
    TensorRT's form must be judged by (fused on a CPU without VNNI, its full-range weights would saturate).
    """
    if weight_bytes(model) < EXTERNAL_BYTES:
        with OrtSession(model.SerializeToString(), variant=name, threads=threads, optimize=not literal) as session:
            yield session
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        path = Path(folder) / "model.onnx"
        save_model(model, path)
        with OrtSession(path, variant=name, threads=threads, optimize=not literal) as session:
            yield session


def observe(
    model: onnx.ModelProto,
    tensors: Sequence[str],
    data: CalibrationData,
    visit: Visit,
    *,
    progress: Progress = quiet,
    what: str = "calibrating",
    group_bytes: int = GROUP_BYTES,
) -> None:
    """Run `data` through `model` and call `visit(name, values)` for each of `tensors` and each batch.

    Memory is bounded by `group_bytes` of activations beyond what the model itself needs.
    """
    inputs = {s.name for s in data.specs}
    inner = [t for t in dict.fromkeys(tensors) if t not in inputs]
    rows, groups = _groups(model, inner, data, group_bytes)
    steps = max(1, math.ceil(data.count / rows))
    total, done = max(1, len(groups)) * steps, 0
    for number, group in enumerate(groups or [[]]):
        with model_session(_with_outputs(model, group)) as session:
            for feed in data.batches(rows):
                if number == 0:
                    for name in tensors:
                        if name in inputs:
                            visit(name, feed[name])
                if group:
                    found = session.run(feed)
                    for name in group:
                        visit(name, found[name])
                done += 1
                progress(what, done, total)


def _groups(
    model: onnx.ModelProto, tensors: Sequence[str], data: CalibrationData, group_bytes: int = GROUP_BYTES
) -> tuple[int, list[list[str]]]:
    sizes = {d: 1 for s in data.specs for d in s.shape if isinstance(d, str)}
    known: dict[str, int] = {}
    for value in infer_shapes(model, sizes).graph.value_info:
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            known[value.name] = 4 * math.prod(d.dim_value for d in dims)
    largest = max(known.values(), default=4 << 20)
    cost = {t: known.get(t, largest) for t in tensors}
    whole = sum(cost.values()) or 1
    rows = min(MAX_ROWS, max(1, group_bytes // whole)) if data.batched else 1
    groups: list[list[str]] = []
    room = 0
    for name in tensors:
        need = cost[name] * rows
        if not groups or need > room:
            groups.append([])
            room = group_bytes
        groups[-1].append(name)
        room -= need
    return rows, groups


def _with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    onnx = require("onnx", why="calibrate models")
    copy = type(model)()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    copy.graph.output.extend(onnx.helper.make_empty_tensor_value_info(t) for t in tensors)
    if not tensors:
        copy.graph.output.extend(model.graph.output)
    return copy


@dataclass
class RangeCollector:
    """First pass: smallest and largest value of each tensor. `tolerant` lets infinite values through, not NaN."""

    low: dict[str, float] = field(default_factory=dict)
    high: dict[str, float] = field(default_factory=dict)
    tolerant: bool = False

    def __call__(self, name: str, values: Array) -> None:
        """Take one batch of `name`. Raises CheckError if it holds NaN or infinite values."""
        if values.size == 0 or values.dtype.kind != "f":
            return
        low, high = float(values.min()), float(values.max())
        if math.isnan(low) or (not self.tolerant and not (math.isfinite(low) and math.isfinite(high))):
            raise CheckError(
                f"Tensor '{name}' is NaN or infinite on the calibration data, so the model is not sound. "
                "Check the weights and the inputs, then export again."
            )
        self.low[name] = min(low, self.low.get(name, low))
        self.high[name] = max(high, self.high.get(name, high))


@dataclass
class HistogramCollector:
    """Second pass: how the values lie between the ends that the first pass found."""

    ends: RangeCollector
    counts: dict[str, Array] = field(default_factory=dict)

    def __call__(self, name: str, values: Array) -> None:
        """Take one batch of `name`."""
        if name not in self.ends.low:
            return
        low, high = self.ends.low[name], self.ends.high[name]
        width = (high - low) / BINS
        if width <= 0:
            return
        flat = values.ravel()
        flat = flat[:: max(1, flat.size // COUNTED)]
        index = ((flat.astype(np.float32) - np.float32(low)) * np.float32(1 / width)).astype(np.int32)
        np.clip(index, 0, BINS - 1, out=index)
        counts = np.bincount(index, minlength=BINS)
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts


def histograms(
    model: onnx.ModelProto, tensors: Sequence[str], data: CalibrationData, *, progress: Progress = quiet
) -> dict[str, Histogram]:
    """The distribution of each of `tensors` over `data`, in two passes over each group of them.

    A measurement that takes more than `KEEP_S` is kept in the user's cache group by group, and goes on from there when
    it was interrupted.

    Raises:
        CheckError: a tensor is NaN or infinite.
    """
    started = time.monotonic()
    checkpoint = Checkpoint(model, data)
    found = checkpoint.load(tensors)
    inputs = {s.name for s in data.specs}
    missing = [t for t in dict.fromkeys(tensors) if t not in found]
    groups = [[t for t in missing if t in inputs], *_groups(model, [t for t in missing if t not in inputs], data)[1]]
    groups = [g for g in groups if g]
    for number, group in enumerate(groups):

        def on_group(what: str, done: int, total: int, number: int = number) -> None:
            progress(what, number * total + done, len(groups) * total)

        found |= _group_histograms(model, group, data, on_group)
        if time.monotonic() - started > KEEP_S:
            checkpoint.save(found)
    return {t: found[t] for t in tensors if t in found}


def _group_histograms(
    model: onnx.ModelProto, tensors: Sequence[str], data: CalibrationData, progress: Progress
) -> dict[str, Histogram]:
    ends = RangeCollector()
    observe(model, tensors, data, ends, progress=progress, what="ranges")
    counted = HistogramCollector(ends)
    observe(model, tensors, data, counted, progress=progress, what="histograms")
    empty = np.zeros(BINS, np.int64)
    return {t: Histogram(ends.low[t], ends.high[t], counted.counts.get(t, empty)) for t in tensors if t in ends.low}
