"""The GPU of this machine, asked of the driver itself: no package is needed."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver names it, its compute capability (87 is 8.7), and the board's name on a Jetson."""

    name: str
    sm: int
    board: str = ""


def this_gpu(index: int = 0, *, root: Path = Path("/"), library: str = "libcuda.so.1") -> Gpu | None:
    """GPU number `index` of this machine, or None without a driver or a GPU. `root` is where /proc is looked for."""
    try:
        cuda = ctypes.CDLL(library)
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
    return Gpu(name.value.decode(errors="replace"), major.value * 10 + minor.value, _board(root))


def _board(root: Path) -> str:
    try:
        text = (root / "proc/device-tree/model").read_bytes().decode(errors="replace").strip("\0 \n")
    except OSError:
        return ""
    return text if "jetson" in text.lower() else ""


def gpu_count(*, library: str = "libcuda.so.1") -> int:
    """How many GPUs the driver shows; 0 without a driver."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return 0
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value
