"""From a source to a cleaned ONNX model beside its original: one way for PyTorch, one for ONNX files."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit._lazy import require
from edgekit.errors import InputError, ModelError, RecipeError
from edgekit.export import onnx_import, torch_to_onnx
from edgekit.export.cleanup import clean
from edgekit.export.fold import fold_affine, fold_batchnorm
from edgekit.export.layout import sink_transposes
from edgekit.export.parity import as_float, check_finite
from edgekit.export.pt2 import inputs_of_program, keywords_of_program, program_from_pt2
from edgekit.export.samples import FREE_SIZES, Draw, draw, synthetic
from edgekit.export.source import Source, fixed
from edgekit.export.torch_runner import TorchRunner
from edgekit.graphs import EXTERNAL_BYTES, annotated, model_specs, weight_bytes
from edgekit.recipe import ModelSpec, Runner
from edgekit.runtime.ort import OrtSession
from edgekit.tensors import Dim, Feed, Tensors, TensorSpec, batch_axis, run_in_batches, shape_text, take_samples

if TYPE_CHECKING:
    import onnx

Note = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What the user asked for: see `build.export`."""

    opset: int | None = None
    static: bool = False
    dynamic_batch: bool = False
    samples: Path | None = None
    limit: int = EXTERNAL_BYTES


@dataclass(frozen=True)
class Candidate:
    """An ONNX model that should do what `reference` does.

    `model` is owned by the receiver; `notes` say what was done to it. `strict` says that it must pass onnx's checker,
    `converted` that its operator set was raised, so that a candidate in its own set follows.
    """

    model: onnx.ModelProto
    spec: ModelSpec
    outputs: tuple[TensorSpec, ...]
    drawn: Draw
    reference: Runner
    framework: str
    notes: tuple[str, ...]
    strict: bool = True
    converted: bool = False


def candidate_from_torch(module: Any, spec: ModelSpec, options: Options, note: Note) -> Candidate:
    """Trace and translate a module (or a loaded `torch.export` program) on the recipe's own samples.

    Raises:
        RecipeError: the module fails on its samples, or its outputs do not follow the batch.
        ModelError, UsageError: it cannot be traced or translated.
    """
    torch = require("torch", why="export models")
    program = module if isinstance(module, torch.export.ExportedProgram) else None
    drawn = draw(spec, options.samples)
    if options.static:
        spec, drawn = _static(spec, drawn)
    keywords = keywords_of_program(program) if program is not None else None
    callable_ = program.module() if program is not None else module
    runner = TorchRunner(callable_, spec.inputs, model=spec.name, outputs=spec.outputs, keywords=keywords)
    example = _example(drawn.inputs, spec.inputs)
    seen = runner.run(example)
    _check_results(spec, seen)  # before the slow part
    if program is None:
        note("tracing the module")
        program = torch_to_onnx.program_from_torch(runner, example)
    note("translating it to ONNX")
    opset = options.opset or spec.opset or torch_to_onnx.DEFAULT_OPSET
    model = torch_to_onnx.onnx_from_program(program, runner, opset=opset)
    notes = _tidy(model, options.limit)
    model = annotated(model)
    outputs = model_specs(model)[1]
    _check_outputs(spec, outputs, seen)
    version = torch.__version__.partition("+")[0]
    return Candidate(model, spec, outputs, drawn, runner.run, f"torch {version}", tuple(notes))


def _static(spec: ModelSpec, drawn: Draw) -> tuple[ModelSpec, Draw]:
    sizes = {
        d: n
        for s in spec.inputs
        for d, n in zip(s.shape, drawn.inputs[s.name].shape)
        if isinstance(d, str) and d != spec.inputs[0].shape[0]
    }
    if any(s.batched and batch_axis(s, spec.inputs) != 0 for s in spec.inputs):
        drawn = drawn.first(1, spec.inputs)
    return fixed(spec, sizes), drawn


def _example(samples: Feed, inputs: tuple[TensorSpec, ...]) -> Tensors:
    """Two samples (the same twice, if there is one): a dimension of 1 would be taken for a constant."""
    two = take_samples(samples, inputs, 0, 2 if inputs[0].batched else 1, inputs)
    if not inputs[0].batched:
        return two
    for spec in inputs:
        axis = batch_axis(spec, inputs)
        if axis is not None and two[spec.name].shape[axis] == 1:
            two[spec.name] = np.repeat(two[spec.name], 2, axis=axis)
    return two


