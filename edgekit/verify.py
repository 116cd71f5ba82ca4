"""Every variant against the reference: tensors, classes, and the recipe's own metric."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np

from edgekit.errors import EdgekitError, PackageError
from edgekit.manifest import Variant
from edgekit.package import Package, Samples
from edgekit.recipe import ModelSpec
from edgekit.runtime.placed import open_placed
from edgekit.runtime.select import not_runnable, open_session
from edgekit.runtime.session import Session
from edgekit.runtime.whole import BEST, whole_variants
from edgekit.tensors import Array, Tensors, run_in_batches


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a variant of one precision may differ by.

    `max_rel` is relative to the largest output; `cosine` and `agreement` are the least allowed; `drop` is the
    largest loss of the recipe's metric in points (hundredths).
    """

    max_rel: float | None = None
    cosine: float
    agreement: float
    drop: float


LIMITS: Mapping[str, Limits] = {
    "fp32": Limits(max_rel=1e-3, cosine=0.99999, agreement=0.999, drop=0.1),
    "fp16": Limits(cosine=0.999, agreement=0.99, drop=0.2),
    "bf16": Limits(cosine=0.99, agreement=0.98, drop=0.5),
    "int8": Limits(cosine=0.98, agreement=0.97, drop=1.0),
}
"""Defaults by precision; a recipe's `tolerance` replaces `drop`. Precisions not listed are held to those of int8."""


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One set of outputs against the reference's, over all outputs.

    Attributes:
        max_abs: largest absolute difference.
        max_rel: `max_abs` of each output divided by its largest reference magnitude; the largest of them.
        cosine: smallest cosine similarity of an output, flattened.
        agreement: share of samples with the same top-1 class; None when the task is not classification.
        disagreements: the number of samples with another class.
        not_finite: outputs with NaN or infinity where the reference has none.
    """

    max_abs: float
    max_rel: float
    cosine: float
    agreement: float | None = None
    disagreements: int = 0
    not_finite: tuple[str, ...] = ()


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One variant's result. `passed` is False with `reason` when it is outside `limits` or could not run."""

    variant: str
    precision: str
    passed: bool
    reason: str
    limits: Limits
    difference: Difference | None = None
    metrics: dict[str, float] = {}
    drop: float | None = None


class VerifyReport(msgspec.Struct, frozen=True, kw_only=True):
    """All checks, and what they were made on. `skipped` maps a variant to why this machine did not run it.

    `signed_by`: fingerprint of the trusted key whose signature was checked; None where none was asked for.
    """

    package: str
    samples: int
    samples_source: str
    metric: str | None
    metric_note: str
    checks: tuple[Check, ...]
    skipped: dict[str, str]
    signed_by: str | None = None

    @property
    def passed(self) -> bool:
        """Whether a variant ran, and every one that did is within its tolerance."""
        return bool(self.checks) and all(c.passed for c in self.checks)


def verify(
    package: Package,
    *,
    recipe: ModelSpec | None = None,
    variants: Sequence[str] | None = None,
    metric_samples: int = 2000,
    threads: int | None = None,
    device: str | None = None,
) -> VerifyReport:
    """Run every variant that this machine (or its `device`) can run on the package's samples and compare with the
    stored reference.

    `variants` names those to run in place of all that can. With `recipe`, its `evaluate` runs through each variant too.
    Of a package of stages every stage is checked, its variants called "STAGE/VARIANT", and then the whole in every
    form that all stages have ("all stages/VARIANT"), and with the best variant of each ("all stages/best") where they
    differ; `recipe` is then one of the whole. Needs neither torch nor onnx.

    Raises:
        UsageError: no such device or variant.
        PackageError: the package holds no samples.
        IntegrityError: a file of the package changed.
        RecipeError: `evaluate` raised or gave no metric.
    """
    if package.stage_names:
        return _verify_stages(package, recipe, variants, metric_samples, threads, device)
    samples = package.samples()
    against = not_runnable(package, device=device)
    wanted = [package.variant(v) for v in variants] if variants else list(package.manifest.variants)
    checks: list[Check] = []
    skipped: dict[str, str] = {}
    baseline: dict[str, float] = {}
    for variant in sorted(wanted, key=lambda v: v.id != package.reference.id):
        if variant.id in against and not variants:  # one that is named is run, or refused with an error
            skipped[variant.id] = against[variant.id]
            continue
        with open_session(package, variant=variant.id, threads=threads, device=device) as session:
            metrics = recipe.measure(session.run, metric_samples) if recipe is not None else {}
            if variant.id == package.reference.id:
                baseline = metrics
            checks.append(check(package, variant, session, samples, metrics, baseline))
    return VerifyReport(
        package=package.path.name,
        samples=samples.count,
        samples_source=samples.source,
        metric=next(iter(baseline), None),
        metric_note=_metric_note(package, recipe),
        checks=tuple(checks),
        skipped=skipped,
    )


