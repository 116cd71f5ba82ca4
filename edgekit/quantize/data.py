"""Calibration data: real inputs of the model, from a recipe, a folder, an .npz file or the package itself."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.errors import InputError, UsageError
from edgekit.inputs import ARRAY_SUFFIXES, arrays_from_file, evenly, input_files
from edgekit.package import Package
from edgekit.preprocess import tensor_from_file
from edgekit.recipe import ModelSpec
from edgekit.tensors import Array, Tensors, TensorSpec, batches, check_feed, join, sample_count, take_samples

DEFAULT_SAMPLES = 256
_MEMORY_BYTES = 512 << 20
"""Calibration data held at once; fewer samples are taken when rows are large."""

_HELD_OUT = 64
"""From this many rows on, every fourth judges instead of calibrating."""


@dataclass(frozen=True)
class CalibrationData:
    """Rows of input, one after the other along each input's batch axis.

    Attributes:
        specs: the model's inputs.
        inputs: for each input all rows together.
        count: number of rows.
        source: where they come from, for the reader of a report.
    """

    specs: tuple[TensorSpec, ...]
    inputs: Tensors
    count: int
    source: str

    @property
    def batched(self) -> bool:
        """Whether several rows go in one call."""
        return self.specs[0].batched

    def batches(self, rows: int) -> Iterator[Tensors]:
        """Feeds of at most `rows` rows (of one row where the model takes no more)."""
        return batches(self.inputs, self.specs, rows)

    def take(self, index: Array) -> CalibrationData:
        """The data with only the rows in `index`."""
        parts = [take_samples(self.inputs, self.specs, int(i), int(i) + 1, self.specs) for i in index]
        return CalibrationData(self.specs, join(parts, self.specs, self.specs), len(index), self.source)

    def split(self) -> tuple[CalibrationData, CalibrationData]:
        """Rows to calibrate on and rows to judge by: apart when there are enough, else the same."""
        if self.count < _HELD_OUT:
            return self, self
        index = np.arange(self.count)
        return self.take(index[index % 4 != 3]), self.take(index[index % 4 == 3])

    @property
    def digest(self) -> str:
        """SHA-256 of names, types, shapes and bytes."""
        sha = hashlib.sha256()
        for name in sorted(self.inputs):
            value = self.inputs[name]
            sha.update(f"{name} {value.dtype} {value.shape}".encode())
            sha.update(np.ascontiguousarray(value).tobytes())
        return sha.hexdigest()


def calibration_data(
    package: Package, *, recipe: ModelSpec | None = None, calib: Path | None = None, samples: int | None = None
) -> CalibrationData:
    """Real inputs for `package`: from `calib` (a folder or .npz) if given, else the recipe, else the package.

    Raises:
        UsageError: there are none, or the package's own are synthetic.
        InputError: a file does not fit the model.
        RecipeError: the recipe's samples fail.
    """
    specs = package.manifest.input_specs
    if samples is not None and samples < 1:
        raise UsageError(f"--samples {samples} is not usable; expected 1 or more.")
    wanted = _affordable(specs, samples or DEFAULT_SAMPLES)
    if calib is not None:
        return _from_path(package, calib, wanted)
    if recipe is not None and recipe.samples is not None:
        return _from_recipe(package, recipe, wanted)
    info = package.manifest.samples
    if info is None or info.source == "synthetic":
        what = "only synthetic samples" if info else "no samples"
        raise UsageError(
            f"'{package.path.name}' holds {what}, and ranges of random inputs would be wrong. "
            "Give real inputs with --calib FOLDER or FILE.npz, or a recipe that has samples with --recipe."
        )
    return _data(specs, package.samples().inputs, f"samples of {package.path.name}", wanted)


def _affordable(specs: tuple[TensorSpec, ...], wanted: int) -> int:
    row = sum(4 * int(np.prod([d if isinstance(d, int) else 1 for d in s.shape] or [1])) for s in specs)
    return max(1, min(wanted, _MEMORY_BYTES // max(1, row)))


def _data(specs: tuple[TensorSpec, ...], inputs: Tensors, source: str, most: int) -> CalibrationData:
    count = sample_count(inputs, specs)
    if count == 0:
        raise UsageError(f"The {source} hold no samples. Give real inputs.")
    data = CalibrationData(specs, inputs, count, source)
    for feed in data.batches(count):
        check_feed(feed, specs)
    for name, value in inputs.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise InputError(f"Input '{name}' of the {source} holds NaN or infinite values. Clean the data first.")
    return data if count <= most else data.take(np.arange(most))


def _from_recipe(package: Package, recipe: ModelSpec, wanted: int) -> CalibrationData:
    specs = package.manifest.input_specs
    if {s.name: s.dtype for s in recipe.inputs} != {s.name: s.dtype for s in specs}:
        raise UsageError(
            f"Recipe '{recipe.name}' has inputs {', '.join(map(str, recipe.inputs))}, but '{package.path.name}' has "
            f"{', '.join(map(str, specs))}. Give the recipe that the package was exported from."
        )
    source = f"recipe '{recipe.name}'"
    if specs[0].batched:
        return _data(specs, recipe.sample(wanted, 0), source, wanted)
    return _data(specs, join([recipe.sample(1, seed) for seed in range(wanted)], specs, specs), source, wanted)


def _from_path(package: Package, path: Path, wanted: int) -> CalibrationData:
    if path.is_dir():
        return _from_folder(package, path, wanted)
    if path.suffix == ".npz" and path.is_file():
        return _data(package.manifest.input_specs, _npz(path, package), path.name, wanted)
    what = "does not exist" if not path.exists() else "is neither a folder nor an .npz file"
    raise UsageError(f"Calibration data '{path}' {what}. Give a folder of images, WAV or npz files, or one .npz.")


def _npz(path: Path, package: Package) -> Tensors:
    specs = package.manifest.input_specs
    found = arrays_from_file(path, specs)
    given = {**package.defaults(), **found}
    missing = [s.name for s in specs if s.name not in given]
    if missing:
        raise InputError(f"'{path.name}' lacks input '{missing[0]}'; it has {', '.join(found) or 'nothing'}.")
    return {s.name: given[s.name] for s in specs}


def _from_folder(package: Package, folder: Path, wanted: int) -> CalibrationData:
    specs = package.manifest.input_specs
    chosen = evenly(input_files(folder), wanted)
    load = _file_loader(package)
    feeds = [feed for path in chosen for feed in load(path)]
    return _data(specs, join(feeds, specs, specs), f"{len(chosen)} files of {folder.name}/", wanted)


def _file_loader(package: Package) -> Callable[[Path], list[Tensors]]:
    manifest = package.manifest
    defaults = package.defaults()
    for state in manifest.states:
        spec = next(s for s in manifest.input_specs if s.name == state)
        defaults.setdefault(state, np.zeros(spec.concrete(), spec.dtype))

    def load(path: Path) -> list[Tensors]:
        if path.suffix.lower() in ARRAY_SUFFIXES:
            return [_npz(path, package)]
        fed = list(manifest.preprocess)
        if len(fed) != 1:
            raise UsageError(
                f"'{package.path.name}' declares no preprocessing for files like '{path.name}'. "
                "Give its inputs as .npz, or declare the preprocessing in the recipe."
            )
        rows = tensor_from_file(path, manifest.preprocess[fed[0]])
        missing = [s.name for s in manifest.input_specs if s.name not in defaults and s.name != fed[0]]
        if missing:
            raise UsageError(f"Input '{missing[0]}' has no default, so files alone cannot feed it. Give .npz files.")
        return [{**defaults, fed[0]: rows[i : i + 1]} for i in range(len(rows))]

    return load
