"""Several models as one: the outputs of one are the inputs of the next, passed on as they are.

Declared in `NAME.pipeline.toml` beside the packages:

    outputs = ["class"]

    [[stages]]
    model = "detector"
    inputs = { image = "image" }        # the detector's input = a tensor of the pipeline
    outputs = { boxes = "boxes" }       # a tensor of the pipeline = the detector's output

    [[stages]]
    crop = { image = "image", boxes = "boxes", into = "faces", height = 64, width = 64 }

    [[stages]]
    model = "classifier"
    inputs = { x = "faces" }
    outputs = { class = "scores" }

Tensors that no stage makes are the pipeline's inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta

from edgekit.errors import UsageError
from edgekit.runtime.session import LoadedSession, Session
from edgekit.serve.crops import Crop, crop
from edgekit.serve.model import Model
from edgekit.serve.options import ModelOptions, read_toml
from edgekit.tensors import Array, Feed, Tensors, TensorSpec, check_feed, numpy_dtype


class StageFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stage: a model with its tensors, or a crop."""

    model: str = ""
    inputs: dict[str, str] = {}
    outputs: dict[str, str] = {}
    crop: Crop | None = None

    def __post_init__(self) -> None:
        if bool(self.model) == (self.crop is not None):
            raise ValueError("a stage has either a model or a crop")


class PipelineFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A pipeline's declaration. `name` is the file's unless given."""

    outputs: Annotated[tuple[str, ...], Meta(min_length=1)]
    stages: Annotated[tuple[StageFile, ...], Meta(min_length=1)]
    name: str = ""
    version: str = "1"

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that it runs."""
        return frozenset(s.model for s in self.stages if s.model)


def read_pipeline(path: Path) -> PipelineFile:
    """The declaration in `path`. Raises UsageError, saying what is wrong with it."""
    try:
        return msgspec.convert(read_toml(path), PipelineFile)
    except msgspec.ValidationError as error:
        raise UsageError(f"'{path}' is not a pipeline: {error}. The format is in docs/serving.md.") from None


@dataclass(frozen=True, slots=True)
class _Step:
    """`inputs` are {tensor of the pipeline: the model's input}, `outputs` {the model's output: tensor}."""

    model: Model
    inputs: tuple[tuple[str, str], ...]
    outputs: tuple[tuple[str, str], ...]


class PipelineSession(LoadedSession):
    """Runs the stages of a pipeline; to everyone else, one session."""

    def __init__(self, name: str, file: PipelineFile, models: Mapping[str, Model]) -> None:
        """Raises UsageError: a stage names a model, an input, an output or a tensor that is not there."""
        self._name = name
        self._steps: list[_Step | Crop] = []
        made: dict[str, TensorSpec] = {}
        free: dict[str, TensorSpec] = {}
        held: list[Model] = []
        for number, stage in enumerate(file.stages, 1):
            where = f"Stage {number} of pipeline '{name}'"
            if stage.crop is not None:
                self._steps.append(_checked_crop(where, stage.crop, made, free))
                continue
            model = models.get(stage.model)
            if model is None:
                known = ", ".join(models) or "none"
                raise UsageError(f"{where} runs model '{stage.model}', which is not here; there is {known}.")
            held.append(model)
            self._steps.append(_checked_step(where, stage, model, made, free))
        for output in file.outputs:
            if output not in made:
                raise UsageError(
                    f"No stage of pipeline '{name}' makes its output '{output}'; they make {_names(made)}."
                )
        self._inputs = tuple(TensorSpec(n, s.dtype, s.shape) for n, s in free.items())
        self._outputs = tuple(TensorSpec(n, made[n].dtype, made[n].shape) for n in file.outputs)
        self._variant = ", ".join(f"{m.name}: {m.session.variant}" for m in held)
        self._device = "; ".join(dict.fromkeys(m.session.device for m in held))
        self._held = held
        for model in held:
            model.hold()

    def run(self, feed: Feed) -> Tensors:
        """Run every stage once. A stage that gets no rows (no box was found) is not run, and gives none.

        Raises:
            InputError: a tensor does not fit.
            BackendError: a runtime failed.
        """
        tensors: Tensors = check_feed(feed, self._inputs)
        for step in self._steps:
            if isinstance(step, Crop):
                tensors |= crop(step, tensors)
                continue
            given = {own: tensors[name] for name, own in step.inputs}
            given = {**step.model.defaults, **given}
            first = step.model.inputs[0]
            if first.batched and not len(given[first.name]):
                outputs = {s.name: _no_rows(s) for s in step.model.outputs}
            else:
                outputs = step.model.session.run(given)
            for own, name in step.outputs:
                tensors[name] = outputs[own]
        return {spec.name: tensors[spec.name] for spec in self._outputs}

    def close(self) -> None:
        """Let go of the models."""
        held, self._held = self._held, []
        for model in held:
            model.let_go()


