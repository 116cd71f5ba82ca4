"""Inputs to compare and keep: real ones from a recipe or from files, random ones only where nothing real was given."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from edgekit.errors import InputError, UsageError
from edgekit.inputs import arrays_from_file, evenly, input_files
from edgekit.preprocess import AUDIO_SUFFIXES, IMAGE_SUFFIXES, ImagePreprocess, Preprocess, tensor_from_file
from edgekit.recipe import ModelSpec
from edgekit.tensors import (
    Array,
    Tensors,
    TensorSpec,
    batch_axis,
    numpy_dtype,
    sample_count,
    take_samples,
)

KEEP_ROWS = 256
KEEP_BYTES = 16 << 20
"""samples.npz holds up to so many samples and bytes of input; one at least."""

COMPARE_ROWS = 8
SYNTHETIC_ROWS = 16
FREE_SIZES = (32, 64, 224, 1)
"""Sizes tried for named dimensions (other than the batch) of random inputs."""

Source: TypeAlias = Callable[[int, int], Tensors]


@dataclass(frozen=True)
class Draw:
    """Samples and where they come from: "recipe", "file" or "synthetic"."""

    inputs: Tensors
    source: str
    count: int

    def first(self, rows: int, specs: Sequence[TensorSpec]) -> Draw:
        """The first `rows` samples."""
        if self.count <= rows:
            return self
        return Draw(take_samples(self.inputs, specs, 0, rows, specs), self.source, rows)


def affordable_rows(sample_bytes: int) -> int:
    """How many samples of this size samples.npz keeps."""
    return max(1, min(KEEP_ROWS, KEEP_BYTES // max(1, sample_bytes)))


def bytes_per_sample(specs: Sequence[TensorSpec]) -> int:
    """Bytes of one sample, unknown dimensions taken as 1."""
    return sum(math.prod(s.concrete()) * numpy_dtype(s.dtype).itemsize for s in specs)


def draw(spec: ModelSpec, path: Path | None) -> Draw:
    """Samples for `spec`, seed 0: from `path` if given, else its recipe, else random.

    Raises:
        RecipeError: the recipe's samples fail or are empty.
        UsageError, InputError: `path` cannot be used.
    """
    rows = max(COMPARE_ROWS, affordable_rows(bytes_per_sample(spec.inputs)))
    if path is not None:
        arrays, source = spec.complete(arrays_from_path(path, spec.inputs, spec.preprocess, rows)), "file"
    elif spec.samples is not None:
        arrays, source = spec.sample(rows, 0), "recipe"
    else:
        arrays, source = synthetic(spec, SYNTHETIC_ROWS, FREE_SIZES[0]), "synthetic"
    count = sample_count(arrays, spec.inputs)
    if count < 1:
        raise InputError(f"The samples of '{spec.name}' are empty; at least one is needed to compare with.")
    kept = min(count, rows)
    arrays = take_samples(arrays, spec.inputs, 0, kept, spec.inputs)
    for name, value in arrays.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(f"Samples of input '{name}' hold NaN or infinity. Clean the data first.")
    return Draw(arrays, source, kept)


def synthetic(spec: ModelSpec, rows: int, free: int) -> Tensors:
    """`rows` seeded random samples: pixels where an image is declared, else normal floats and small integers."""
    rng = np.random.default_rng(0)
    first = spec.inputs[0]
    batch = first.shape[0] if first.batched else None
    feed: Tensors = {}
    for tensor in spec.inputs:
        if tensor.name in spec.states or tensor.name in spec.defaults:
            continue
        shape = [rows if d == batch else free if isinstance(d, str) else d for d in tensor.shape]
        axis = batch_axis(tensor, spec.inputs)
        if axis is not None and batch is None:
            shape[axis] *= rows
        feed[tensor.name] = _random(rng, tensor, tuple(shape), spec.preprocess.get(tensor.name))
    return spec.complete(feed)


def _random(rng: np.random.Generator, tensor: TensorSpec, shape: tuple[int, ...], how: Preprocess | None) -> Array:
    if isinstance(how, ImagePreprocess):
        channels = 1 if how.color == "L" else 3
        pixels = rng.integers(0, 256, (shape[0], how.height, how.width, channels))
        return np.concatenate([how.from_pixels(p.astype(np.float32)) for p in pixels])
    kind = numpy_dtype(tensor.dtype)
    if tensor.dtype == "bfloat16":
        return np.asarray((rng.standard_normal(shape, np.float32).view(np.uint32) >> 16).astype(np.uint16))
    if kind.kind == "f":
        return np.asarray(rng.standard_normal(shape), kind)
    if tensor.dtype == "string":
        return np.full(shape, "", object)
    if tensor.dtype in ("uint8", "int8"):
        low, high = (0, 256) if tensor.dtype == "uint8" else (-128, 128)
        return rng.integers(low, high, shape).astype(kind)
    return rng.integers(0, 2, shape).astype(kind)  # token ids, masks, flags: valid in any model


def arrays_from_path(
    path: Path, inputs: Sequence[TensorSpec], preprocess: Mapping[str, Preprocess], rows: int
) -> Tensors:
    """Inputs by name from an `.npz` or `.npy` file, or from a folder of images or WAV files.

    Raises:
        UsageError: not such a file, or files without declared preprocessing.
        InputError: a file is damaged.
    """
    if path.is_dir():
        return _from_folder(path, preprocess, rows)
    if not path.is_file():
        raise UsageError(f"Samples '{path}' do not exist. Give an .npz file, or a folder of images or WAV files.")
    if path.suffix not in (".npz", ".npy"):
        raise UsageError(f"Samples '{path.name}' are not usable; expected .npz, .npy, or a folder of files.")
    return arrays_from_file(path, inputs)


def _from_folder(folder: Path, preprocess: Mapping[str, Preprocess], rows: int) -> Tensors:
    if len(preprocess) != 1:
        raise UsageError(
            f"A folder of samples needs preprocessing for one input, and {len(preprocess) or 'none'} is declared. "
            "Declare it in the recipe or with --preprocess, or give an .npz file."
        )
    (name, how), *_ = preprocess.items()
    known = IMAGE_SUFFIXES if isinstance(how, ImagePreprocess) else AUDIO_SUFFIXES
    files = [p for p in input_files(folder) if p.suffix.lower() in known]
    if not files:
        raise UsageError(f"'{folder}' holds no {'images' if known is IMAGE_SUFFIXES else 'WAV files'} ({known[0]}, …).")
    parts: list[Array] = []
    total = 0
    for file in evenly(files, rows):
        parts.append(tensor_from_file(file, how))
        total += len(parts[-1])
        if total >= rows:
            break
    return {name: np.concatenate(parts)[:rows]}
