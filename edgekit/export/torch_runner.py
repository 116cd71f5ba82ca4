"""A PyTorch module behind the same call as every other runner: named numpy arrays in and out."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgekit._lazy import require
from edgekit.errors import ModelError, RecipeError
from edgekit.recipe import call_recipe
from edgekit.runtime.ort import physical_cores
from edgekit.tensors import Array, Feed, Tensors, TensorSpec, check_feed

_LOGGERS = (
    "torch",
    "torch.onnx",
    "torch.export",
    "torch._export",
    "torch._dynamo",
    "torch.fx",
    "onnxscript",
    "onnx_ir",
)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and log lines of the exporter; they speak to its authors."""
    before = {name: logging.getLogger(name).level for name in _LOGGERS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for name in _LOGGERS:
                logging.getLogger(name).setLevel(logging.CRITICAL)
            yield
        finally:
            for name, level in before.items():
                logging.getLogger(name).setLevel(level)


class TorchRunner:
    """Runs a module (or a loaded `torch.export` program) in inference mode on the CPU.

    `outputs` are the names given to the results in order; empty takes the keys of a dictionary, else "output" or
    "output_0", "output_1", ... `keywords` are the inputs passed by name: None finds them in forward()'s signature.
    """

    def __init__(
        self,
        module: Any,
        inputs: Sequence[TensorSpec],
        *,
        model: str,
        outputs: Sequence[str] = (),
        keywords: Sequence[str] | None = None,
    ) -> None:
        self.module = module
        self.inputs = tuple(inputs)
        self.model = model
        self.names = tuple(outputs)
        self.keywords = _keywords(module, self.inputs) if keywords is None else tuple(keywords)
        taken = {s.name for s in self.inputs}
        for i, name in enumerate(self.names):
            if name in taken or name in self.names[:i]:
                raise RecipeError(
                    f"SPEC.outputs of '{model}' use the name '{name}' twice (inputs count too). Rename it."
                )

    def arguments(self, feed: Feed) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """`feed` as the positional and keyword arguments of the module: by name where its signature has the names."""
        tensors = {s.name: to_torch(feed[s.name], s.dtype) for s in self.inputs}
        positional = tuple(tensors[s.name] for s in self.inputs if s.name not in self.keywords)
        return positional, {name: tensors[name] for name in self.keywords}

    def run(self, feed: Feed) -> Tensors:
        """One batch through the module.

        Raises:
            InputError: `feed` does not fit the inputs.
            RecipeError: the module raises, or returns something other than its declared outputs.
            ModelError: an output's type is one that edgekit does not carry.
        """
        torch = require("torch", why="run the model")
        args, kwargs = self.arguments(check_feed(feed, self.inputs))
        with torch.inference_mode(), quiet(), _threads(torch, max(1, physical_cores() - 1)):
            result = call_recipe(f"The model of '{self.model}'", lambda: self.module(*args, **kwargs))
        tensors = self._tensors(result)
        return {name: to_numpy(t, name) for name, t in zip(self.names, tensors)}

    def _tensors(self, result: Any) -> list[Any]:
        torch = require("torch", why="run the model")
        leaves = [v for v in torch.utils._pytree.tree_leaves(result) if v is not None]
        for leaf in leaves:
            if not isinstance(leaf, torch.Tensor):
                raise RecipeError(
                    f"The model of '{self.model}' returns a {type(leaf).__name__}; expected tensors "
                    "(one, or a tuple, list or dictionary of them)."
                )
        if not leaves:
            raise RecipeError(f"The model of '{self.model}' returns no tensor. Return the result of forward().")
        if not self.names:
            self.names = _default_names(result, len(leaves), {s.name for s in self.inputs})
        if len(leaves) != len(self.names):
            raise RecipeError(
                f"The model of '{self.model}' returns {len(leaves)} tensors, its recipe names {len(self.names)} "
                f"outputs ({', '.join(self.names)}). Make SPEC.outputs name each one."
            )
        return leaves


@contextlib.contextmanager
def _threads(torch: Any, count: int) -> Iterator[None]:
    """Run on `count` threads: PyTorch's spin at every operator, and stall when something else wants the last core."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _default_names(result: Any, count: int, taken: set[str]) -> tuple[str, ...]:
    if isinstance(result, Mapping) and len(result) == count and all(isinstance(k, str) and k for k in result):
        return tuple(f"{k}_out" if k in taken else k for k in result)
    return ("output",) if count == 1 else tuple(f"output_{i}" for i in range(count))


def _keywords(module: Any, inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """All inputs, where forward() has parameters of their names; else none."""
    try:
        parameters = inspect.signature(module.forward).parameters
    except (AttributeError, TypeError, ValueError):
        return ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    if all(s.name in parameters and parameters[s.name].kind in named for s in inputs):
        return tuple(s.name for s in inputs)
    return ()


def to_torch(array: Array, dtype: str) -> Any:
    """A numpy array as a tensor that owns its memory; bfloat16 comes as raw 16 bits."""
    torch = require("torch", why="run the model")
    if dtype == "string":
        raise ModelError("PyTorch models cannot take string inputs. Tokenize outside the model.")
    tensor = torch.from_numpy(np.array(array, copy=True, order="C"))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def to_numpy(tensor: Any, name: str) -> Array:
    """A tensor as numpy. Raises ModelError, naming it, for a type that edgekit does not carry."""
    torch = require("torch", why="run the model")
    kind = str(tensor.dtype).removeprefix("torch.")
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.detach().cpu().contiguous().view(torch.uint16).numpy())
    if tensor.is_complex() or kind.startswith(("float8", "q", "bits", "float4")):
        raise ModelError(
            f"Output '{name}' has type {kind}, which edgekit does not carry. "
            "Return float, integer or bool tensors (for a complex one its real and imaginary parts)."
        )
    return np.asarray(tensor.detach().cpu().contiguous().numpy())