def _check_results(spec: ModelSpec, seen: Tensors) -> None:
    """Refuse results of two samples that no export could make right."""
    for name, value in seen.items():
        dtype = "float32" if value.dtype.kind == "f" else "int64"
        check_finite(as_float(value, dtype), name, "original", 2 if spec.inputs[0].batched else 1)
        if spec.inputs[0].batched and 2 not in value.shape:
            raise _not_batched(spec, name, value.shape)


def _not_batched(spec: ModelSpec, output: str, shape: tuple[int, ...]) -> RecipeError:
    return RecipeError(
        f"Output '{output}' of '{spec.name}' has shape {shape_text(shape)} for a batch of two; expected one row a "
        f"sample. Return ({spec.inputs[0].shape[0]}, ...), or export with --static."
    )


def _check_outputs(spec: ModelSpec, outputs: tuple[TensorSpec, ...], seen: Tensors) -> None:
    first = spec.inputs[0]
    if not first.batched:
        return
    for output in outputs:
        if first.shape[0] not in output.shape:
            raise _not_batched(spec, output.name, seen[output.name].shape)


def _tidy(model: onnx.ModelProto, limit: int) -> list[str]:
    """Clean `model` and fold what follows convolutions into them, in place; what was done, in words."""
    done = clean(model)
    transposes = sink_transposes(model)
    affine = fold_affine(model)
    folded = fold_batchnorm(model)
    affine += fold_affine(model)
    notes = [f"{count} {what} removed" for what, count in done.items() if what != "constants made initializers"]
    if folded:
        notes.append(f"{folded} BatchNormalization folded")
    if transposes:
        notes.append(f"{transposes} transposes around convolutions removed")
    if affine:
        notes.append(f"{affine} additions and products a channel folded into convolutions")
    return notes


def candidate_from_pt2(
    path: Path, options: Options, note: Note, name: str, adapt: Callable[[ModelSpec], ModelSpec]
) -> Candidate:
    """A `torch.export` archive, loaded without running code of the file. Raises ModelError."""
    note("loading the program")
    program = program_from_pt2(path)
    spec = adapt(ModelSpec(name=name, build=lambda: program, inputs=inputs_of_program(program)))
    return candidate_from_torch(program, spec, options, note)


def candidates_from_onnx(
    path: Path, source: Source, options: Options, note: Note, adapt: Callable[[ModelSpec], ModelSpec]
) -> Iterator[Candidate]:
    """ONNX models that should equal the one in `path`: upgraded and cleaned, then (if asked for) only cleaned.

    `adapt` adds what the command line declares to the recipe that is made for a bare file.

    Raises:
        ModelError, UnsupportedOperatorError: the file cannot be imported.
        RecipeError: a recipe's inputs are not the model's.
    """
    onnx = require("onnx", why="import ONNX models")
    note(f"reading {path.name}")
    wanted = options.opset or (source.spec.opset if source.spec else None) or torch_to_onnx.DEFAULT_OPSET
    run: Runner | None = None
    for opset in (wanted, None):
        model, notes = onnx_import.onnx_from_file(path, opset=opset, limit=options.limit)
        notes += _tidy(model, options.limit)
        onnx_import.name_batch(model)
        if options.dynamic_batch:
            onnx_import.free_batch(model, path.name)
            notes.append("the batch, fixed at 1, made free")
        if weight_bytes(model) < options.limit:
            model = annotated(model)
        inputs, outputs = model_specs(model)
        spec = source.spec or adapt(ModelSpec(name=source.name, build=lambda: path, inputs=inputs))
        _check_inputs(spec, inputs, path.name)
        spec = dataclasses.replace(spec, inputs=inputs)
        if run is None:
            run = _original(OrtSession(path, variant="original"), inputs)
        drawn = _draw_that_runs(spec, options, run)
        outputs = _observed(outputs, run, drawn, spec, model)
        if spec.outputs and spec.outputs != tuple(o.name for o in outputs):
            raise RecipeError(
                f"SPEC.outputs of '{spec.name}' are {', '.join(spec.outputs)}; '{path.name}' has "
                f"{', '.join(o.name for o in outputs)}."
            )
        converted = any(n.startswith("converted") for n in notes)
        framework = f"onnx {onnx.__version__}"
        yield Candidate(
            model, spec, outputs, drawn, run, framework, tuple(notes), strict=converted, converted=converted
        )
        if not converted:
            return


