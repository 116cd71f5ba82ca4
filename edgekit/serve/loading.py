"""From a package to a served model: opened, warmed, measured, and tested against its own samples."""

from __future__ import annotations

from dataclasses import replace

from edgekit.package import Package, Samples
from edgekit.runtime.select import Choice, choose, open_best
from edgekit.runtime.session import Session
from edgekit.serve.joining import Joiner
from edgekit.serve.model import Model, warm
from edgekit.serve.options import ModelOptions
from edgekit.serve.selftest import self_test
from edgekit.serve.warmup import Cost
from edgekit.serve.worker import INLINE_S
from edgekit.tensors import Feed

SMALL_MODEL_BYTES = 1_000_000
"""A model file below this is tried on one thread first: if a run is short, more threads only slow it down."""

PLATFORMS = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan", "tensorrt-rtx": "tensorrt_rtx"}


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
    session, choice, cost, max_rows = _open(package, options, samples)
    reason = choice.reason
    try:
        if samples is None:
            reason += "; not self-tested: the package has no samples"
        else:
            self_test(session, samples, precision=choice.variant.precision, name=package.path.name)
        return Model(
            session,
            name=package.name,
            version=package.manifest.version,
            reason=reason,
            platform=PLATFORMS.get(choice.variant.format, choice.variant.format),
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


def _open(package: Package, options: ModelOptions, samples: Samples | None) -> tuple[Session, Choice, Cost | None, int]:
    """The session with what was chosen, what a run of one of its samples costs, and how many rows to join."""

    def opened(threads: int | None) -> tuple[Session, Choice]:
        return open_best(package, variant=options.variant, threads=threads, device=options.device)

    def measured(session: Session, inputs: Feed) -> tuple[Cost, int]:
        joiner = Joiner(session.inputs, session.outputs, buckets=options.buckets, pad=options.pad)
        return warm(session, joiner, inputs, options)

    if samples is None:
        return *opened(options.threads), None, 1
    expected = choose(package, options.variant, device=options.device)
    one_first = options.threads is None and expected.device == "cpu" and expected.variant.bytes < SMALL_MODEL_BYTES
    session, choice = opened(1 if one_first else options.threads)
    try:
        cost, max_rows = measured(session, samples.inputs)
        if one_first and cost.latency_s > INLINE_S:
            session.close()
            session, choice = opened(None)
            cost, max_rows = measured(session, samples.inputs)
    except BaseException:
        session.close()
        raise
    return session, choice, cost, max_rows