def _metric_note(package: Package, recipe: ModelSpec | None) -> str:
    """Why there is no metric; empty where there is one."""
    if recipe is None:
        return f"the recipe's metric was not measured; pass --recipe {package.manifest.provenance.source}"
    return "" if recipe.evaluate is not None else f"recipe '{recipe.name}' has no evaluate, so there is no metric"


def _verify_stages(
    package: Package,
    recipe: ModelSpec | None,
    variants: Sequence[str] | None,
    metric_samples: int,
    threads: int | None,
    device: str | None,
) -> VerifyReport:
    samples = package.samples()
    checks: list[Check] = []
    skipped: dict[str, str] = {}
    for stage, own in package.stages():
        found = verify(own, variants=variants, threads=threads, device=device)
        checks += [msgspec.structs.replace(c, variant=f"{stage.name}/{c.variant}") for c in found.checks]
        skipped.update({f"{stage.name}/{v}": why for v, why in found.skipped.items()})
    baseline: dict[str, float] = {}
    forms = whole_variants(package, variants, device)
    for form in sorted(forms, key=lambda v: v.precision != "fp32"):  # the first gives the baseline
        named = None if form.id == BEST else form.id
        with open_placed(package, variant=named, threads=threads, devices=(device,) if device else ()).session as whole:
            metrics = recipe.measure(whole.run, metric_samples) if recipe is not None else {}
            baseline = baseline or metrics
            precision = min(form.precision.split(" + "), key=lambda p: limits_for(p, {}).cosine)
            judged = msgspec.structs.replace(form, id=f"all stages/{form.id}", precision=precision)
            checks.append(check(package, judged, whole, samples, metrics, baseline, recipe))
    return VerifyReport(
        package=package.path.name,
        samples=samples.count,
        samples_source=samples.source,
        metric=next(iter(baseline), None),
        metric_note="" if recipe is None else _metric_note(package, recipe),
        checks=tuple(checks),
        skipped=skipped,
    )


def check(
    package: Package,
    variant: Variant,
    session: Session,
    samples: Samples,
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
    recipe: ModelSpec | None = None,
) -> Check:
    """Judge one open variant: differences on `samples`, and `metrics` against the reference's `baseline`.

    How much a metric may fall, and which way is down, the package tells, or `recipe` if it is given.
    """
    manifest = package.manifest
    rules = manifest if recipe is None else recipe
    limits = limits_for(variant.precision, rules.tolerance)
    name = next(iter(baseline), None)
    drop = None
    if name is not None and name in metrics:
        loss = baseline[name] - metrics[name] if rules.higher_is_better else metrics[name] - baseline[name]
        drop = 100 * loss
    try:
        got = run_in_batches(session.run, samples.inputs, inputs=session.inputs, outputs=session.outputs)
    except EdgekitError as error:
        return Check(variant=variant.id, precision=variant.precision, passed=False, reason=str(error), limits=limits)
    found = difference(got, samples.outputs, classes=manifest.task == "classification")
    reason = _verdict(found, limits, samples.count, drop, decides=_decides(samples.outputs))
    return Check(
        variant=variant.id,
        precision=variant.precision,
        passed=not reason,
        reason=reason or "within tolerance",
        limits=limits,
        difference=found,
        metrics=dict(metrics),
        drop=drop,
    )


