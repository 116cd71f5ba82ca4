"""What the user points at: a recipe, a factory, a module, a `.pt2` or an `.onnx` file."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgekit.errors import ModelError, RecipeError, UsageError
from edgekit.recipe import ModelSpec, call_recipe, load_recipe
from edgekit.tensors import TensorSpec


@dataclass(frozen=True)
class Source:
    """A source, read but not built.

    Attributes:
        file: the file that the user named (or that holds the module).
        kind: "torch", "pt2" or "onnx".
        spec: the recipe; None for a bare `.pt2` or `.onnx`, whose file describes it.
        name: a name for the package where nothing better is given.
    """

    file: Path
    kind: str
    spec: ModelSpec | None
    name: str


def read_source(source: str | Path | ModelSpec, inputs: Sequence[TensorSpec] = ()) -> Source:
    """Find out what `source` is, running a recipe's file but not its build().

    `inputs` describe a bare `torch.nn.Module`, which cannot say what it takes.

    Raises:
        RecipeError: a recipe fails, or gives something other than a model.
        ModelError, UsageError: no such file, or `inputs` are missing or not wanted.
    """
    if isinstance(source, ModelSpec):
        file = Path(inspect.getsourcefile(source.build) or "recipe.py")
        return Source(file, "torch", source, source.name)
    text = str(source)
    path = Path(text)
    if path.suffix in (".onnx", ".pt2"):
        if not path.is_file():
            raise ModelError(f"Model '{path}' does not exist. Check the path.")
        if inputs:
            raise UsageError(f"'{path.name}' describes its own inputs; leave --input out.")
        return Source(path, path.suffix[1:], None, _usable(path.stem))
    if path.suffix in (".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors") and path.is_file():
        raise UsageError(
            f"'{path.name}' holds weights, not a model. Write a recipe that builds the module and loads them with "
            "edgekit.export.weights.load_weights."
        )
    value = load_recipe(text)
    spec = _spec_of(value, text, inputs)
    return Source(_file_of(text), "torch", spec, spec.name)


def _spec_of(value: Any, source: str, inputs: Sequence[TensorSpec]) -> ModelSpec:
    if isinstance(value, ModelSpec):
        return _unwanted(value, source, inputs)
    build: Callable[[], Any] = (lambda: value) if _is_module(value) else value
    if not callable(build):
        raise RecipeError(
            f"'{source}' is a {type(value).__name__}; expected a ModelSpec, a torch.nn.Module, or a function that "
            "returns one."
        )
    if not inputs:  # only now is it worth building: a factory may return a whole ModelSpec
        made = call_recipe(f"'{source}'", build)
        if isinstance(made, ModelSpec):
            return made
        if _is_module(made):
            raise UsageError(
                f"'{source}' is a bare module, which does not say what it takes. Describe its inputs: "
                "--input image:float32:batch,3,224,224"
            )
        raise RecipeError(f"'{source}' returned {type(made).__name__}; expected a ModelSpec or a torch.nn.Module.")
    return ModelSpec(name=_usable(source.rpartition(":")[2]), build=build, inputs=tuple(inputs))


def _unwanted(spec: ModelSpec, source: str, inputs: Sequence[TensorSpec]) -> ModelSpec:
    if inputs:
        raise UsageError(f"'{source}' describes its own inputs; leave --input out.")
    return spec


def _is_module(value: Any) -> bool:
    torch = sys.modules.get("torch")  # a module exists only where torch is loaded
    return torch is not None and isinstance(value, torch.nn.Module)


def _file_of(source: str) -> Path:
    where = source if source.endswith(".py") else source.rpartition(":")[0]
    if where.endswith(".py"):
        return Path(where)
    module = sys.modules.get(where)
    return Path(getattr(module, "__file__", None) or f"{where}.py")


def _usable(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-")[:128] or "model"


def built(spec: ModelSpec) -> Any:
    """What the recipe's build() gives: a module in eval mode, or the path of an `.onnx` or `.pt2` file.

    Raises:
        RecipeError: it raises, or returns something else.
    """
    value = call_recipe(f"build of recipe '{spec.name}'", spec.build)
    if isinstance(value, ModelSpec):
        raise RecipeError(f"build of recipe '{spec.name}' returned a ModelSpec; expected a torch.nn.Module.")
    if isinstance(value, (str, Path)):
        path = Path(value)
        if path.suffix not in (".onnx", ".pt2") or not path.is_file():
            raise RecipeError(f"build of recipe '{spec.name}' returned '{value}', which is not an .onnx or .pt2 file.")
        return path
    if not _is_module(value):
        raise RecipeError(
            f"build of recipe '{spec.name}' returned {type(value).__name__}; expected a torch.nn.Module "
            "(or the path of an .onnx file)."
        )
    return value.eval()


def fixed(spec: ModelSpec, sizes: dict[str, int]) -> ModelSpec:
    """`spec` with every named dimension fixed: to its size in `sizes`, else to 1."""
    inputs = tuple(TensorSpec(s.name, s.dtype, s.concrete(**sizes)) for s in spec.inputs)
    return dataclasses.replace(spec, inputs=inputs)
