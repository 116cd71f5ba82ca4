"""Joules per correct prediction: what a right answer costs, so that a smaller model that errs more is not flattered."""

from __future__ import annotations

import math

import msgspec

from edgekit.bench.report import Correctness, Joules
from edgekit.manifest import Variant
from edgekit.package import Package
from edgekit.recipe import ModelSpec
from edgekit.runtime.session import Session
from edgekit.tensors import Feed, Tensors, sample_count

_RATES = ("top1", "top-1", "accuracy", "acc")
"""Names of metrics that are the share of right answers."""


def correctness_of(
    package: Package, variant: Variant, session: Session, recipe: ModelSpec | None, samples: int
) -> Correctness | str:
    """The share of right answers of a variant, measured with `recipe` or from the manifest; or why there is none.

    Raises:
        RecipeError: `evaluate` of the recipe fails.
    """
    if package.manifest.task != "classification":
        task = f"'{package.manifest.task}'" if package.manifest.task else "not stated"
        return f"the task is {task}, and only classification has right answers to count"
    if recipe is not None:
        counted = 0

        def run(feed: Feed) -> Tensors:
            nonlocal counted
            out = session.run(feed)
            counted += sample_count(feed, session.inputs)
            return out

        return _share(recipe.measure(run, samples), counted, "measured now")
    accuracy = variant.accuracy
    if accuracy is None or not accuracy.metrics or not accuracy.metric_samples:
        source = package.manifest.provenance.source
        return f"the accuracy of '{variant.id}' was not measured; pass --recipe {source}"
    return _share(accuracy.metrics, accuracy.metric_samples, "from the manifest")


def _share(metrics: dict[str, float], samples: int, origin: str) -> Correctness | str:
    name = next((n for n in metrics if n.lower() in _RATES), None)
    if name is None:
        known = ", ".join(metrics) or "none"
        return f"no metric is a share of right answers (top1 or accuracy; the recipe has: {known})"
    share = metrics[name]
    if not 0 < share <= 1 or samples < 1:
        return f"{name} is {share:.4g}; expected a share above 0 and at most 1"
    return Correctness(metric=name, share=share, samples=samples, origin=origin)


def with_correct(joules: Joules, correctness: Correctness, predictions: int) -> Joules:
    """`joules` with the cost of one right answer, for `predictions` in each inference.

    The relative errors of energy and share are independent, so their squares add; the share's is Wilson's interval
    (Wilson 1927), which stays above zero when every answer was right.
    """
    each_j = joules.joules_per_inference / predictions / correctness.share
    relative = math.hypot(
        joules.uncertainty_j / joules.joules_per_inference,
        _half_width(correctness.share, correctness.samples) / correctness.share,
    )
    return msgspec.structs.replace(joules, joules_per_correct=each_j, correct_uncertainty_j=each_j * relative)


def _half_width(share: float, samples: int) -> float:
    """Half of Wilson's 95 % interval of a share seen in `samples`."""
    z = 1.959964
    return z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + (z / (2 * samples)) ** 2)