def pipeline_model(
    file: PipelineFile, models: Mapping[str, Model], *, name: str, options: ModelOptions, path: Path
) -> Model:
    """The pipeline as a served model. Its runs go to threads, since nothing measured them. Raises UsageError."""
    session: Session = PipelineSession(name, file, models)
    last = next((models[s.model] for s in reversed(file.stages) if s.model), None)
    first = next((models[s.model] for s in file.stages if s.model), None)
    return Model(
        session,
        name=name,
        version=file.version,
        reason=f"a pipeline of {len(file.stages)} stages",
        platform="edgekit_pipeline",
        labels=last.labels if last is not None else (),
        preprocess=_preprocess(file, first),
        task=last.task if last is not None else "",
        options=options,
        path=path,
    )


def _preprocess(file: PipelineFile, first: Model | None) -> dict[str, Any]:
    """The first model's preprocessing, under the pipeline's names."""
    stage = file.stages[0]
    if first is None or stage.model != first.name:
        return {}
    return {stage.inputs.get(own, own): how for own, how in first.preprocess.items()}


def _checked_step(
    where: str, stage: StageFile, model: Model, made: dict[str, TensorSpec], free: dict[str, TensorSpec]
) -> _Step:
    for own in stage.inputs:
        if own not in model.input_specs:
            raise UsageError(f"{where}: '{model.name}' has no input '{own}'; it has {_names(model.input_specs)}.")
    inputs = []
    for own, spec in model.input_specs.items():
        if own in model.defaults and own not in stage.inputs:
            continue
        name = stage.inputs.get(own, own)
        have = made.get(name) or free.setdefault(name, spec)
        if have.dtype != spec.dtype or len(have.shape) != len(spec.shape):
            raise UsageError(f"{where}: tensor '{name}' is {have}, '{model.name}' takes {spec}.")
        inputs.append((name, own))
    outputs = []
    for name, own in (stage.outputs or {n: n for n in model.output_specs}).items():
        if own not in model.output_specs:
            raise UsageError(f"{where}: '{model.name}' has no output '{own}'; it has {_names(model.output_specs)}.")
        _make(where, name, model.output_specs[own], made, free)
        outputs.append((own, name))
    return _Step(model, tuple(inputs), tuple(outputs))


def _checked_crop(where: str, how: Crop, made: dict[str, TensorSpec], free: dict[str, TensorSpec]) -> Crop:
    for name in (how.image, how.boxes, how.scores):
        if name and name not in made and name not in free:
            raise UsageError(f"{where} takes tensor '{name}', which no stage before it takes or makes.")
    image = made.get(how.image) or free[how.image]
    if len(image.shape) != 4:
        raise UsageError(f"{where} crops '{how.image}', which is {image}; expected (1, C, H, W).")
    shape = ("box", image.shape[1], how.height, how.width)
    _make(where, how.into, TensorSpec(how.into, image.dtype, shape), made, free)
    if how.kept:
        _make(where, how.kept, TensorSpec(how.kept, "int64", ("box",)), made, free)
    return how


def _make(where: str, name: str, spec: TensorSpec, made: dict[str, TensorSpec], free: Mapping[str, TensorSpec]) -> None:
    if name in made or name in free:
        raise UsageError(f"{where} makes tensor '{name}', which is there already. Give it another name.")
    made[name] = spec


def _no_rows(spec: TensorSpec) -> Array:
    shape: Sequence[int] = (0, *(d if isinstance(d, int) else 0 for d in spec.shape[1:])) if spec.shape else ()
    return np.zeros(shape, numpy_dtype(spec.dtype))


def _names(tensors: Mapping[str, object]) -> str:
    return ", ".join(tensors) or "none"