def _check_inputs(spec: ModelSpec, inputs: tuple[TensorSpec, ...], name: str) -> None:
    declared = {s.name: (s.dtype, len(s.shape)) for s in spec.inputs}
    if declared != {s.name: (s.dtype, len(s.shape)) for s in inputs}:
        raise RecipeError(
            f"SPEC.inputs of '{spec.name}' are {'; '.join(map(str, spec.inputs))}; '{name}' has "
            f"{'; '.join(map(str, inputs))}. Declare those."
        )


def _original(session: OrtSession, inputs: tuple[TensorSpec, ...]) -> Runner:
    """The original file as a runner, sample by sample where it takes a fixed batch and the new model a free one."""
    own = {s.name: s for s in session.inputs}
    one_by_one = inputs[0].batched and not own[inputs[0].name].batched
    seen: dict[bytes, Tensors] = {}

    def run(feed: Feed) -> Tensors:
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in feed.values())).digest()
        if digest not in seen:  # the same samples are asked for again when a second candidate is compared
            if one_by_one:
                seen[digest] = run_in_batches(session.run, feed, inputs=session.inputs, outputs=session.outputs)
            else:
                seen[digest] = session.run(feed)
        return seen[digest]

    return run


def _draw_that_runs(spec: ModelSpec, options: Options, run: Runner) -> Draw:
    """Samples; random ones in the first of several sizes that the model accepts."""
    if options.samples is not None or spec.samples is not None:
        return draw(spec, options.samples)
    failure: Exception | None = None
    free = {d for s in spec.inputs for d in s.shape if isinstance(d, str)} - set(spec.inputs[0].shape[:1])
    for size in FREE_SIZES if free else FREE_SIZES[:1]:
        drawn = draw(spec, None) if size == FREE_SIZES[0] else None
        if drawn is None:
            drawn = Draw(synthetic(spec, 8, size), "synthetic", 8)
        try:
            run(take_samples(drawn.inputs, spec.inputs, 0, 1, spec.inputs))
            return drawn
        except Exception as error:  # the size does not fit: the next may
            failure = error
    raise InputError(
        f"'{spec.name}' does not run on random inputs ({failure}). Give real ones with --samples FILE.npz."
    ) from failure


def _observed(
    outputs: tuple[TensorSpec, ...], run: Runner, drawn: Draw, spec: ModelSpec, model: onnx.ModelProto
) -> tuple[TensorSpec, ...]:
    """`outputs`, in the model too, with the dimensions that the original shows: "batch" where sizes follow it.

    A state's output has the shape of the input that it feeds. Where nothing else is free, what does not follow the
    batch is a constant.
    """
    inputs = spec.inputs
    batch = inputs[0].shape[0] if inputs[0].batched else None
    rows = (1, min(3, drawn.count)) if batch else (1,)
    seen = [run(take_samples(drawn.inputs, inputs, 0, n, inputs)) for n in rows]
    named = {d for s in inputs for d in s.shape if isinstance(d, str)}
    shapes = {s.name: s.shape for s in inputs}
    fed = {out: shapes[state] for state, out in spec.states.items()}
    found = []
    for output, value in zip(outputs, model.graph.output):
        sizes = [s[output.name].shape for s in seen]
        if len({len(s) for s in sizes}) > 1:
            raise ModelError(f"Output '{output.name}' changes its number of dimensions with the batch.")
        dims: list[Dim] = [f"{output.name}_{i}" for i in range(len(sizes[0]))]
        if len(output.shape) == len(dims):
            dims = list(output.shape)
        for axis, dim in enumerate(dims):
            got = tuple(s[axis] for s in sizes)
            if dim in named:
                continue
            if batch and len(rows) > 1 and got == rows and rows[0] < rows[1]:
                dims[axis] = batch
            elif isinstance(dim, int) and set(got) != {dim}:
                dims[axis] = f"{output.name}_{axis}"
            elif isinstance(dim, str) and named <= {batch} and len(set(got)) == 1:
                dims[axis] = got[0]
        if len(fed.get(output.name, ())) == len(dims):
            dims = list(fed[output.name])
        found.append(TensorSpec(output.name, output.dtype, tuple(dims)))
        shape = value.type.tensor_type.shape
        del shape.dim[:]
        for dim in dims:
            shape.dim.add(**({"dim_value": dim} if isinstance(dim, int) else {"dim_param": dim}))
    return tuple(found)
