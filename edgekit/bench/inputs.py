"""What a benchmark feeds: the package's real samples, or random tensors where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import UsageError
from edgekit.package import Package
from edgekit.preprocess import ImagePreprocess
from edgekit.tensors import Array, Tensors, TensorSpec, batch_axis, numpy_dtype, sample_count

MOST_FEEDS = 16
MOST_BYTES = 64 << 20
_SEED = 0


@dataclass(frozen=True)
class Inputs:
    """Some samples of every input; `source` says in words what they are; `real` whether they are real data."""

    arrays: Tensors
    specs: tuple[TensorSpec, ...]
    source: str
    real: bool

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sample_count(self.arrays, self.specs)

    @property
    def dynamic(self) -> bool:
        """Whether several samples go in one call."""
        return self.specs[0].batched

    def feeds(self, batch: int, *, most: int = MOST_FEEDS) -> list[Tensors]:
        """At most `most` feeds of `batch` samples each, different ones while samples and memory last.

        Samples repeat to fill one. With a fixed batch every feed is one block of it, whatever `batch` is.
        """
        size = batch if self.dynamic else 1
        count = self.samples
        bytes_each = max(1, sum(a.nbytes for a in self.arrays.values()) * size // count)
        many = max(1, min(most, -(-count // size), MOST_BYTES // bytes_each))
        return [self._feed(np.arange(i * size, (i + 1) * size) % count) for i in range(many)]

    def _feed(self, rows: Array) -> Tensors:
        out: Tensors = {}
        for spec in self.specs:
            array, axis = self.arrays[spec.name], batch_axis(spec, self.specs)
            if axis is not None:
                block = spec.shape[axis]
                width = block if isinstance(block, int) else 1
                index = (rows[:, None] * width + np.arange(width)).reshape(-1) % array.shape[axis]
                array = np.take(array, index, axis=axis)
            out[spec.name] = np.asarray(array, order="C")
        return out


def bench_inputs(package: Package, sizes: Mapping[str, int] | None = None) -> Inputs:
    """The package's samples, or random tensors of its inputs' shapes; states are zero and defaults are as declared.

    `sizes` gives named dimensions (not the batch) of random tensors; those of real samples are what they are.

    Raises:
        UsageError: `sizes` names a dimension that the model does not have.
        IntegrityError: samples.npz was changed.
    """
    specs = package.manifest.input_specs
    given = dict(sizes or {})
    free = {d for s in specs for d in s.shape if isinstance(d, str)}
    for name, size in given.items():
        if name not in free or size < 1:
            known = ", ".join(sorted(free)) or "none"
            raise UsageError(f"'{name}={size}' is not a size of this model; its free dimensions are {known}.")
    info = package.manifest.samples
    if info is not None and not given:
        samples = package.samples()
        arrays = _completed(package, specs, samples.inputs, given)
        words = {"synthetic": "random"}.get(info.source, "real")
        return Inputs(arrays, specs, f"{info.count} {words} samples of the package", info.source != "synthetic")
    return Inputs(_completed(package, specs, {}, given), specs, "random tensors", False)


def _completed(package: Package, specs: Sequence[TensorSpec], arrays: Tensors, sizes: Mapping[str, int]) -> Tensors:
    """`arrays` with the missing inputs added: defaults, zero states, random values."""
    known = dict(sizes)
    for spec in specs:
        if spec.name in arrays:
            known.update({d: n for d, n in zip(spec.shape, arrays[spec.name].shape) if isinstance(d, str)})
    if not arrays and specs[0].batched:
        known.setdefault(str(specs[0].shape[0]), 8)
    defaults, manifest = package.defaults(), package.manifest
    rng = np.random.default_rng(_SEED)
    out: Tensors = {}
    for spec in specs:
        if spec.name in arrays:
            out[spec.name] = arrays[spec.name]
            continue
        shape = spec.concrete(**{**_picture_sizes(spec, manifest.preprocess.get(spec.name)), **known})
        if spec.name in defaults:
            out[spec.name] = np.array(np.broadcast_to(defaults[spec.name], shape), order="C")
        elif spec.name in manifest.states:
            out[spec.name] = np.zeros(shape, numpy_dtype(spec.dtype))
        else:
            out[spec.name] = _random(spec, shape, rng)
    return out


def _picture_sizes(spec: TensorSpec, preprocess: object) -> dict[str, int]:
    """Free height and width of an image input, from what its preprocessing makes."""
    if not isinstance(preprocess, ImagePreprocess) or len(spec.shape) != 4:
        return {}
    where = (2, 3) if preprocess.layout == "NCHW" else (1, 2)
    pairs = zip(where, (preprocess.height, preprocess.width))
    return {d: size for axis, size in pairs if isinstance(d := spec.shape[axis], str)}


def _random(spec: TensorSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Values that any model takes: normal floats, bytes, and 0 or 1 for integers, which may be indices."""
    if spec.dtype == "string":
        return np.full(shape, "", object)
    if spec.dtype == "uint8":
        return rng.integers(0, 256, shape, dtype=np.uint8)
    if spec.dtype == "bfloat16":  # the upper half of a float32 is its bfloat16
        return (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape).astype(numpy_dtype(spec.dtype))
    return rng.integers(0, 2, shape).astype(numpy_dtype(spec.dtype))
