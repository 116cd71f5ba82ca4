"""TensorRT sessions on a module like TensorRT, and what they are fed."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgekit.runtime.dlpack import CUDA, DeviceTensor
from edgekit.runtime.trt import TrtSession
from tests.runtime.on_stub import fake_trt


def session(does: str = "matmul", facts: dict[str, Any] | None = None, **options: Any) -> TrtSession:
    """A session of an engine whose one operation is `does`."""
    return TrtSession(fake_trt.engine(does, **(facts or {})), module=fake_trt, variant="fp16", **options)


def rows(count: int, value: float = 1.0) -> dict[str, np.ndarray]:
    """A feed of that many rows, all of one value."""
    return {"x": np.full((count, 4), value, np.float32)}


def on_gpu(array: np.ndarray, device: tuple[int, int] = (CUDA, 0)) -> DeviceTensor:
    """The stub's GPU works in host memory, so that any array is on it."""
    return DeviceTensor(array.ctypes.data, array.dtype.name, array.shape, device=device, release=lambda: None)
