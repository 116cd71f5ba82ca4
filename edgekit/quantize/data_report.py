"""Is the calibration data good? Enough rows, no duplicates, varied, not saturated, preprocessed as the recipe says."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgekit.package import Package
from edgekit.quantize.calibrate import Progress, histograms, quiet
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.ranges import range_of
from edgekit.quantize.search import observed
from edgekit.quantize.store import stale_parts, stored
from edgekit.recipe import ModelSpec
from edgekit.tensors import Array, take_samples

if TYPE_CHECKING:
    import onnx

SETTLED = 0.05
"""Largest change of a scale, from half of the rows to all, at which there are enough."""

_SATURATED = 0.2
"""Share of an input's values at its very ends that looks clipped."""


class CalibrationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the data look like.

    Attributes:
        samples, source: how many rows, from where.
        median_shift, largest_shift: how much scales move from half of the rows to all, as a share; None for one row.
        moving: tensors that move most, with their shift.
        duplicates: rows that are there before.
        problems: one sentence for each thing to look at; empty when all is well.
    """

    samples: int
    source: str
    median_shift: float | None
    largest_shift: float | None
    moving: dict[str, float]
    duplicates: int
    problems: tuple[str, ...]


def calibration_report(
    package: Package,
    model: onnx.ModelProto,
    data: CalibrationData,
    *,
    recipe: ModelSpec | None = None,
    progress: Progress = quiet,
) -> CalibrationReport:
    """Look at `data` through `model` (prepared)."""
    problems: list[str] = []
    shifts = _shifts(model, data, progress)
    ordered = sorted(shifts.items(), key=lambda item: -item[1])
    median = float(np.median(list(shifts.values()))) if shifts else None
    if median is None:
        problems.append("There is one sample: nothing can be said about its scales. Give more.")
    elif median > SETTLED:
        problems.append(
            f"Scales still move by {100 * median:.0f} % (median) from half of the samples to all: give more samples."
        )
    duplicates = _duplicates(data)
    if duplicates:
        problems.append(f"{duplicates} of {data.count} samples are there twice: they add nothing.")
    for spec in data.specs:
        problems += _input_problems(spec.name, data.inputs[spec.name])
    if recipe is not None and dict(recipe.preprocess) != dict(package.manifest.preprocess):
        problems.append("The package's preprocessing is not the recipe's: export again, or calibrate with --recipe.")
    if recipe is not None and recipe.samples is not None:
        problems += _unlike(data, recipe)
    there = stored(package)
    if there is not None and (stale := stale_parts(there, package, data)):
        problems.append(f"The stored calibration.json was made with other {' and '.join(stale)}.")
    return CalibrationReport(
        samples=data.count,
        source=data.source,
        median_shift=median,
        largest_shift=ordered[0][1] if ordered else None,
        moving=dict(ordered[:5]),
        duplicates=duplicates,
        problems=tuple(problems),
    )


def _shifts(model: onnx.ModelProto, data: CalibrationData, progress: Progress) -> dict[str, float]:
    if data.count < 2:
        return {}
    tensors = observed(model)
    whole = histograms(model, tensors, data, progress=progress)
    half = histograms(model, tensors, data.take(np.arange(0, data.count, 2)), progress=progress)
    out = {}
    for name, histogram in whole.items():
        wide, narrow = range_of(histogram, "minmax"), range_of(half[name], "minmax")
        width = wide.high - wide.low
        if width > 0:
            out[name] = 1 - (narrow.high - narrow.low) / width
    return out


def _duplicates(data: CalibrationData) -> int:
    seen = set()
    for i in range(data.count):
        row = take_samples(data.inputs, data.specs, i, i + 1, data.specs)
        seen.add(hashlib.sha256(b"".join(np.ascontiguousarray(v).tobytes() for v in row.values())).digest())
    return data.count - len(seen)


def _input_problems(name: str, values: Array) -> list[str]:
    if values.dtype.kind != "f" or values.size < 2:
        return []
    low, high = float(values.min()), float(values.max())
    if low == high:
        return [f"Input '{name}' is {low:g} everywhere."]
    at_high = float((values == high).mean())
    if at_high > _SATURATED:
        return [f"{100 * at_high:.0f} % of input '{name}' is at its largest value {high:.3g}: is it clipped?"]
    return []


def _unlike(data: CalibrationData, recipe: ModelSpec) -> list[str]:
    """Inputs whose level or spread is far from that of the recipe's samples: the wrong preprocessing, most often."""
    own = recipe.sample(1 if not data.specs[0].batched else min(16, data.count), 0)
    out = []
    for spec in data.specs:
        given, wanted = data.inputs[spec.name], own[spec.name]
        if given.dtype.kind != "f" or wanted.size < 2:
            continue
        spread = float(wanted.std()) or 1.0
        shift = abs(float(given.mean()) - float(wanted.mean())) / spread
        ratio = (float(given.std()) or 1e-9) / spread
        if shift > 1 or not 1 / 3 < ratio < 3:
            out.append(
                f"Input '{spec.name}' has mean {given.mean():.3g} and spread {given.std():.3g}; the recipe's samples "
                f"have {wanted.mean():.3g} and {wanted.std():.3g}. Is the preprocessing the recipe's?"
            )
    return out
