"""The judge of a quantised model: its outputs beside the float model's, and the metric that the budget is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgekit.package import Package
from edgekit.quantize.calibrate import model_session
from edgekit.quantize.data import CalibrationData
from edgekit.quantize.measure import EVALUATION_SAMPLES, Gap, gap, metrics_of, outputs_of
from edgekit.recipe import ModelSpec
from edgekit.tensors import Tensors

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True)
class Verdict:
    """A model judged: `drop` points lost of the measure, `within` its budget."""

    gap: Gap
    metrics: dict[str, float]
    reference: float
    value: float
    drop: float
    within: bool


class Judge:
    """Compares models with the float one on the same rows. The float model runs once.

    `measure` names what the budget is about: the recipe's first metric, "top-1 agreement" or "output error".
    """

    def __init__(
        self,
        package: Package,
        model: onnx.ModelProto,
        data: CalibrationData,
        *,
        recipe: ModelSpec | None,
        budget: float,
    ) -> None:
        self.budget = budget
        self.count = data.count
        self.metric_samples = EVALUATION_SAMPLES
        self.classes = package.manifest.task == "classification"
        self._higher = package.manifest.higher_is_better
        self._recipe = recipe if recipe is not None and recipe.evaluate is not None else None
        self._data = data
        self._rows = data.split()[1]
        self._model = model
        self._whole = outputs_of(model, data)
        self._reference = outputs_of(model, self._rows) if self._rows is not data else self._whole
        self._first: dict[int, Tensors] = {}
        self._baseline = self._metrics(model)
        self.measure = next(iter(self._baseline), "top-1 agreement" if self.classes else "output error")
        if self.measure == "output error":  # rows that calibrated would flatter it; classes need all to be told apart
            self._data, self._whole = self._rows, self._reference
            self.count = self._rows.count

    def gap(self, model: onnx.ModelProto, *, literal: bool = False, most: int | None = None) -> Gap:
        """How far `model` is from the float one on the rows kept for judging, or on the first `most` of them."""
        rows, reference = self._rows, self._reference
        if most is not None and rows.batched and most < rows.count:
            rows = rows.take(np.arange(most))
            if most not in self._first:
                self._first[most] = outputs_of(self._model, rows)
            reference = self._first[most]
        return gap(reference, outputs_of(model, rows, literal=literal), classes=self.classes)

    def may_pass(self, found: Gap) -> bool:
        """Whether a model with this gap may be within the budget: what cannot, need not run on all rows.

        The rows kept for judging are the harder ones, since the others calibrate.
        """
        if self._recipe is not None:
            return True
        if found.agreement is not None:
            wrong = (1 - found.agreement) * self._rows.count
            return 100 * wrong <= self.budget * self.count + 1e-6
        return 100 * found.error <= self.budget

    def verdict(self, model: onnx.ModelProto, *, literal: bool = False) -> Verdict:
        """`model` on the recipe's metric and on all rows, or, where the budget is about the output's error, on those
        kept for judging; `literal` as for `model_session`.
        """
        found = gap(self._whole, outputs_of(model, self._data, literal=literal), classes=self.classes)
        metrics = self._metrics(model, literal=literal)
        if metrics:
            before, after = self._baseline[self.measure], metrics[self.measure]
            drop = 100 * (before - after if self._higher else after - before)
        elif found.agreement is not None:
            before, after = 1.0, found.agreement
            drop = 100 * (before - after)
        else:
            before, after = 0.0, found.error
            drop = 100 * after
        return Verdict(found, metrics, before, after, drop, drop <= self.budget + 1e-9)

    def _metrics(self, model: onnx.ModelProto, *, literal: bool = False) -> dict[str, float]:
        if self._recipe is None:
            return {}
        with model_session(model, literal=literal) as session:
            return metrics_of(self._recipe, session.run, samples=self.metric_samples)
