"""GPUs, buffers, streams, events and graphs through the CUDA driver (the `cuda-bindings` package, nothing else).

A `Gpu` owns everything made from it; closing it releases the rest. Handles are plain integers, as TensorRT and ONNX
Runtime take them. Nothing here waits for the GPU except what says so.
"""

from __future__ import annotations

import ctypes
import importlib
import logging
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np

from edgekit._lazy import available
from edgekit.errors import BackendError, MissingDependencyError, UsageError
from edgekit.runtime.cuda_errors import CudaError, Guarded, checked
from edgekit.tensors import Array, numpy_dtype

_log = logging.getLogger(__name__)
_Owned = TypeVar("_Owned", bound="Resource")

ALIGNMENT = 256
"""Buffers are rounded up to this many bytes, so that one serves shapes of about its size."""


def driver() -> Guarded:
    """The module `cuda.bindings.driver` with the driver started.

    Raises:
        MissingDependencyError: cuda-bindings is not installed.
        BackendError: there is no NVIDIA driver, or it does not start; the message says what to do.
    """
    if not available("cuda.bindings"):
        raise MissingDependencyError(
            "cuda-bindings is needed to run on a GPU and is not installed. Run: pip install cuda-bindings"
        )
    module: Any = importlib.import_module("cuda.bindings.driver")
    try:
        result = module.cuInit(0)
    except Exception as error:  # the bindings raise classes of their own when libcuda.so.1 is missing
        raise BackendError(
            "No NVIDIA driver is installed here (libcuda.so.1 cannot be loaded). Install the driver, start a container "
            "with --gpus all, or run on the CPU."
        ) from error
    checked(result, "start")
    return Guarded(module)


def device_count() -> int:
    """How many GPUs CUDA shows; 0 where cuda-bindings, the driver or a GPU is missing."""
    try:
        return int(checked(driver().cuDeviceGetCount(), "count the GPUs"))
    except (BackendError, MissingDependencyError):
        return 0


class Resource:
    """Something of a GPU that is released once: by `close`, by `with`, or with its GPU."""

    def __init__(self, gpu: Gpu, release: Callable[[], tuple[Any, ...]]) -> None:
        self.gpu = gpu
        self._release: Callable[[], tuple[Any, ...]] | None = release

    @property
    def closed(self) -> bool:
        """Whether it was released."""
        return self._release is None

    def close(self) -> None:
        """Release it. Safe to call twice; a failure is logged, since nothing can be done about it."""
        release, self._release = self._release, None
        if release is None:
            return
        self.gpu.forget(self)
        try:
            self.gpu.activate()
            checked(release(), f"release a {type(self).__name__}")
        except CudaError as error:
            _log.debug("%s", error)

    def __enter__(self: _Owned) -> _Owned:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class DeviceMemory(Resource):
    """`nbytes` of the GPU's memory at `address`."""

    def __init__(self, gpu: Gpu, nbytes: int) -> None:
        cuda = gpu.cuda
        gpu.activate()
        pointer = checked(cuda.cuMemAlloc(max(1, nbytes)), f"take {nbytes} bytes of GPU memory")
        self.address, self.nbytes = int(pointer), nbytes
        super().__init__(gpu, lambda: cuda.cuMemFree(pointer))


class HostMemory(Resource):
    """`nbytes` of page-locked host memory at `address`; `device_address` is where the GPU sees it, 0 if it does not.

    Arrays from `array` are views: they are invalid once it is closed.
    """

    def __init__(self, gpu: Gpu, nbytes: int, *, mapped: bool = False) -> None:
        """`mapped` lets the GPU read and write it in place, which costs nothing where they share memory (Jetson)."""
        cuda = gpu.cuda
        gpu.activate()
        flags = cuda.CU_MEMHOSTALLOC_PORTABLE | (cuda.CU_MEMHOSTALLOC_DEVICEMAP if mapped else 0)
        pointer = checked(cuda.cuMemHostAlloc(max(1, nbytes), flags), f"lock {nbytes} bytes of host memory")
        self.address, self.nbytes = int(pointer), nbytes
        super().__init__(gpu, lambda: cuda.cuMemFreeHost(pointer))
        memory: Any = (ctypes.c_ubyte * max(1, nbytes)).from_address(self.address)
        self._bytes: Array = np.frombuffer(memory, np.uint8)
        self.device_address = 0
        if mapped:
            try:
                self.device_address = int(checked(cuda.cuMemHostGetDevicePointer(pointer, 0), "map host memory"))
            except CudaError:
                cuda.cuMemFreeHost(pointer)
                raise

    def array(self, dtype: str, shape: Sequence[int]) -> Array:
        """The first bytes as an array of `shape`; a view."""
        kind = numpy_dtype(dtype)
        count = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        view: Array = self._bytes[:count].view(kind).reshape(tuple(shape))
        return view


