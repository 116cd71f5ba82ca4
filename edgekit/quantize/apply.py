"""`quantize`: a package in, the package with one more variant out."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import UsageError
from edgekit.graphs import load_model, save_model
from edgekit.manifest import Accuracy
from edgekit.package import Package
from edgekit.quantize.calibrate import Progress, quiet
from edgekit.quantize.data import CalibrationData, calibration_data
from edgekit.quantize.fp16 import half_model
from edgekit.quantize.judge import Judge
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import Method
from edgekit.quantize.report import Attempt, QuantizeReport
from edgekit.quantize.search import Found, best_int8
from edgekit.recipe import ModelSpec

if TYPE_CHECKING:
    import onnx

PRECISIONS = ("int8", "fp16")
DEFAULT_MAX_DROP = 0.5


@dataclass(frozen=True)
class Result:
    """The package with its new variant, and the report of how it came about."""

    package: Package
    report: QuantizeReport


def quantize_package(
    package: Package,
    *,
    precision: str = "int8",
    recipe: ModelSpec | None = None,
    calib: Path | None = None,
    samples: int | None = None,
    max_drop: float = DEFAULT_MAX_DROP,
    method: Method | None = None,
    force: bool = False,
    progress: Progress = quiet,
) -> Result:
    """Add the variant `precision` to `package`, in one transaction.

    `max_drop` is the largest loss in points (hundredths) of the recipe's first metric if there is a recipe that
    evaluates, else of top-1 agreement with the reference for classification, else of the output's power. A budget
    that cannot be met gives the best variant found, marked `over_budget` in its settings.

    Raises:
        UsageError: no calibration data, the variant exists and `force` is not given, or the model is quantised.
        CheckError: the model gives NaN on the calibration data.
        StorageError: the result cannot be written; the package is as before.
    """
    started = time.monotonic()
    if precision not in PRECISIONS:
        raise UsageError(f"Precision '{precision}' is not known; expected one of {', '.join(PRECISIONS)}.")
    if not 0 <= max_drop <= 100:
        raise UsageError(f"--max-drop {max_drop:g} is not usable; expected points from 0 to 100, for example 0.5.")
    if not force and any(v.id == precision for v in package.manifest.variants):
        raise UsageError(f"'{package.path.name}' has a variant '{precision}' already. Replace it with --force.")
    reference = package.reference
    if reference.precision != "fp32" or reference.format != "onnx":
        raise UsageError(f"'{package.path.name}' has no fp32 variant to start from. Export one first.")
    model = prepared(load_model(package.model_file(reference)))
    data = calibration_data(package, recipe=recipe, calib=calib, samples=samples)
    judge = Judge(package, model, data, recipe=recipe, budget=max_drop)
    found = _search(model, data, judge, precision, method, progress)
    return _committed(package, found, judge, data, precision, started)


def _search(
    model: onnx.ModelProto,
    data: CalibrationData,
    judge: Judge,
    precision: str,
    method: Method | None,
    progress: Progress,
) -> Found:
    if precision == "fp16":
        half = half_model(model)
        return Found(half, {}, [Attempt.of("fp16 throughout", judge.gap(half), kept=True)])
    return best_int8(model, data, judge, method=method, progress=progress)


def _committed(
    package: Package, found: Found, judge: Judge, data: CalibrationData, precision: str, started: float
) -> Result:
    verdict = judge.verdict(found.model)
    warnings = list(found.warnings)
    if data.count == 1:
        warnings.append("calibrated on one sample: ranges are a guess; give more with --calib or --samples")
    settings = {
        **found.settings,
        "calibration": {"source": data.source, "samples": data.count, "sha256": data.digest},
        "reference_sha256": package.reference.sha256,
        "drop": {"measure": judge.measure, "points": verdict.drop, "budget": judge.budget},
    }
    if not verdict.within:
        settings["over_budget"] = True
    accuracy = Accuracy(
        samples=judge.count,
        max_abs=verdict.gap.max_abs,
        cosine=verdict.gap.cosine,
        agreement=verdict.gap.agreement,
        metrics=verdict.metrics,
        metric_samples=judge.metric_samples if verdict.metrics else None,
    )
    file = f"{precision}.onnx"
    with package.edit() as writer:
        save_model(found.model, writer.path(file))
        variant = writer.variant_of(
            file,
            id=precision,
            precision=precision,
            format="onnx",
            target="any",
            accuracy=accuracy,
            settings=settings,
        )
        writer.put(variant)
        package = writer.commit()
    report = QuantizeReport(
        package=package.path.name,
        variant=precision,
        precision=precision,
        measure=judge.measure,
        reference=verdict.reference,
        result=verdict.value,
        drop=verdict.drop,
        budget=judge.budget,
        within_budget=verdict.within,
        calibrated_on=data.source,
        samples=data.count,
        bytes=variant.bytes,
        attempts=tuple(found.attempts),
        warnings=tuple(warnings),
        wall_s=time.monotonic() - started,
        peak_bytes=peak_bytes(),
    )
    return Result(package, report)


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
