"""CUDA shared memory: tensors that stay on the GPU need not travel through the host's memory twice.

A client allocates memory of a GPU (cudaMalloc), sends its handle (cudaIpcGetMemHandle), and refers to parts of it. The
driver is loaded with the first region. Not run on a GPU yet: checked with the real bindings on a stand-in driver.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit._lazy import available
from edgekit.errors import BackendError, InputError, MissingDependencyError, UsageError
from edgekit.serve.messages import Place, RequestError

if TYPE_CHECKING:
    from edgekit.runtime.cuda import Gpu, Stream

HANDLE_BYTES = 64
"""Size of a cudaIpcMemHandle_t."""

_MAX_REGIONS = 1024
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS, the only flag that there is
_NODE = Path("/dev/nvidiactl")


class _Region:
    """A client's allocation, mapped here: `size` bytes from `address`."""

    def __init__(self, name: str, gpu: Gpu, handle: bytes, size: int) -> None:
        from edgekit.runtime.cuda_errors import checked

        self.name, self.gpu, self.size = name, gpu, size
        cuda = gpu.cuda
        gpu.activate()
        raw = cuda.CUipcMemHandle()
        ctypes.memmove(int(raw.getPtr()), handle, HANDLE_BYTES)
        pointer = checked(cuda.cuIpcOpenMemHandle(raw, _LAZY_PEER_ACCESS), "open a client's memory")
        self.address = int(pointer)
        self._pointer = pointer
        try:
            found = cuda.cuMemGetAddressRange(pointer)
            checked(found, "measure a client's memory")
            have = int(found[1]) + int(found[2]) - self.address
            if size > have:
                raise InputError(f"CUDA shared memory region '{name}' has {size} bytes; its allocation has {have}.")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of it; the client's memory is the client's."""
        self.gpu.activate()
        self.gpu.cuda.cuIpcCloseMemHandle(self._pointer)


class CudaMemory:
    """The registered regions of GPUs. With `allowed` False nothing can be registered. For the server's thread."""

    def __init__(self, *, allowed: bool = True) -> None:
        self._allowed = allowed
        self._regions: dict[str, _Region] = {}
        self._gpus: dict[int, tuple[Gpu, Stream]] = {}

    @property
    def possible(self) -> bool:
        """Whether regions can be registered here, as far as can be told without loading the driver."""
        return self._allowed and _NODE.exists() and available("cuda.bindings")

    def __contains__(self, name: object) -> bool:
        return name in self._regions

    def register(self, name: str, handle: bytes, device: int, size: int) -> None:
        """Map the allocation of GPU `device` behind `handle` and remember `size` bytes of it as `name`.

        Raises:
            InputError: no such GPU or allocation, it is smaller than that, or the name is taken.
            RequestError: this server takes no part in sharing memory (403), has no GPU (501) or too many regions (503).
        """
        if not self._allowed:
            raise RequestError(403, "Shared memory is off: this server is open to other machines. Send the data.")
        if not name:
            raise InputError("A shared memory region needs a name.")
        if name in self._regions:
            raise InputError(f"CUDA shared memory region '{name}' is registered already. Unregister it first.")
        if len(self._regions) >= _MAX_REGIONS:
            raise RequestError(503, f"{_MAX_REGIONS} CUDA regions are registered, which is all there can be.")
        gpu, _ = self._gpu(device)
        if len(handle) != HANDLE_BYTES:
            raise InputError(f"The handle of region '{name}' has {len(handle)} bytes; expected {HANDLE_BYTES}.")
        if size <= 0:
            raise InputError(f"CUDA shared memory region '{name}' has {size} bytes; expected some.")
        try:
            self._regions[name] = _Region(name, gpu, handle, size)
        except BackendError as error:
            raise InputError(f"CUDA shared memory region '{name}' cannot be opened: {error}") from None

    def unregister(self, name: str = "") -> None:
        """Forget region `name`, or all without one. Nothing happens if there is no such region."""
        for key in [name] if name else list(self._regions):
            region = self._regions.pop(key, None)
            if region is not None:
                region.close()

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """Name, device_id and byte_size of region `name`, or of all. Raises RequestError 404."""
        if name and name not in self._regions:
            raise RequestError(404, f"CUDA shared memory region '{name}' is not registered.")
        regions = [self._regions[name]] if name else self._regions.values()
        return [{"name": r.name, "device_id": r.gpu.index, "byte_size": r.size} for r in regions]

    def read(self, what: str, place: Place, data: memoryview) -> None:
        """Fill `data` from the GPU. Raises InputError: the place is not within its region."""
        region = self._at(what, place)
        host = np.frombuffer(data, np.uint8)
        _, stream = self._gpus[region.gpu.index]
        stream.to_host(host.ctypes.data, region.address + place.offset, len(data))
        stream.synchronize()

    def write(self, what: str, place: Place, data: memoryview) -> None:
        """Copy `data` to the GPU; it is there on return. Raises InputError: the place is not within its region."""
        region = self._at(what, place)
        host = np.frombuffer(data, np.uint8)
        _, stream = self._gpus[region.gpu.index]
        stream.to_device(region.address + place.offset, host.ctypes.data, len(data))
        stream.synchronize()

    def close(self) -> None:
        """Forget all regions, and let go of the GPUs."""
        self.unregister()
        for gpu, _ in self._gpus.values():
            gpu.close()
        self._gpus.clear()

    def _at(self, what: str, place: Place) -> _Region:
        region = self._regions[place.region]
        if place.offset + place.size > region.size:
            end = place.offset + place.size
            raise InputError(f"{what} would end at byte {end} of region '{region.name}', which has {region.size}.")
        region.gpu.activate()
        return region

    def _gpu(self, device: int) -> tuple[Gpu, Stream]:
        if device not in self._gpus:
            from edgekit.runtime.cuda import Gpu

            try:
                gpu = Gpu(device)
                self._gpus[device] = gpu, gpu.stream()
            except (MissingDependencyError, BackendError) as error:
                raise RequestError(
                    501, f"This server shares no CUDA memory; use system shared memory, or send the data. {error}"
                ) from None
            except UsageError as error:
                raise InputError(str(error)) from None
        return self._gpus[device]


def handle_from_base64(text: str) -> bytes:
    """The handle in a request over HTTP. Raises InputError: it is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError("raw_handle is not base64.") from None