class Event(Resource):
    """A point in a stream. With `timing` the time between two can be read."""

    def __init__(self, gpu: Gpu, *, timing: bool = False) -> None:
        cuda = gpu.cuda
        gpu.activate()
        flag = cuda.CUevent_flags
        flags = flag.CU_EVENT_DEFAULT if timing else flag.CU_EVENT_DISABLE_TIMING
        self.handle = checked(cuda.cuEventCreate(int(flags)), "make an event")
        super().__init__(gpu, lambda: cuda.cuEventDestroy(self.handle))

    def synchronize(self) -> None:
        """Wait until the GPU has passed it."""
        self.gpu.activate()
        checked(self.gpu.cuda.cuEventSynchronize(self.handle), "finish its work")

    def milliseconds_since(self, start: Event) -> float:
        """GPU time from `start`, in ms; both made with `timing` and passed."""
        return float(checked(self.gpu.cuda.cuEventElapsedTime(start.handle, self.handle), "read the time"))


class Graph(Resource):
    """Recorded work that is launched as one."""

    def __init__(self, gpu: Gpu, graph: Any) -> None:
        """Takes over `graph`, which a capture gave."""
        cuda = gpu.cuda
        try:
            self._exec = checked(cuda.cuGraphInstantiate(graph, 0), "prepare a graph")
        finally:
            cuda.cuGraphDestroy(graph)
        super().__init__(gpu, lambda: cuda.cuGraphExecDestroy(self._exec))

    def launch(self, stream: Stream) -> None:
        """Put the recorded work on `stream`."""
        checked(self.gpu.cuda.cuGraphLaunch(self._exec, stream.raw), "launch a graph")


