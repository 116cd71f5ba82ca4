"""`export`: the whole way from a source to a checked package."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from edgekit import __version__
from edgekit._lazy import require
from edgekit.errors import BackendError, CheckError, ModelError, UsageError
from edgekit.export import parity
from edgekit.export.declared import Declared, check_labels
from edgekit.export.routes import Candidate, Options, candidate_from_pt2, candidate_from_torch, candidates_from_onnx
from edgekit.export.samples import affordable_rows
from edgekit.export.source import Source, built, read_source
from edgekit.graphs import EXTERNAL_BYTES, opset_of, precision_of, save_model
from edgekit.manifest import SCHEMA, Accuracy, Manifest, Parity, Provenance, SampleSet, Tensor
from edgekit.package import LABELS, Package, PackageWriter, create, sha256_of
from edgekit.recipe import ModelSpec, check_name
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import Feed, Tensors, TensorSpec, run_in_batches, sample_count

METRIC_SAMPLES = 2000
"""Held-out samples on which a recipe's metric is measured."""


def export(
    source: str | Path | ModelSpec,
    *,
    output: str | Path | None = None,
    force: bool = False,
    declared: Declared | None = None,
    inputs: Sequence[TensorSpec] = (),
    samples: Path | None = None,
    opset: int | None = None,
    tolerance: float | None = None,
    static: bool = False,
    dynamic_batch: bool = False,
    external_bytes: int = EXTERNAL_BYTES,
    note: Callable[[str], None] = lambda _text: None,
) -> Package:
    """Make a package from a recipe, `module:factory`, `.pt2` or `.onnx`, checked against the original.

    Args:
        source: what to export; a recipe's Python is executed.
        output: the package to make, NAME.edge; None takes the model's name in the current folder.
        force: replace a package that is there.
        declared: name, task, labels and preprocessing, over the recipe's.
        inputs: inputs of a bare `torch.nn.Module`.
        samples: real inputs (.npz, .npy, or a folder of files), over the recipe's.
        opset: ONNX operator set; None lets edgekit choose.
        tolerance: largest accepted difference relative to the largest output; None chooses by precision.
        static: fix every named dimension (the batch to 1).
        dynamic_batch: make an ONNX file's batch, fixed at 1, free.
        external_bytes: models with more weights than this keep them in a file of their own.
        note: called with a line about each step.

    Raises:
        UsageError: the request cannot be carried out: existing output, unreadable files, a recipe that fails.
        ModelError: the model cannot be carried to ONNX.
        CheckError: the exported model differs from the original, or gives NaN or infinity.
        StorageError: the package cannot be written; nothing is left behind.
    """
    declared = declared or Declared()
    options = Options(opset=opset, static=static, dynamic_batch=dynamic_batch, samples=samples, limit=external_bytes)
    with contextlib.ExitStack() as stack:
        # the output is opened before anything slow, or anything of the recipe, runs
        writer = stack.enter_context(create(output, force=force)) if output is not None else None
        found = read_source(source, inputs)
        if writer is None:
            name = check_name(declared.name or (found.spec.name if found.spec else found.name))
            writer = stack.enter_context(create(f"{name}.edge", force=force))
        best: _Checked | None = None
        reasons: list[str] = []
        candidates = _candidates(found, declared, options, note)
        while best is None:
            candidate = next(candidates)
            try:
                best = _check(writer, candidate, tolerance, external_bytes, note)
            except (CheckError, ModelError, BackendError) as error:
                if not candidate.converted:
                    raise
                note("the converted model differs; keeping the original operator set")
                reasons.append(f"kept in its operator set: the converted model did not pass ({error})")
        return _commit(writer, found, best, reasons, note)


def _candidates(
    found: Source, declared: Declared, options: Options, note: Callable[[str], None]
) -> Iterator[Candidate]:
    """Ways to carry the source to ONNX, best first."""
    if found.kind != "torch" and declared.frame is not None:
        raise UsageError(
            f"--with-preprocess needs a recipe that builds a torch.nn.Module, and {found.file.name} is none."
        )
    if found.kind == "onnx":
        yield from candidates_from_onnx(found.file, found, options, note, declared.over)
        return
    if options.dynamic_batch and found.kind != "torch":
        raise UsageError("--dynamic-batch is for .onnx files; a program has the dimensions it was exported with.")
    if found.kind == "pt2":
        yield candidate_from_pt2(found.file, options, note, found.name, declared.over)
        return
    assert found.spec is not None
    spec = declared.over(found.spec)
    note(f"building {spec.name}")
    model = built(spec)
    if isinstance(model, Path):
        own = dataclasses.replace(found, spec=spec)
        yield from candidates_from_onnx(model, own, options, note, lambda s: s)
        return
    if options.dynamic_batch:
        raise UsageError("--dynamic-batch is for .onnx files; name the dimension in the recipe's inputs instead.")
    yield candidate_from_torch(model, spec, options, note)


