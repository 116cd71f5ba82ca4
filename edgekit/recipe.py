"""A recipe: one file that describes one model, and all that a user writes.

SPEC = ModelSpec(name="digits_cnn", build=build, inputs=(TensorSpec("image", "float32", ("batch", 1, 32, 32)),),
                 samples=samples, evaluate=evaluate)
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from edgekit.errors import EdgekitError, InputError, RecipeError
from edgekit.preprocess import Preprocess
from edgekit.tensors import (
    Array,
    Feed,
    Tensors,
    TensorSpec,
    batch_axis,
    check_feed,
    numpy_dtype,
    sample_count,
    take_samples,
)

Runner: TypeAlias = Callable[[Feed], Tensors]
"""Runs a model on one batch: the same call for PyTorch, ONNX Runtime, TensorRT or a remote server."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_name(name: str) -> str:
    """`name` if it can be a model's name: letters, digits, '.', '_', '-', at most 128, not starting with '.'."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RecipeError(
            f"Model name {name!r} is not usable; expected letters, digits, '.', '_' or '-', "
            "at most 128 of them, starting with a letter or digit."
        )
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model: how it is built, what goes in, and how it is judged.

    Attributes:
        name: the package's name: letters, digits, '.', '_', '-'.
        build: returns the `torch.nn.Module` with trained weights in eval mode, or the path of an `.onnx` file.
        inputs: name, type and shape of every input. A named dimension may vary; equal names vary together.
        samples: `(n, seed) -> {input: array}`: n real inputs, batched along the first dimension, already
            preprocessed. The same seed gives the same samples. They calibrate, verify and warm up.
        evaluate: `(run, n) -> {metric: value}`: the task's metrics on n (or fewer) held-out samples through
            any runner; the first metric is the one that budgets and tables use.
        outputs: names of the outputs in order; empty keeps the exporter's names.
        task: what the first output means. "classification" turns on top-1 agreement and labels.
        labels: names of the classes.
        preprocess: for each input that files can feed, how.
        tolerance: precision -> largest loss of the first metric that `verify` accepts, in points of the metric
            as printed (0.5 means 99.0 % may become 98.5 %).
        higher_is_better: whether a larger first metric is better.
        states: input -> output that feeds it in the next call (recurrent state, KV cache); zero at the start.
        defaults: values of inputs that callers may leave out (a sample rate, a threshold).
        opset: ONNX opset to export; None lets edgekit choose.
        description, license: free text for the manifest.
    """

    name: str
    build: Callable[[], Any]
    inputs: tuple[TensorSpec, ...]
    samples: Callable[[int, int], Mapping[str, Array]] | None = None
    evaluate: Callable[[Runner, int], Mapping[str, float]] | None = None
    outputs: tuple[str, ...] = ()
    task: str = ""
    labels: tuple[str, ...] = ()
    preprocess: Mapping[str, Preprocess] = field(default_factory=dict)
    tolerance: Mapping[str, float] = field(default_factory=dict)
    higher_is_better: bool = True
    states: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Array] = field(default_factory=dict)
    opset: int | None = None
    description: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        check_name(self.name)
        if not callable(self.build):
            raise RecipeError(f"SPEC.build of '{self.name}' must be a function that returns a model.")
        object.__setattr__(self, "inputs", tuple(self.inputs))
        if not self.inputs or not all(isinstance(s, TensorSpec) for s in self.inputs):
            raise RecipeError(
                f"SPEC.inputs of '{self.name}' must be one or more TensorSpec, e.g. "
                'TensorSpec("image", "float32", ("batch", 3, 224, 224)).'
            )
        names = {s.name for s in self.inputs}
        for what in ("preprocess", "states", "defaults"):
            for key in getattr(self, what):
                if key not in names:
                    raise RecipeError(
                        f"SPEC.{what} of '{self.name}' names '{key}', which is not an input; "
                        f"inputs are {', '.join(sorted(names))}."
                    )

    def sample(self, n: int, seed: int) -> Tensors:
        """Up to `n` checked samples from the recipe, complete: defaults and zero states are filled in.

        A model with a fixed batch gets `n` blocks of it along the first dimension: `tensors.batches` takes them apart.

        Raises:
            RecipeError: the recipe has no samples, raises, or returns tensors that do not fit its inputs.
        """
        if self.samples is None:
            raise RecipeError(
                f"Recipe '{self.name}' has no samples; give SPEC.samples, or real inputs on the command line."
            )
        what = f"samples of recipe '{self.name}'"
        feed = call_recipe(what, lambda: self.samples(n, seed))  # type: ignore[misc]
        if not isinstance(feed, Mapping):
            raise RecipeError(f"{what} returned {type(feed).__name__}; expected a dictionary of input name -> array.")
        try:
            given = self.complete({str(k): np.asarray(v) for k, v in feed.items()})
        except InputError as error:
            raise RecipeError(f"{what} do not fit the recipe's inputs: {error}") from error
        count = sample_count(given, self.inputs)
        return take_samples(given, self.inputs, 0, min(n, count), self.inputs)

    def complete(self, feed: Feed) -> Tensors:
        """`feed` of one or more samples with defaults and zero states filled in, checked against the inputs.

        Raises:
            InputError: an input is missing, or does not fit.
        """
        given = {s.name: np.asarray(feed[s.name]) for s in self.inputs if s.name in feed}
        count, sizes = 1, {}
        for spec in self.inputs:
            array, axis = given.get(spec.name), batch_axis(spec, self.inputs)
            if array is None or array.ndim != len(spec.shape):
                continue
            sizes.update({d: n for d, n in zip(spec.shape, array.shape) if isinstance(d, str)})
            if axis is not None:
                block = spec.shape[axis]
                count = max(count, array.shape[axis] // (block if isinstance(block, int) and block else 1))
        blocks = []
        for spec in self.inputs:
            axis = batch_axis(spec, self.inputs)
            shape = list(spec.shape)
            if axis is not None and isinstance(shape[axis], int):
                shape[axis] = int(shape[axis]) * count
            if spec.name not in given and (spec.name in self.states or spec.name in self.defaults):
                wanted = tuple(d if isinstance(d, int) else sizes.get(d, 1) for d in shape)
                start = self.defaults.get(spec.name, np.zeros((), numpy_dtype(spec.dtype)))
                given[spec.name] = np.broadcast_to(np.asarray(start, numpy_dtype(spec.dtype)), wanted)
            blocks.append(TensorSpec(spec.name, spec.dtype, tuple(shape)))
        return check_feed({**feed, **given}, blocks)

    def measure(self, run: Runner, n: int) -> dict[str, float]:
        """The recipe's metrics through `run`, on up to `n` held-out samples; empty if it has no evaluate.

        Raises:
            RecipeError: evaluate raises, or returns something other than finite numbers by name.
        """
        if self.evaluate is None:
            return {}
        what = f"evaluate of recipe '{self.name}'"
        values = call_recipe(what, lambda: self.evaluate(run, n))  # type: ignore[misc]
        try:
            metrics = {str(k): float(v) for k, v in dict(values).items()}
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{what} returned {type(values).__name__}; expected metric name -> number.") from error
        for name, value in metrics.items():
            if not np.isfinite(value):
                raise RecipeError(f"{what} gave {value} for '{name}'; expected a finite number.")
        return metrics


def call_recipe(what: str, call: Callable[[], Any]) -> Any:
    """Run a piece of a recipe; what it raises becomes a RecipeError that names the place."""
    try:
        return call()
    except EdgekitError:  # already says what to do
        raise
    except SystemExit as error:
        raise RecipeError(f"{what} tried to exit the program. Keep that under if __name__ == '__main__'.") from error
    except Exception as error:
        place = ""
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        if trace is not None:
            place = f" (line {trace.tb_lineno} of {Path(trace.tb_frame.f_code.co_filename).name})"
        text = str(error).strip().splitlines()
        detail = f"{type(error).__name__}: {text[0]}" if text else type(error).__name__
        raise RecipeError(f"{what} failed with {detail}{place}. Fix the recipe and run again.") from error


def load_recipe(source: str | Path) -> Any:
    """The object that `source` names: a ModelSpec, or what a `module:factory` or `path.py:NAME` gives.

    `models/net.py` means its SPEC; `models/net.py:NAME` and `package.module:NAME` mean that attribute. The file
    is Python and is executed: load only recipes you trust.

    Raises:
        RecipeError: no such file, module or attribute, or the file raises.
    """
    text = str(source)
    if text.endswith(".py"):
        return _attribute(_module_from_path(Path(text)), "SPEC", text)
    where, colon, name = text.rpartition(":")
    if not colon or not name:
        raise RecipeError(
            f"'{text}' is not a model source; expected a recipe (models/net.py), path.py:NAME, "
            "module:factory, a .pt2 or an .onnx file."
        )
    if where.endswith(".py"):
        return _attribute(_module_from_path(Path(where)), name, text)
    try:
        module = importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name is not None and where.split(".")[0] == error.name.split(".")[0]:
            raise RecipeError(f"Module '{where}' is not found; install it, or run where it is.") from error
        raise RecipeError(f"Module '{where}' needs '{error.name}', which is not installed.") from error
    except Exception as error:
        raise RecipeError(f"Module '{where}' failed to import with {type(error).__name__}: {error}.") from error
    return _attribute(module, name, text)


def _module_from_path(path: Path) -> Any:
    if not path.is_file():
        raise RecipeError(f"Recipe '{path}' does not exist. Check the path.")
    path = path.resolve()
    name = f"_edgekit_recipe_{path.stem}_{abs(hash(str(path))):x}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"Recipe '{path}' cannot be loaded as Python.")
    module = importlib.util.module_from_spec(spec)
    folder = str(path.parent)
    if folder not in sys.path:  # so that a recipe can import what lies beside it, now and when it is called
        sys.path.append(folder)
    sys.modules[name] = module
    try:
        call_recipe(f"Recipe '{path.name}'", lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _attribute(module: Any, name: str, source: str) -> Any:
    if not hasattr(module, name):
        hint = "A recipe defines SPEC = ModelSpec(...)." if name == "SPEC" else "Check the name after the colon."
        raise RecipeError(f"'{source}' has no '{name}'. {hint}")
    value = getattr(module, name)
    if name == "SPEC" and not isinstance(value, ModelSpec):
        raise RecipeError(f"SPEC of '{source}' is a {type(value).__name__}; expected a ModelSpec.")
    return value


def spec_from_recipe(source: str | Path) -> ModelSpec:
    """The ModelSpec of a recipe. Raises RecipeError if `source` does not give one."""
    value = load_recipe(source)
    if not isinstance(value, ModelSpec):
        raise RecipeError(f"'{source}' is a {type(value).__name__}; expected a ModelSpec.")
    return value
