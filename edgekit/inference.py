"""Files through a package: decode, preprocess, run, and read the result as labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.errors import InputError
from edgekit.inputs import tensors_from_file
from edgekit.manifest import Manifest
from edgekit.package import Package
from edgekit.runtime.session import Session
from edgekit.tensors import (
    Array,
    Tensors,
    TensorSpec,
    batch_axis,
    join,
    run_in_batches,
    sample_count,
    take_samples,
    with_defaults,
)


@dataclass(frozen=True)
class Result:
    """What the model made of one file: its outputs, one row a sample, and how many samples."""

    source: str
    outputs: Tensors
    samples: int


@dataclass(frozen=True)
class Score:
    """One class with its probability."""

    label: str
    probability: float


@dataclass(frozen=True)
class Detection:
    """One object that a detector found; `box` is left, top, right, bottom, in the pixels that the model counts in."""

    label: str
    score: float
    box: tuple[float, float, float, float]


DETECTIONS = ("count", "boxes", "scores", "classes")
"""The outputs of a detector with its suppression in the graph, as plugins_trt.decode_nms gives them."""


def infer_files(package: Package, session: Session, paths: Sequence[Path], *, batch: int = 32) -> Iterator[Result]:
    """Run each file and yield its result, in order.

    Images and WAV files go through the package's preprocessing; `.npz` holds inputs by name, `.npy` the only input.
    A model with states runs the rows of one file one after the other, each with the state that the row before left.

    Raises:
        InputError: a file cannot be read, or does not fit the model.
        BackendError: the runtime failed.
    """
    for path in paths:
        feed = feed_from_file(package, path, session.inputs)
        outputs = infer_feed(package, session, feed, batch=batch)
        yield Result(str(path), outputs, sample_count(feed, _given(package, session)))


def infer_feed(package: Package, session: Session, feed: Tensors, *, batch: int = 32) -> Tensors:
    """The outputs for all rows of one file's feed, up to `batch` in a call; with states one after the other.

    Raises InputError or BackendError as `infer_files` does.
    """
    if package.manifest.states:
        return _run_sequence(session, feed, package.manifest, sample_count(feed, _given(package, session)))
    return run_in_batches(session.run, feed, inputs=session.inputs, outputs=session.outputs, size=batch)


def _given(package: Package, session: Session) -> list[TensorSpec]:
    """The inputs that tell how many rows there are: a state has those of one call."""
    free = [s for s in session.inputs if s.name not in package.manifest.states]
    return free or list(session.inputs)


def feed_from_file(package: Package, path: Path, inputs: Sequence[TensorSpec]) -> Tensors:
    """Every input of the model, from one file and the package's defaults; states start at zero.

    Raises:
        InputError: the file cannot be read, or inputs are missing.
    """
    given = tensors_from_file(path, inputs, package.manifest.preprocess)
    feed = with_defaults(given, package.defaults(), inputs)
    for spec in inputs:
        if spec.name not in feed and spec.name in package.manifest.states:
            feed[spec.name] = np.zeros(spec.concrete(), spec.dtype)
    missing = [s for s in inputs if s.name not in feed]
    if missing:
        raise InputError(
            f"'{path.name}' does not give input {missing[0]}. Give an .npz file with an array for every input."
        )
    for name in feed:
        if all(s.name != name for s in inputs):
            known = ", ".join(s.name for s in inputs)
            raise InputError(f"'{path.name}' gives '{name}', which is not an input; inputs are {known}.")
    return feed


def _run_sequence(session: Session, feed: Tensors, manifest: Manifest, count: int) -> Tensors:
    """The rows of `feed` one at a time, in order, with states carried from each call to the next."""
    states = {name: feed[name] for name in manifest.states}
    rows = {k: v for k, v in feed.items() if k not in states}
    specs = [s for s in session.inputs if s.name in rows]
    parts = []
    for i in range(count):
        outputs = session.run({**take_samples(rows, specs, i, i + 1, session.inputs), **states})
        states = {name: outputs.pop(source) for name, source in manifest.states.items()}
        parts.append(outputs)
    visible = [s for s in session.outputs if s.name not in manifest.states.values()]
    last = {source: states[name] for name, source in manifest.states.items()}
    return {**join(parts, visible, session.inputs), **last}


def scores(outputs: Tensors, labels: Sequence[str], *, row: int, top: int) -> list[Score]:
    """The best `top` classes of one row of the first output, best first.

    Rows that are not a probability distribution already go through a softmax.
    """
    first: Array = next(iter(outputs.values()))
    classes, values = best_classes(first.reshape(len(first), -1)[row : row + 1], top)
    return [Score(label_of(i, labels), float(value)) for i, value in zip(classes[0], values[0])]


def detections(outputs: Tensors, labels: Sequence[str], *, row: int, least: float = 0.0) -> list[Detection]:
    """What was found in one row with a score of at least `least`, best first. `outputs` hold all of DETECTIONS."""
    count, boxes, values, classes = (outputs[name][row] for name in DETECTIONS)
    found = []
    for i in range(int(count)):
        if values[i] >= least:
            left, top, right, bottom = (float(v) for v in boxes[i])
            found.append(Detection(label_of(int(classes[i]), labels), float(values[i]), (left, top, right, bottom)))
    return sorted(found, key=lambda d: -d.score)


def best_classes(rows: Array, top: int) -> tuple[Array, Array]:
    """The indices and probabilities of the best `top` classes of each row, best first: each of shape (rows, top).

    `rows` of shape (rows, classes) that are not a probability distribution already go through a softmax.
    """
    values = rows.astype(np.float64)
    raw = (values.min(axis=1) < 0) | (np.abs(values.sum(axis=1) - 1) > 1e-2)
    powers = np.exp(values[raw] - values[raw].max(axis=1, keepdims=True))
    values[raw] = powers / powers.sum(axis=1, keepdims=True)
    best = np.argsort(-values, axis=1, kind="stable")[:, :top]
    return best, np.take_along_axis(values, best, axis=1)


def label_of(index: int, labels: Sequence[str]) -> str:
    """The name of a class, or its number where it has none."""
    return labels[index] if index < len(labels) else str(index)


def gather(results: Sequence[Result], session: Session) -> Tensors:
    """The outputs of several files as one set of arrays, with the file of each row under "source"."""
    outputs = session.outputs
    joined = join([r.outputs for r in results], outputs, session.inputs)
    if len(results) > 1:
        for spec in outputs:
            if batch_axis(spec, session.inputs) is None:  # shared by the rows of one file, not by the files
                joined[spec.name] = np.stack([r.outputs[spec.name] for r in results])
    joined["source"] = np.array([r.source for r in results for _ in range(r.samples)])
    return joined
