"""A module that is called like `tensorrt` and computes with numpy, on the memory of the stub of the CUDA driver.

An engine is JSON: {"sm", "version", "inputs": {name: [shape, [min, opt, max], ...]}, "outputs": {name: shape}, "does"}.
What it puts on a stream goes through the stub, so that it is recorded where a graph is captured. Attributes have the
names that test_trt.py holds against recorded releases.
"""

from __future__ import annotations

import ctypes
import enum
import json
import math
from typing import Any

import numpy as np

__version__ = "10.16.0"

SM = 87
events: list[str] = []
"""What contexts were asked for, in order; tests read and clear it."""
refuse: set[str] = set()
"""Names of calls that answer False: "execute", "capture", "shape", "context", "runtime"."""
DRIVER = ctypes.CDLL("libcuda.so.1")
HOST_FN = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_keep: list[Any] = []
TYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "fp8": "FP8"}


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 2
    INT64 = 3
    FP8 = 4


class TensorIOMode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class TensorLocation(enum.Enum):
    DEVICE = 0
    HOST = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    STATIC = 0
    USER_MANAGED = 2


class ILogger:
    ERROR, WARNING = 1, 2


class IOutputAllocator:
    pass


class Runtime:
    def __new__(cls, logger: ILogger) -> Any:
        return None if "runtime" in refuse else super().__new__(cls)

    def __init__(self, logger: Any) -> None:
        self._logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, data: bytes) -> ICudaEngine | None:
        try:
            facts = json.loads(data)
        except ValueError:
            self._logger.log(
                1,
                "[runtime.cpp::readHeader::765] Error Code 2: Internal Error (Assertion bufferSize >= "
                "minBufferSize failed.  In readHeader at /_src/runtime/dispatch/runtime.cpp:765)",
            )
            return None
        if facts.get("sm", SM) != SM:
            self._logger.log(
                1,
                "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is "
                f"generated on an incompatible device, expecting compute {SM // 10}.{SM % 10} got compute "
                f"{facts['sm'] // 10}.{facts['sm'] % 10}, please rebuild.)",
            )
            return None
        if facts.get("version", __version__) != __version__:
            self._logger.log(
                1,
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion "
                "stdVersionRead == kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current "
                "Version: 237, Serialized Engine Version: 239)",
            )
            return None
        if facts.get("carries_code") and not self.engine_host_code_allowed:
            self._logger.log(1, "Error Code 4: API Usage Error (engine host code is not allowed by this runtime)")
            return None
        return ICudaEngine(facts, self._logger)


class ICudaEngine:
    device_memory_size_v2 = 1000

    def __init__(self, facts: dict[str, Any], logger: Any) -> None:
        self._facts, self._logger = facts, logger
        self._names = [*facts["inputs"], *facts["outputs"]]
        self.num_io_tensors = len(self._names)
        self.num_optimization_profiles = max([0, *(len(v) - 1 for v in facts["inputs"].values())])

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._facts["inputs"] else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType[TYPES[self._facts.get("types", {}).get(name, "float32")]]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.HOST if name in self._facts.get("on_host", ()) else TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> list[int]:
        if name in self._facts["inputs"]:
            return self._facts["inputs"][name][0]
        return [d if isinstance(d, int) else -1 for d in self._facts["outputs"][name]]

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[list[int]]:
        return self._facts["inputs"][name][1 + profile]

    def create_execution_context(self, strategy: Any) -> IExecutionContext | None:
        events.append(f"context {getattr(strategy, 'name', 'configured')}")
        if "context" in refuse:
            self._logger.log(1, "Requested amount of GPU memory (1000 bytes) could not be allocated: out of memory")
            return None
        return IExecutionContext(self)


class IExecutionContext:
    """One function a name: "matmul" (y = x @ w of ones), "double" (y = 2 x), "nonzero" (indices of what is not 0)."""

    def __init__(self, engine: ICudaEngine) -> None:
        self._facts, self._logger = engine._facts, engine._logger
        self._shapes: dict[str, tuple[int, ...]] = {n: tuple(v[0]) for n, v in self._facts["inputs"].items()}
        self._at: dict[str, int] = {}
        self._allocators: dict[str, Any] = {}
        self._scratch = 0

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= ICudaEngine.device_memory_size_v2
        self._scratch = memory

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        events.append(f"profile {profile}")
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        events.append(f"shape {name} {'x'.join(map(str, shape))}")
        self._shapes[name] = tuple(shape)
        if "shape" in refuse:
            self._logger.log(1, "Static dimension mismatch while setting input shape.")
        return "shape" not in refuse

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        first = next(iter(self._shapes.values()))
        return tuple(
            d if isinstance(d, int) else first[0] if d == "batch" else -1 for d in self._facts["outputs"][name]
        )

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._at[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        assert isinstance(allocator, IOutputAllocator)
        self._allocators[name] = allocator
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return "capture" not in refuse

    def execute_async_v3(self, stream: int) -> bool:
        events.append("execute")
        if "execute" in refuse:
            self._logger.log(
                1, "Error Code 2: OutOfMemory (Requested size was 1000 bytes. In execute at /_src/x.cpp:1)"
            )
            return False
        assert self._scratch, "no scratch memory was given"
        shapes, at = dict(self._shapes), dict(self._at)

        def work(_: int | None) -> None:
            self._compute(shapes, at)

        call = HOST_FN(work)
        _keep.append(call)
        code = DRIVER.cuLaunchHostFunc(ctypes.c_void_p(stream), call, None)
        if code:
            self._logger.log(1, f"Error Code 1: Cuda Runtime (cudaError {code})")
        return code == 0

    def _compute(self, shapes: dict[str, tuple[int, ...]], at: dict[str, int]) -> None:
        (name, shape), *_ = shapes.items()
        x = _array(at[name], shape, "float32")
        (out, dims), *_ = self._facts["outputs"].items()
        if self._facts["does"] == "nonzero":
            found = np.flatnonzero(x).astype(np.float32)
            allocator = self._allocators[out]
            address = allocator.reallocate_output_async(out, 0, max(1, found.nbytes), 256, 0)
            assert address
            allocator.notify_shape(out, found.shape)
            _array(address, found.shape, "float32")[...] = found
            return
        y = x @ np.ones((shape[-1], dims[-1]), np.float32) if self._facts["does"] == "matmul" else 2 * x
        _array(at[out], y.shape, "float32")[...] = y


def _array(address: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    kind = np.dtype(dtype)
    count = math.prod(shape)
    memory = (ctypes.c_ubyte * max(1, count * kind.itemsize)).from_address(address)
    return np.frombuffer(memory, np.uint8)[: count * kind.itemsize].view(kind).reshape(shape)


def engine(does: str = "matmul", **facts: Any) -> bytes:
    """A serialised engine of this module: 4 features to 3 scores, profiles 1..2..8 and 1..32..32 rows."""
    values = {
        "inputs": {"x": [[-1, 4], [[1, 4], [2, 4], [8, 4]], [[1, 4], [32, 4], [32, 4]]]},
        "outputs": {"y": ["batch", 3]},
        "does": does,
        **facts,
    }
    return json.dumps(values).encode()
