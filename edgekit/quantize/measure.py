"""How far a rewritten model is from the float one: measured by running both, never estimated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.errors import RecipeError
from edgekit.quantize.calibrate import MAX_ROWS, model_session
from edgekit.quantize.data import CalibrationData
from edgekit.recipe import ModelSpec, Runner, call_recipe
from edgekit.tensors import Array, Tensors, run_in_batches

if TYPE_CHECKING:
    import onnx

EVALUATION_SAMPLES = 2000
STEADY = 1e-3
"""Outputs that vary by less than this share of their power are judged as if they varied by so much."""

_FEWEST_ROWS = 4


@dataclass(frozen=True, slots=True)
class Gap:
    """One model's outputs against the float model's on the same inputs.

    Attributes:
        error: power of the difference over the power of what varies in the float output from row to row, mean over
            outputs (0 is equal). Boxes around fixed anchors, for one, hardly vary: their error is not hidden.
        max_abs: largest absolute difference.
        cosine: smallest cosine similarity of an output.
        agreement: share of samples with the same top-1 class, for classification.
    """

    error: float
    max_abs: float
    cosine: float
    agreement: float | None


def outputs_of(
    model: onnx.ModelProto, data: CalibrationData, *, threads: int | None = None, literal: bool = False
) -> Tensors:
    """All outputs of `model` on `data`; `literal` as for `model_session`."""
    with model_session(model, threads=threads, literal=literal) as session:
        return run_in_batches(session.run, data.inputs, inputs=session.inputs, outputs=session.outputs, size=MAX_ROWS)


def gap(reference: Mapping[str, Array], got: Mapping[str, Array], *, classes: bool) -> Gap:
    """The difference of two sets of outputs; with `classes` the first is read as class scores."""
    errors, peak, cosine = [0.0], 0.0, 1.0
    for name, wanted in reference.items():
        if wanted.dtype.kind != "f" or not wanted.size:
            continue
        a, b = wanted.astype(np.float64).ravel(), got[name].astype(np.float64).ravel()
        sound = np.isfinite(a)
        if not np.isfinite(b[sound]).all():
            return Gap(math.inf, math.inf, 0.0, 0.0 if classes else None)
        varied = _variation(wanted)
        a, b = a[sound], b[sound]
        power = float(a @ a) or 1e-30
        errors.append(float((a - b) @ (a - b)) / max(varied, STEADY * power))
        peak = max(peak, float(np.abs(a - b).max(initial=0.0)))
        cosine = min(cosine, float(a @ b) / math.sqrt(power * (float(b @ b) or 1e-30)) if a.any() else 1.0)
    agreement = None
    if classes:
        first = next(iter(reference))
        agreement = float((classes_of(reference[first]) == classes_of(got[first])).mean())
    return Gap(sum(errors) / max(1, len(errors) - 1), peak, cosine, agreement)


def _variation(values: Array) -> float:
    """Power of `values` about their mean over rows; of all values where there are too few rows to tell."""
    flat = values.reshape(len(values), -1).astype(np.float64) if values.ndim else values.reshape(1, 1)
    flat = np.where(np.isfinite(flat), flat, 0.0)
    if len(flat) < _FEWEST_ROWS:
        return float((flat**2).sum())
    return float(((flat - flat.mean(axis=0)) ** 2).sum())


def classes_of(scores: Array) -> Array:
    """Best class of each row of (rows, ..., classes) scores."""
    return np.asarray(scores.reshape(len(scores), -1).argmax(axis=1))


def metrics_of(recipe: ModelSpec, run: Runner, *, samples: int = EVALUATION_SAMPLES) -> dict[str, float]:
    """The recipe's own metrics through `run`. Raises RecipeError if it fails or gives none."""
    evaluate = recipe.evaluate
    if evaluate is None:
        return {}
    found = call_recipe(f"evaluate of recipe '{recipe.name}'", lambda: evaluate(run, samples))
    if not isinstance(found, Mapping) or not found:
        raise RecipeError(f"evaluate of recipe '{recipe.name}' must return a dictionary of metric -> value.")
    return {str(k): float(v) for k, v in found.items()}
