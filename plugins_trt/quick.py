"""Operators as TensorRT quick plugins, compiled ahead of time (TensorRT 10.9+): the kernel's PTX becomes part of the
engine, which then needs neither a plugin library nor Python.

The functions that `tensorrt.plugin` wants (`register`, `autotune`, `aot_impl`) are made from the operator's
description, with the signatures that NVIDIA checks.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any, Union

from plugins_trt import DOMAIN
from plugins_trt.compile import compiled_kernel, nvrtc_version, supported_targets
from plugins_trt.dims import Dim, Size, translate
from plugins_trt.errors import MissingLibraryError, PluginError, UnsupportedTargetError
from plugins_trt.operator import AttributeValue, Call, Operator, TensorType

DTYPE_WORDS: Mapping[str, tuple[str, str]] = {
    "float32": ("FLOAT", "FP32"), "float16": ("HALF", "FP16"), "bfloat16": ("BF16", "BF16"), "int8": ("INT8", "INT8"),
    "uint8": ("UINT8", "UINT8"), "int32": ("INT32", "INT32"), "int64": ("INT64", "INT64"), "bool": ("BOOL", "BOOL"),
}  # fmt: skip
"""For each dtype the member of `tensorrt.DataType`, and the word that AutoTuneCombination takes."""


def register(trt: Any, operators: Iterable[Operator], *, sm: int | None = None) -> tuple[str, ...]:
    """Register `operators` with a loaded `tensorrt` module; the plugin ids, "edgekit::NAME".

    What is registered already stays. Kernels are compiled when an engine is built: for `sm`, or for this machine's GPU.

    Raises:
        UnsupportedTargetError: this TensorRT has no plugins compiled ahead of time.
    """
    trtp = plugin_module(trt)
    ids = []
    for operator in operators:
        plugin = QuickPlugin(trt, trtp, operator, sm)
        namespace = getattr(trtp.op, DOMAIN, None)
        if namespace is None or not hasattr(namespace, operator.name):
            trtp.register(plugin.id)(plugin.describe())
            trtp.autotune(plugin.id)(plugin.autotune())
            trtp.aot_impl(plugin.id)(plugin.aot_impl())
        ids.append(plugin.id)
    return tuple(ids)


def plugin_module(trt: Any) -> Any:
    """`tensorrt.plugin` of a loaded `tensorrt` module.

    Raises:
        UnsupportedTargetError: this TensorRT has no plugins compiled ahead of time.
    """
    if not hasattr(trt, "QuickPluginCreationRequest"):
        version = getattr(trt, "__version__", "of this machine")
        raise UnsupportedTargetError(
            f"TensorRT {version} has no plugins compiled ahead of time; 10.9 has. "
            "Nodes run through their function bodies."
        )
    return importlib.import_module(f"{trt.__name__}.plugin")


def this_gpu(index: int = 0) -> int:
    """The compute capability of this machine's GPU (87 for 8.7), whose driver must read the PTX of this NVRTC.

    Raises:
        MissingLibraryError: no driver, no GPU, or a driver that is older than NVRTC.
    """
    try:
        driver = importlib.import_module("cuda.bindings.driver")
        (status,) = driver.cuInit(0)
        failed = status != driver.CUresult.CUDA_SUCCESS
    except Exception as error:  # ImportError, and the loader's own class where there is no driver
        raise MissingLibraryError(_NO_GPU) from error
    if failed:
        raise MissingLibraryError(_NO_GPU)
    _, version = driver.cuDriverGetVersion()
    check_driver((version // 1000, version % 1000 // 10), nvrtc_version())
    names = driver.CUdevice_attribute
    _, device = driver.cuDeviceGet(index)
    _, major = driver.cuDeviceGetAttribute(names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
    _, minor = driver.cuDeviceGetAttribute(names.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    return int(major) * 10 + int(minor)


_NO_GPU = "Building engines with plugins needs an NVIDIA GPU and its driver on this machine, and neither answers here."


def check_driver(driver: tuple[int, int], nvrtc: tuple[int, int]) -> None:
    """Raise MissingLibraryError if a driver for CUDA `driver` cannot read the PTX of NVRTC `nvrtc`."""
    if driver < nvrtc:
        (major, minor), package = driver, "nvidia-cuda-nvrtc" + "-cu12" * (driver[0] == 12)
        raise MissingLibraryError(
            f"The driver is for CUDA {major}.{minor} and does not read what NVRTC {nvrtc[0]}.{nvrtc[1]} compiles. "
            f"Install its release: pip install '{package}=={major}.{minor}.*'."
        )


def ptx_target(sm: int) -> int:
    """The newest target of this NVRTC whose PTX runs on `sm`: itself, or the last before it.

    Raises:
        UnsupportedTargetError: `sm` is older than every target.
    """
    fitting = [known for known in supported_targets() if known <= sm]
    if not fitting:
        raise UnsupportedTargetError(f"sm_{sm} is too old for the kernels: sm_{supported_targets()[0]} at least.")
    return fitting[-1]


class QuickPlugin:
    """One operator in the terms of `tensorrt.plugin` (`trtp`), compiled for `sm` (None: this machine's GPU)."""

    def __init__(self, trt: Any, trtp: Any, operator: Operator, sm: int | None) -> None:
        self.trt, self.trtp, self.operator, self._sm = trt, trtp, operator, sm
        self.id = f"{DOMAIN}::{operator.name}"

    @property
    def sm(self) -> int:
        """The target, found when the first kernel is compiled."""
        if self._sm is None:
            self._sm = this_gpu()
        return self._sm

    def describe(self) -> Callable[..., Any]:
        """What `register` takes: dtypes and shapes of the outputs."""

        def describe(*given: Any, **named: Any) -> Any:
            inputs, values = self._split([*given, *named.values()])
            call = self.call(inputs, values)
            return tuple(
                self.trtp.from_shape_expr(
                    tuple(self._expression(size, inputs) for size in made.shape), self._data_type(made.dtype)
                )
                for made in self.operator.output_types(call)
            )

        return self._signed(describe, (), self._outputs_type())

    def autotune(self) -> Callable[..., Any]:
        """What `autotune` takes: the dtypes as they are, linear memory, every tactic of the operator."""

        def autotune(*given: Any) -> Any:
            *front, outputs = given
            inputs, values = self._split(front)
            call = self.call(inputs, values)
            words = [DTYPE_WORDS[self._dtype(desc.dtype)][1] for desc in [*inputs, *outputs]]
            tactics = list(self.operator.tactics(call, self.sm))
            return [self.trtp.AutoTuneCombination(", ".join(words), "LINEAR", tactics)]

        return self._signed(autotune, ("outputs",), types.GenericAlias(list, (self.trtp.AutoTuneCombination,)))

    def aot_impl(self) -> Callable[..., Any]:
        """What `aot_impl` takes: the kernel's name and PTX, how to launch it, and its scalar arguments."""
        trtp = self.trtp

        def aot_impl(*given: Any) -> Any:
            *front, _outputs, tactic = given
            inputs, values = self._split(front)
            call = self.call(inputs, values)
            chosen = int(tactic) or self.operator.tactics(call, self.sm)[0]
            plan = self.operator.plan(call, tactic=chosen, sm=self.sm)
            kernel = compiled_kernel(self.operator, plan, sm=ptx_target(self.sm))
            launch = trtp.KernelLaunchParams()
            launch.grid_x, launch.grid_y, launch.grid_z = (self._expression(size, inputs) for size in plan.grid)
            launch.block_x, launch.block_y, launch.block_z = plan.block
            launch.shared_mem = plan.shared_bytes
            scalars = trtp.SymIntExprs(len(plan.scalars))
            for index, size in enumerate(plan.scalars):
                scalars[index] = trtp.SymInt32(self._expression(size, inputs))
            return plan.entry, kernel.ptx, launch, scalars

        text = Union[str, bytes]  # noqa: UP007  (what NVIDIA's validation of 10.9 expects)
        returned = types.GenericAlias(tuple, (text, text, trtp.KernelLaunchParams, trtp.SymExprs))
        return self._signed(aot_impl, ("outputs", "tactic"), returned)

    def call(self, descriptions: Sequence[Any], values: Sequence[Any]) -> Call:
        """The operator's call for NVIDIA's tensor descriptors and attribute values."""
        inputs = tuple(
            TensorType(self._dtype(desc.dtype), tuple(_dim(desc, index, axis) for axis in range(desc.ndim)))
            for index, desc in enumerate(descriptions)
        )
        attributes: dict[str, AttributeValue] = {}
        for attribute, value in zip(self.operator.attributes, values):
            attributes[attribute.name] = tuple(value.tolist()) if hasattr(value, "tolist") else value
        return self.operator.call(*inputs, **attributes)

    def _split(self, given: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        count = len(self.operator.inputs)
        return list(given[:count]), list(given[count:])

    def _signed(self, function: Callable[..., Any], extra: Sequence[str], returned: Any) -> Callable[..., Any]:
        """`function` with the signature that NVIDIA reads: tensors, attributes, `extra`."""
        import numpy as np

        kinds: dict[str, Any] = {"int": int, "float": float, "str": str}
        kinds |= {"ints": np.typing.NDArray[np.int64], "floats": np.typing.NDArray[np.float32]}
        desc = self.trtp.TensorDesc
        annotations: dict[str, Any] = {port.name: desc for port in self.operator.inputs}
        annotations |= {attribute.name: kinds[attribute.kind] for attribute in self.operator.attributes}
        annotations |= {name: {"outputs": self._outputs_type(), "tactic": int}[name] for name in extra}
        parameters = [Parameter(n, Parameter.POSITIONAL_OR_KEYWORD, annotation=a) for n, a in annotations.items()]
        function.__signature__ = Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
        return function

    def _outputs_type(self) -> Any:
        """tuple[TensorDesc, ...], one for each output."""
        return types.GenericAlias(tuple, (self.trtp.TensorDesc,) * len(self.operator.outputs))

    def _expression(self, size: Dim, inputs: Sequence[Any]) -> Any:
        """A size in TensorRT's own algebra: an int, or a ShapeExpr over the inputs' shapes."""
        trtp = self.trtp
        functions = {"ceil_div": trtp.cdiv, "max": trtp.max, "min": trtp.min}

        def apply(operation: str, left: Any, right: Any) -> Any:
            if isinstance(left, int):
                left = trtp.ShapeExpr(left)
            if operation in functions:
                return functions[operation](left, right)
            return {"+": left.__add__, "-": left.__sub__, "*": left.__mul__, "//": left.__floordiv__}[operation](right)

        return translate(size, leaf=lambda index, axis: inputs[index].shape_expr[axis], constant=int, apply=apply)

    def _data_type(self, dtype: str) -> Any:
        return getattr(self.trt.DataType, DTYPE_WORDS[dtype][0])

    def _dtype(self, given: Any) -> str:
        for name, (member, _) in DTYPE_WORDS.items():
            if getattr(self.trt.DataType, member, None) == given:
                return name
        raise PluginError(f"{self.operator.name}: TensorRT's dtype {given} is not one that kernels are written for.")


def _dim(desc: Any, index: int, axis: int) -> Dim:
    """One dimension of a descriptor: a number where TensorRT knows it."""
    if desc.has_shape:
        known = int(desc.shape[axis])
        return Size(index=index, axis=axis) if known < 0 else known
    expression = desc.shape_expr[axis]
    if expression.is_fake or not expression.is_constant:
        return Size(index=index, axis=axis)
    return int(expression.constant_value())