@dataclasses.dataclass(frozen=True)
class _Checked:
    """A candidate that passed, written to the stage as `file`."""

    candidate: Candidate
    file: str
    precision: str
    parity: tuple[Parity, ...]
    accuracy: Accuracy
    inputs: Tensors
    outputs: Tensors
    opset: int


def _check(
    writer: PackageWriter,
    candidate: Candidate,
    tolerance: float | None,
    external_bytes: int,
    note: Callable[[str], None],
) -> _Checked:
    """Write the candidate, run it in ONNX Runtime beside the original, and compare."""
    spec, inputs, outputs = candidate.spec, candidate.spec.inputs, candidate.outputs
    precision = precision_of(candidate.model)
    file = f"{precision}.onnx"
    path = writer.path(file)
    path.with_name(f"{file}.data").unlink(missing_ok=True)
    save_model(candidate.model, path, external_bytes=external_bytes)
    notes = _check_onnx(path, candidate)
    note("comparing with the original")
    if tolerance is None:
        kinds = {"fp16": "float16", "bf16": "bfloat16", "fp64": "float64"}
        tolerance = parity.default_tolerance([kinds.get(precision, "float32")])
    drawn = candidate.drawn
    with OrtSession(path, variant=precision) as session:
        rows = parity.parity(candidate.reference, session.run, drawn.inputs, inputs, outputs)
        parity.check_within(rows, tolerance)
        first = run_in_batches(candidate.reference, drawn.first(1, inputs).inputs, inputs=inputs, outputs=outputs)
        size = sum(a.nbytes for a in (*drawn.first(1, inputs).inputs.values(), *first.values()))
        kept = drawn.first(affordable_rows(size), inputs)
        want = run_in_batches(candidate.reference, kept.inputs, inputs=inputs, outputs=outputs)
        got = run_in_batches(session.run, kept.inputs, inputs=inputs, outputs=outputs)
        for output in outputs:
            parity.check_finite(parity.as_float(want[output.name], output.dtype), output.name, "original", kept.count)
        measured = parity.accuracy(want, got, outputs, count=kept.count, classification=spec.task == "classification")
        if spec.evaluate is not None:
            note("measuring the recipe's metric")
            counted = _Counted(session)
            metrics = spec.measure(counted.run, METRIC_SAMPLES)
            measured = msgspec.structs.replace(measured, metrics=metrics, metric_samples=counted.samples)
    candidate = dataclasses.replace(candidate, drawn=kept, notes=(*candidate.notes, *notes))
    return _Checked(candidate, file, precision, rows, measured, kept.inputs, want, opset_of(candidate.model))


class _Counted:
    """A session that counts the samples it ran: evaluate may use fewer than it may."""

    def __init__(self, session: OrtSession) -> None:
        self.session = session
        self.samples = 0

    def run(self, feed: Feed) -> Tensors:
        """Run and count."""
        out = self.session.run(feed)
        self.samples += sample_count(feed, self.session.inputs)
        return out


def _check_onnx(path: Path, candidate: Candidate) -> list[str]:
    """Let onnx check the file; an unconverted import that runs but breaks a rule gets a note instead of an error."""
    onnx = require("onnx", why="check ONNX models")
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # ValidationError and InferenceError share only Exception
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if not candidate.strict:
            return [f"onnx.checker: {lines[0][:200]}"]
        raise ModelError(f"The ONNX form of '{candidate.spec.name}' is not valid: {lines[0][:300]}") from error
    return []


def _commit(
    writer: PackageWriter, found: Source, best: _Checked, reasons: Sequence[str], note: Callable[[str], None]
) -> Package:
    candidate = best.candidate
    spec = candidate.spec
    note("writing the package")
    variant = writer.variant_of(
        best.file,
        id=best.precision,
        precision=best.precision,
        format="onnx",
        target="any",
        accuracy=best.accuracy,
    )
    writer.put(variant)
    writer.write_samples(best.inputs, best.outputs)
    if spec.labels:
        check_labels(spec, candidate.outputs[0])
        writer.write(LABELS, ("\n".join(spec.labels) + "\n").encode())
    provenance = Provenance(
        tool=f"edgekit {__version__}",
        source=found.file.name,
        source_sha256=sha256_of(found.file) if found.file.is_file() else "",
        framework=candidate.framework,
        opset=best.opset,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        parity=best.parity,
        notes=(*candidate.notes, *reasons),
    )
    manifest = Manifest(
        schema=SCHEMA,
        name=spec.name,
        version="1",
        inputs=tuple(Tensor.of(s) for s in spec.inputs),
        outputs=tuple(Tensor.of(s) for s in candidate.outputs),
        variants=(),
        provenance=provenance,
        task=spec.task,
        description=spec.description,
        license=spec.license,
        preprocess=dict(spec.preprocess),
        states=dict(spec.states),
        defaults={k: np.asarray(v).tolist() for k, v in spec.defaults.items()},
        tolerance=dict(spec.tolerance),
        higher_is_better=spec.higher_is_better,
        samples=SampleSet(count=candidate.drawn.count, source=candidate.drawn.source),
    )
    return writer.commit(manifest)
