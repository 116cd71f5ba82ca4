"""What this machine can run models on: its GPU, and which runtimes are installed for it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgekit._lazy import available, require
from edgekit.gpu import this_gpu
from edgekit.runtime.devices import CPU, Place
from edgekit.runtime.ort_providers import CUDA_PROVIDER
from edgekit.trt_api import MODULES


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


def look(index: int = 0, *, engines: bool = False) -> Machine:
    """This machine with its GPU number `index`; with `engines` TensorRT is looked up too, which imports it.

    Without a GPU nothing is imported.
    """
    gpu = this_gpu(index)
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
    return Machine(Place("cuda", index), gpu.name, gpu.sm, onnx_cuda=_onnx_cuda(), tensorrt=found, missing=missing)


def _onnx_cuda() -> bool:
    if not available("onnxruntime"):
        return False
    return CUDA_PROVIDER in require("onnxruntime", why="run ONNX models").get_available_providers()
