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
        count = sample_count(feed, session.inputs)
        if package.manifest.states:
            outputs = _run_sequence(session, feed, package.manifest, count)
        else:
            outputs = run_in_batches(session.run, feed, inputs=session.inputs, outputs=session.outputs, size=batch)
        yield Result(str(path), outputs, count)


def feed_from_file(package: Package, path: Path, inputs: Sequence[TensorSpec]) -> Tensors:
    """Every input of the model, from one file and the package's defaults; states start at zero.

    Raises:
        InputError: the file cannot be read, or inputs are missing.
    """
    given = tensors_from_file(path, inputs, package.manifest.preprocess)
    feed = {**package.defaults(), **given}
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
    values = first.reshape(len(first), -1)[row].astype(np.float64)
    if values.min() < 0 or abs(values.sum() - 1) > 1e-2:
        values = np.exp(values - values.max())
        values /= values.sum()
    best = np.argsort(-values, kind="stable")[:top]
    return [Score(labels[i] if i < len(labels) else str(i), float(values[i])) for i in best]


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
