"""From files on disk to named input tensors: numpy files, pictures and recordings, one or a folder of them."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgekit.errors import InputError, UsageError
from edgekit.preprocess import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Preprocess, tensor_from_file
from edgekit.tensors import Tensors, TensorSpec

ARRAY_SUFFIXES = (".npz", ".npy")
INPUT_SUFFIXES = (*IMAGE_SUFFIXES, *AUDIO_SUFFIXES, *ARRAY_SUFFIXES)


def arrays_from_file(path: Path, inputs: Sequence[TensorSpec]) -> Tensors:
    """Inputs by name from an `.npz` file, or the only input from an `.npy` (or an `.npz` with one array).

    A package's own samples.npz is read too: "input/NAME" counts as NAME and "output/NAME" is left out. Pickled objects
    are never loaded.

    Raises:
        InputError: the file is missing or damaged, or an `.npy` is given to a model with several inputs.
    """
    try:
        with path.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                arrays = {"": loaded}
            else:
                arrays = {name: loaded[name] for name in loaded.files}
    except FileNotFoundError:
        raise InputError(f"'{path}' does not exist. Check the path.") from None
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"'{path.name}' is not a readable numpy file: it is damaged, or holds Python objects. "
            "Save arrays with numpy.savez."
        ) from error
    if "" in arrays and len(inputs) != 1:
        raise InputError(f"'{path.name}' holds one array, the model has {len(inputs)} inputs. Give an .npz.")
    found = {k.removeprefix("input/"): v for k, v in arrays.items() if not k.startswith("output/")}
    if len(inputs) == 1 and len(found) == 1:
        return {inputs[0].name: next(iter(found.values()))}
    return found


def tensors_from_file(path: Path, inputs: Sequence[TensorSpec], preprocess: Mapping[str, Preprocess]) -> Tensors:
    """What one file gives: arrays by name, or a picture or recording through the declared preprocessing.

    Raises:
        InputError: the file cannot be read, is of no known kind, or needs preprocessing that is not declared.
    """
    suffix = path.suffix.lower()
    if suffix in ARRAY_SUFFIXES:
        return arrays_from_file(path, inputs)
    if suffix not in INPUT_SUFFIXES:
        raise InputError(f"'{path.name}' is not an input file; expected one of {', '.join(INPUT_SUFFIXES)}.")
    if len(preprocess) != 1:
        known = f"{len(preprocess)} inputs" if preprocess else "no input"
        raise InputError(
            f"'{path.name}' needs preprocessing, which is declared for {known}. "
            "Give an .npz file, or export again with a recipe that declares it for one."
        )
    name, how = next(iter(preprocess.items()))
    return {name: tensor_from_file(path, how)}


def input_files(folder: Path) -> list[Path]:
    """Every picture, recording and numpy file below `folder`, sorted.

    Raises:
        UsageError: there is none.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix.lower() in INPUT_SUFFIXES)
    if not files:
        raise UsageError(f"'{folder}' holds no input files; expected {', '.join(INPUT_SUFFIXES)}.")
    return files


def evenly(files: Sequence[Path], count: int) -> list[Path]:
    """Up to `count` of `files`, spread over all of them: a sorted folder keeps one class together."""
    if len(files) <= count:
        return list(files)
    return [files[i] for i in np.linspace(0, len(files) - 1, count).round().astype(int)]