class Stream(Resource):
    """A queue of work; work of different streams overlaps. `handle` is its address."""

    def __init__(self, gpu: Gpu) -> None:
        cuda = gpu.cuda
        gpu.activate()
        self.raw = checked(cuda.cuStreamCreate(int(cuda.CUstream_flags.CU_STREAM_NON_BLOCKING)), "make a stream")
        self.handle = int(self.raw)
        super().__init__(gpu, lambda: cuda.cuStreamDestroy(self.raw))

    def to_device(self, device: int, host: int, nbytes: int) -> None:
        """Copy in; `host` must stay as it is until the stream has got there."""
        if nbytes:
            checked(self.gpu.cuda.cuMemcpyHtoDAsync(device, host, nbytes, self.raw), "copy to the GPU")

    def to_host(self, host: int, device: int, nbytes: int) -> None:
        """Copy out."""
        if nbytes:
            checked(self.gpu.cuda.cuMemcpyDtoHAsync(host, device, nbytes, self.raw), "copy from the GPU")

    def record(self, event: Event) -> None:
        """Let `event` mark this point."""
        checked(self.gpu.cuda.cuEventRecord(event.handle, self.raw), "record an event")

    def wait(self, event: Event) -> None:
        """Hold further work of this stream until `event` has passed."""
        checked(self.gpu.cuda.cuStreamWaitEvent(self.raw, event.handle, 0), "wait for an event")

    def synchronize(self) -> None:
        """Wait until all of its work is done; errors of that work come up here."""
        self.gpu.activate()
        checked(self.gpu.cuda.cuStreamSynchronize(self.raw), "finish its work")

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` puts on this stream instead of doing it.

        Raises:
            CudaError: it cannot be recorded; `capture` of the error says so. The stream is usable as before.
        """
        cuda, mode = self.gpu.cuda, self.gpu.cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        checked(cuda.cuStreamBeginCapture(self.raw, mode), "begin a graph")
        try:
            work()
        except BaseException:
            ended = cuda.cuStreamEndCapture(self.raw)  # fails if the capture broke, but takes the stream out of it
            if int(ended[0]) == 0 and ended[1] is not None and int(ended[1]):
                cuda.cuGraphDestroy(ended[1])
            raise
        return Graph(self.gpu, checked(cuda.cuStreamEndCapture(self.raw), "record a graph"))


class Gpu:
    """GPU number `index`, ready for use from any thread. A context manager.

    Attributes:
        name: as the driver names it.
        sm: compute capability, 87 for 8.7.
        integrated: whether it shares the host's memory (Jetson), so that buffers need no copies.
    """

    def __init__(self, index: int = 0) -> None:
        """Raises UsageError for a number that no GPU has, and what `driver` raises."""
        self.cuda = cuda = driver()
        count = int(checked(cuda.cuDeviceGetCount(), "count the GPUs"))
        if count == 0:
            raise CudaError("CUDA_ERROR_NO_DEVICE", "find a GPU")
        if not 0 <= index < count:
            known = "cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise UsageError(f"Device cuda:{index} does not exist; this machine has {known}.")
        self.index = index
        self._device = checked(cuda.cuDeviceGet(index), f"open cuda:{index}")
        self.name: str = (
            checked(cuda.cuDeviceGetName(256, self._device), "read the GPU's name").split(b"\0")[0].decode()
        )
        self.sm = 10 * self._attribute("COMPUTE_CAPABILITY_MAJOR") + self._attribute("COMPUTE_CAPABILITY_MINOR")
        self.integrated = bool(self._attribute("INTEGRATED") and self._attribute("CAN_MAP_HOST_MEMORY"))
        self._lock = threading.Lock()
        self._open: dict[int, Resource] = {}
        self._context = checked(cuda.cuDevicePrimaryCtxRetain(self._device), f"open cuda:{index}")

    def _attribute(self, name: str) -> int:
        kind = getattr(self.cuda.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(checked(self.cuda.cuDeviceGetAttribute(kind, self._device), f"read the GPU's {name.lower()}"))

    def activate(self) -> None:
        """Make it the calling thread's GPU, for this module and for libraries. Costs well under a microsecond.

        Raises:
            BackendError: it was closed.
        """
        if self._context is None:
            raise BackendError(f"cuda:{self.index} was closed. Open a new session.")
        checked(self.cuda.cuCtxSetCurrent(self._context), f"use cuda:{self.index}")

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of its memory."""
        self.activate()
        result = self.cuda.cuMemGetInfo()
        checked(result, "read the free memory")
        return int(result[1]), int(result[2])

    def stream(self) -> Stream:
        """A new stream."""
        return self._keep(Stream(self))

    def event(self, *, timing: bool = False) -> Event:
        """A new event."""
        return self._keep(Event(self, timing=timing))

    def device_memory(self, nbytes: int) -> DeviceMemory:
        """Memory of the GPU, rounded up to `ALIGNMENT`. Raises CudaError if there is not enough."""
        return self._keep(DeviceMemory(self, _rounded(nbytes)))

    def host_memory(self, nbytes: int, *, mapped: bool = False) -> HostMemory:
        """Page-locked host memory, rounded up to `ALIGNMENT`. Raises CudaError if there is not enough."""
        return self._keep(HostMemory(self, _rounded(nbytes), mapped=mapped))

    def graph(self, stream: Stream, work: Callable[[], None]) -> Graph:
        """What `work` puts on `stream`, recorded; see `Stream.capture`."""
        return self._keep(stream.capture(work))

    def _keep(self, resource: _Owned) -> _Owned:
        with self._lock:
            self._open[id(resource)] = resource
        return resource

    def forget(self, resource: Resource) -> None:
        """Called by a resource that is released."""
        with self._lock:
            self._open.pop(id(resource), None)

    @property
    def held(self) -> int:
        """How many resources are open."""
        with self._lock:
            return len(self._open)

    def close(self) -> None:
        """Release everything made from it, newest first, and let go of the GPU. Safe to call twice."""
        if self._context is None:
            return
        with self._lock:
            resources = list(reversed(self._open.values()))
        for resource in resources:
            resource.close()
        self._context = None
        result = self.cuda.cuDevicePrimaryCtxRelease(self._device)
        if int(result[0]) != 0:
            _log.debug("CUDA could not release cuda:%d: %s", self.index, result[0])

    def __enter__(self) -> Gpu:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _rounded(nbytes: int) -> int:
    return -(-max(1, nbytes) // ALIGNMENT) * ALIGNMENT
