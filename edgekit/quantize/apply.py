"""`quantize`: a package in, the package with more variants out."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.errors import UsageError
from edgekit.graphs import load_model, save_model
from edgekit.manifest import Accuracy, Variant
from edgekit.package import CALIBRATION, Package
from edgekit.quantize.calibrate import Progress, quiet
from edgekit.quantize.data import CalibrationData, calibration_data
from edgekit.quantize.judge import Judge, Verdict
from edgekit.quantize.make import PRECISIONS, Made, Options, make
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import Method
from edgekit.quantize.report import QuantizeReport, VariantResult
from edgekit.quantize.sensitivity import sensitivity_png
from edgekit.quantize.store import stale_parts, stored
from edgekit.recipe import ModelSpec

DEFAULT_MAX_DROP = 0.5


@dataclass(frozen=True)
class Result:
    """The package with its new variants, and the report of how they came about."""

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
    plain: bool = False,
    sensitivity: bool = False,
    half_io: bool = False,
    force: bool = False,
    progress: Progress = quiet,
) -> Result:
    """Add the variants of `precision` to `package`, in one transaction; "int8" also gives "int8-trt".

    Args:
        package: what to add to; it is not changed, the result is a new `Package` on the same path.
        precision: one of `make.PRECISIONS`.
        recipe: its samples calibrate (unless `calib` is given), its `evaluate` judges.
        calib: a folder of files for the package's preprocessing, or an .npz.
        samples: how many rows to calibrate on.
        max_drop: the largest loss in points (hundredths) of the recipe's first metric if there is a recipe that
            evaluates, else of top-1 agreement with the reference for classification, else of the output's power. A
            budget that cannot be met gives the best variant found, marked `over_budget` in its settings.
        method: how ranges are taken; None chooses by measurement.
        plain: only ranges and rounding, no accuracy recovery.
        sensitivity: measure each layer alone in INT8: `reports/sensitivity.json` and `.png`.
        half_io: float16 instead of float32 inputs and outputs, for "fp16" and for "int8-trt".
        force: replace variants that exist.
        progress: told how far each step is.

    Raises:
        UsageError: no calibration data, a variant exists and `force` is not given, or the model is quantised.
        CheckError: the model gives NaN on the calibration data.
        StorageError: the result cannot be written; the package is as before.
    """
    started = time.monotonic()
    _check(package, precision, max_drop, force, half_io)
    model = prepared(load_model(package.model_file(package.reference)))
    data = calibration_data(package, recipe=recipe, calib=calib, samples=samples)
    stale = _stale(package, data)
    judge = Judge(package, model, data, recipe=recipe, budget=max_drop)
    options = Options(method=method, plain=plain, sensitivity=sensitivity, half_io=half_io)
    made = make(package, model, data, judge, precision=precision, options=options, progress=progress)
    verdicts = [v.verdict or judge.verdict(v.model, literal=v.literal) for v in made.variants]
    package, variants = _committed(package, made, verdicts, judge, data)
    if made.layers:
        document = {"package": package.path.name, "layers": made.layers}
        _report(package, document, made)
    first = verdicts[0]
    report = QuantizeReport(
        package=package.path.name,
        variant=variants[0].id,
        precision=precision,
        measure=judge.measure,
        reference=first.reference,
        result=first.value,
        drop=first.drop,
        budget=judge.budget,
        within_budget=all(v.within for v in verdicts),
        calibrated_on=data.source,
        samples=data.count,
        bytes=variants[0].bytes,
        variants=tuple(_result(v, d) for v, d in zip(variants, verdicts)),
        layers=tuple(made.layers),
        attempts=tuple(made.attempts),
        warnings=(*stale, *_data_warnings(data), *made.warnings),
        wall_s=time.monotonic() - started,
        peak_bytes=peak_bytes(),
    )
    return Result(package, report)


def _check(package: Package, precision: str, max_drop: float, force: bool, half_io: bool) -> None:
    if precision not in PRECISIONS:
        raise UsageError(f"Precision '{precision}' is not known; expected one of {', '.join(PRECISIONS)}.")
    if not 0 <= max_drop <= 100:
        raise UsageError(f"--max-drop {max_drop:g} is not usable; expected points from 0 to 100, for example 0.5.")
    if half_io and precision not in ("fp16", "int8"):
        raise UsageError(
            f"--half-io is for fp16 and int8 (its int8-trt form), not for {precision}, whose inputs and outputs stay "
            "float32. Leave it out, or use --precision fp16."
        )
    there = {v.id for v in package.manifest.variants}
    for made in PRECISIONS[precision]:
        if made in there and not force:
            raise UsageError(f"'{package.path.name}' has a variant '{made}' already. Replace it with --force.")
    reference = package.reference
    if reference.precision != "fp32" or reference.format != "onnx":
        raise UsageError(f"'{package.path.name}' has no fp32 variant to start from. Export one first.")


def _stale(package: Package, data: CalibrationData) -> list[str]:
    """Why the calibration that the package holds is not used again, if it holds one of something else."""
    there = stored(package)
    changed = stale_parts(there, package, data) if there is not None else []
    if not changed:
        return []
    return [f"the calibration.json there was made with other {' and '.join(changed)}: it was not used, and is replaced"]


def _data_warnings(data: CalibrationData) -> list[str]:
    if data.count > 1:
        return []
    return ["calibrated on one sample: ranges are a guess; give more with --calib or --samples"]


def _committed(
    package: Package, made: Made, verdicts: Sequence[Verdict], judge: Judge, data: CalibrationData
) -> tuple[Package, list[Variant]]:
    variants = []
    with package.edit() as writer:
        for found, verdict in zip(made.variants, verdicts):
            settings = {
                **found.settings,
                "calibration": {"source": data.source, "samples": data.count, "sha256": data.digest},
                "reference_sha256": package.reference.sha256,
                "drop": {"measure": judge.measure, "points": verdict.drop, "budget": judge.budget},
            }
            if not verdict.within:
                settings["over_budget"] = True
            file = f"{found.id}.onnx"
            save_model(found.model, writer.path(file))
            variants.append(
                writer.variant_of(
                    file,
                    id=found.id,
                    precision=found.id,
                    format="onnx",
                    target="any",
                    accuracy=_accuracy(verdict, judge),
                    settings=settings,
                )
            )
            writer.put(variants[-1])
        if made.calibration is not None:
            writer.write(CALIBRATION, made.calibration)
        return writer.commit(), variants


def _accuracy(verdict: Verdict, judge: Judge) -> Accuracy:
    return Accuracy(
        samples=judge.count,
        max_abs=verdict.gap.max_abs,
        cosine=verdict.gap.cosine,
        agreement=verdict.gap.agreement,
        metrics=verdict.metrics,
        metric_samples=judge.metric_samples if verdict.metrics else None,
    )


def _result(variant: Variant, verdict: Verdict) -> VariantResult:
    return VariantResult(
        id=variant.id,
        bytes=variant.bytes,
        result=verdict.value,
        drop=verdict.drop,
        agreement=verdict.gap.agreement,
        error=verdict.gap.error,
        within_budget=verdict.within,
        speed_up=variant.settings.get("speed_up"),
    )


def _report(package: Package, document: object, made: Made) -> None:
    import msgspec

    package.write_report("sensitivity.json", msgspec.json.format(msgspec.json.encode(document), indent=2))
    package.write_report("sensitivity.png", sensitivity_png(made.layers))


def peak_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
