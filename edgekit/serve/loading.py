"""From a package to a served model: opened, warmed, measured, and tested against its own samples."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit.errors import SignatureError
from edgekit.package import Package, Samples
from edgekit.runtime.devices import parse_devices
from edgekit.runtime.placed import Opened, open_placed
from edgekit.runtime.select import choose
from edgekit.runtime.session import Session
from edgekit.serve.joining import Joiner
from edgekit.serve.model import Model, warm
from edgekit.serve.options import ModelOptions
from edgekit.serve.selftest import MAX_ERROR, self_test
from edgekit.serve.warmup import INLINE_S, Cost
from edgekit.tensors import Feed

if TYPE_CHECKING:
    from edgekit.signature import TrustedKeys

SMALL_MODEL_BYTES = 1_000_000
"""A model file below this is tried on one thread first: if a run is short, more threads only slow it down."""

PLATFORMS = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan", "tensorrt-rtx": "tensorrt_rtx"}


def opened(path: Path, trust: TrustedKeys | None) -> Package:
    """The package at `path`; with `trust`, one that a key of it signed, exactly as it is.

    Raises:
        PackageError, IntegrityError: see `Package.open`.
        SignatureError: see `TrustedKeys.check`.
    """
    package = Package.open(path)
    if trust is not None:
        trust.check(package)
    return package


def refuse_if_signed_only(path: Path, trust: TrustedKeys | None) -> None:
    """Raise SignatureError if what is served must be signed: the pipeline file at `path` cannot be."""
    if trust is not None:
        raise SignatureError(
            f"'{path.name}' is a file without a signature, and this server takes signed packages only. "
            "Export the models as one package of stages, which can be signed, or leave the pipeline out."
        )


def model_from_package(package: Package, *, options: ModelOptions | None = None) -> Model:
    """Open the best variant of `package` (or the one of `options`), warm it and test it against the package's samples.

    Raises:
        UsageError: no such variant, or none that runs here; or options that do not fit the model.
        IntegrityError: a file of the package changed.
        CheckError: the model's outputs are far from the stored ones.
    """
    options = options or ModelOptions()
    samples = package.samples() if package.manifest.samples is not None else None
    if samples is not None:
        samples = replace(samples, inputs={**package.defaults(), **samples.inputs})
    opened, cost, max_rows = _open(package, options, samples)
    session, choices = opened.session, [choice for _, choice in opened.choices]
    reason = "; ".join(dict.fromkeys(choice.reason for choice in choices))
    try:
        if samples is None:
            reason += "; not self-tested: the package has no samples"
        else:
            coarsest = max((c.variant.precision for c in choices), key=lambda p: MAX_ERROR.get(p, math.inf))
            self_test(session, samples, precision=coarsest, name=package.path.name)
        return Model(
            session,
            name=package.name,
            version=package.manifest.version,
            reason=reason,
            platform=PLATFORMS.get(choices[0].variant.format, choices[0].variant.format),
            labels=package.labels(),
            defaults=package.defaults(),
            states=package.manifest.states,
            preprocess=package.manifest.preprocess,
            task=package.manifest.task,
            cost=cost,
            max_rows=max_rows,
            options=options,
            path=package.path,
        )
    except BaseException:
        session.close()
        raise


def _open(package: Package, options: ModelOptions, samples: Samples | None) -> tuple[Opened, Cost | None, int]:
    """The session with what was chosen, what a run of one of its samples costs, and how many rows to join."""

    def placed(threads: int | None) -> Opened:
        devices = parse_devices(options.device) if options.device else ()
        return open_placed(package, variant=options.variant, threads=threads, devices=devices, split=options.split)

    def measured(session: Session, inputs: Feed) -> tuple[Cost, int]:
        joiner = Joiner(session.inputs, session.outputs, buckets=options.buckets, pad=options.pad)
        return warm(session, joiner, inputs, options)

    if samples is None:
        return placed(options.threads), None, 1
    one_first = options.threads is None and _size(package, options) < SMALL_MODEL_BYTES
    found = placed(1 if one_first else options.threads)
    try:
        cost, max_rows = measured(found.session, samples.inputs)
        if one_first and cost.latency_s > INLINE_S:
            found.session.close()
            found = placed(None)
            cost, max_rows = measured(found.session, samples.inputs)
    except BaseException:
        found.session.close()
        raise
    return found, cost, max_rows


def _size(package: Package, options: ModelOptions) -> int:
    """Bytes of the models that will run."""
    if package.stage_names:
        return sum(_size(stage, options) for _, stage in package.stages())
    return choose(package, options.variant).variant.bytes
