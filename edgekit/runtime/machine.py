"""What this machine can run models on: its GPU, and which runtimes are installed for it."""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from edgekit._lazy import available
from edgekit.runtime.devices import CPU, Place
from edgekit.runtime.ort_providers import CUDA_PROVIDER
from edgekit.runtime.trt_load import MODULES

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Machine:
    """What sessions can be opened on.

    Attributes:
        place: the CPU, or the GPU that is used.
        gpu: the GPU's name, "" without one; sm: its compute capability, 87 for 8.7.
        onnx_cuda: whether the installed ONNX Runtime has the CUDA provider.
        tensorrt: format of an engine ("tensorrt", "tensorrt-rtx") -> the installed release that runs it.
        missing: formats whose module cannot be used -> why.
    """

    place: Place = CPU
    gpu: str = ""
    sm: int = 0
    onnx_cuda: bool = False
    tensorrt: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


def gpu_of_driver(index: int = 0) -> tuple[str, int] | None:
    """Name and compute capability of GPU number `index`, asked of the driver itself; None without one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    calls: tuple[Callable[[], int], ...] = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), index),
        lambda: cuda.cuDeviceGetName(name, len(name), device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device),
    )
    if any(call() != 0 for call in calls):
        return None
    return name.value.decode(errors="replace"), 10 * major.value + minor.value


def look(index: int = 0, *, engines: bool = False) -> Machine:
    """This machine with its GPU number `index`; with `engines` TensorRT is looked up too, which imports it.

    Without a GPU nothing is imported.
    """
    gpu = gpu_of_driver(index)
    if gpu is None:
        return Machine()
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    for kind, name in MODULES.items() if engines else ():
        if not available(name):
            missing[kind] = f"{name} is not installed"
            continue
        try:
            found[kind] = str(importlib.import_module(name).__version__)
        except (ImportError, OSError, AttributeError) as error:
            missing[kind] = f"{name} cannot be loaded ({(str(error).splitlines() or ['?'])[0]})"
    return Machine(Place("cuda", index), *gpu, onnx_cuda=_onnx_cuda(), tensorrt=found, missing=missing)


def _onnx_cuda() -> bool:
    if not available("onnxruntime"):
        return False
    return CUDA_PROVIDER in importlib.import_module("onnxruntime").get_available_providers()