def limits_for(precision: str, tolerance: Mapping[str, float]) -> Limits:
    """The limits of `precision`, with the recipe's tolerance (points of its metric) if it gives one."""
    family = precision if precision in LIMITS else "int8"
    limits = LIMITS[family]
    drop = tolerance.get(precision, tolerance.get(family))
    return limits if drop is None else msgspec.structs.replace(limits, drop=drop)


def difference(got: Tensors, reference: Tensors, *, classes: bool) -> Difference:
    """How far `got` is from `reference`; with `classes` the first output is read as class scores.

    Raises:
        PackageError: an output is missing or has another shape.
    """
    max_abs = max_rel = 0.0
    cosine = 1.0
    broken = []
    for name, wanted in reference.items():
        if name not in got or got[name].shape != wanted.shape:
            shape = got[name].shape if name in got else "nothing"
            raise PackageError(f"Output '{name}': got {shape}, the reference has {wanted.shape}.")
        a, b = got[name].astype(np.float64), wanted.astype(np.float64)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            broken.append(name)
            max_abs = max_rel = math.inf
            cosine = 0.0
            continue
        a, b = a[np.isfinite(b)], b[np.isfinite(b)]
        if not b.size:
            continue
        gap = float(np.abs(a - b).max())
        max_abs = max(max_abs, gap)
        max_rel = max(max_rel, gap / (float(np.abs(b).max()) or 1.0))
        cosine = min(cosine, _cosine(a, b))
    agreement, wrong = None, 0
    first = next(iter(reference), None)
    if classes and first is not None and not broken:
        same = top1(got[first]) == top1(reference[first])
        agreement, wrong = float(same.mean()), int((~same).sum())
    return Difference(
        max_abs=max_abs,
        max_rel=max_rel,
        cosine=cosine,
        agreement=agreement,
        disagreements=wrong,
        not_finite=tuple(broken),
    )


def top1(scores: Array) -> Array:
    """The best class of each row; (n, classes) with any trailing dimensions of one, as (n, 1000, 1, 1)."""
    return np.asarray(scores.reshape(len(scores), -1).argmax(axis=1))


def _cosine(a: Array, b: Array) -> float:
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.dot(a.ravel(), b.ravel())) / norms


def _decides(outputs: Tensors) -> bool:
    """Whether a model decides in its graph, as a detector with its suppression does: outputs that are whole numbers say
    so. One decision that falls the other way moves rows of all outputs."""
    return any(a.dtype.kind in "iub" for a in outputs.values()) and any(a.dtype.kind == "f" for a in outputs.values())


def _verdict(found: Difference, limits: Limits, samples: int, drop: float | None, *, decides: bool) -> str:
    """Why a variant fails, or an empty string. Where the model decides, a metric that was measured tells more than the
    angle between outputs, which is then left to the reference's own precision."""
    if found.not_finite:
        return f"output '{found.not_finite[0]}' holds NaN or infinity where the reference does not"
    if limits.max_rel is not None and found.max_rel > limits.max_rel:
        return f"relative error {found.max_rel:.2g} is over {limits.max_rel:g}"
    judged = limits.max_rel is None and drop is not None and decides
    if found.cosine < limits.cosine and not judged:
        return f"cosine {found.cosine:.5f} is under {limits.cosine:g}"
    allowed = max(1, math.floor((1 - limits.agreement) * samples))  # one sample may sit on a boundary
    if found.agreement is not None and found.disagreements > allowed:
        return f"{found.disagreements} of {samples} samples change class; at most {allowed} may"
    if drop is not None and drop > limits.drop + 1e-9:
        return f"the metric falls by {drop:.2f} points; at most {limits.drop:g} are allowed"
    return ""
