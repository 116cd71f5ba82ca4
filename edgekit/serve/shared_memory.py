"""System shared memory: tensors that stay on this machine need not travel through a socket.

A client makes a POSIX shared memory object, registers it here under a name, and refers to parts of it in its requests.
Regions are read and written by `pread` and `pwrite`, which cost one copy, where a mapping would end the server (SIGBUS)
if a client made its object smaller meanwhile.
"""

from __future__ import annotations

import math
import os
import stat
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.errors import InputError
from edgekit.serve.cuda_memory import CudaMemory
from edgekit.serve.messages import InferRequest, Place, RequestError, SharedInput
from edgekit.serve.wire import array_from_raw, raw_from_array
from edgekit.tensors import Array, shape_text

MAX_REGIONS = 1024
_FOLDER = "/dev/shm"


@dataclass(frozen=True, slots=True)
class Region:
    """A registered part of a shared memory object: `size` bytes from `offset` of the object called `key`."""

    name: str
    key: str
    offset: int
    size: int
    file: int


class SharedMemory:
    """The registered regions of a server; `cuda` are those of GPUs. With `allowed` False nothing can be registered."""

    def __init__(self, *, allowed: bool = True) -> None:
        self._allowed = allowed
        self._regions: dict[str, Region] = {}
        self.cuda = CudaMemory(allowed=allowed)

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Open the object called `key` ("/name") and remember a part of it as `name`.

        Raises:
            InputError: no such object, it is smaller than that, or the name is taken.
            RequestError: this server does not take part in sharing memory (403), or has too many regions (503).
        """
        if not self._allowed:
            raise RequestError(403, "Shared memory is off: this server is open to other machines. Send the data.")
        if not name:
            raise InputError("A shared memory region needs a name.")
        if name in self._regions:
            raise InputError(f"Shared memory region '{name}' is registered already. Unregister it first.")
        if len(self._regions) >= MAX_REGIONS:
            raise RequestError(503, f"{MAX_REGIONS} shared memory regions are registered, which is all there can be.")
        if min(offset, size) < 0 or size == 0:
            raise InputError(f"Shared memory region '{name}' has offset {offset} and {size} bytes; expected some.")
        file = _open(name, key)
        have = os.fstat(file).st_size
        if offset + size > have:
            os.close(file)
            raise InputError(
                f"Shared memory region '{name}' would end at byte {offset + size}; object '{key}' has {have}."
            )
        self._regions[name] = Region(name, key, offset, size, file)

    def unregister(self, name: str = "") -> None:
        """Forget region `name`, or all without one. Nothing happens if there is no such region, as in Triton."""
        for key in [name] if name else list(self._regions):
            region = self._regions.pop(key, None)
            if region is not None:
                os.close(region.file)

    def status(self, name: str = "") -> list[dict[str, Any]]:
        """Name, key, offset and byte_size of region `name`, or of all. Raises RequestError 404."""
        regions = [self._find(name)] if name else self._regions.values()
        return [{"name": r.name, "key": r.key, "offset": r.offset, "byte_size": r.size} for r in regions]

    def read_inputs(self, request: InferRequest) -> None:
        """Read the inputs of `request` that are in shared memory. Raises InputError, RequestError 404."""
        for name, item in request.shared.items():
            request.feed[name] = self._read(name, item)
        request.shared = {}

    def _read(self, name: str, item: SharedInput) -> Array:
        region, at = (None, 0) if self._is_cuda(item.place) else self._range(f"Input '{name}'", item.place)
        if item.dtype.itemsize and math.prod(item.shape) * item.dtype.itemsize != item.place.size:
            size = math.prod(item.shape) * item.dtype.itemsize
            raise InputError(
                f"Input '{name}': {item.place.size} bytes of shared memory, {item.dtype.oip} of shape "
                f"{shape_text(item.shape)} has {size}."
            )
        data = np.empty(item.place.size, np.uint8).data
        if region is None:
            self.cuda.read(f"Input '{name}'", item.place, data)
            return array_from_raw(name, item.dtype, item.shape, data)
        done = 0
        while done < len(data):
            got = os.preadv(region.file, [data[done:]], at + done)
            if not got:
                raise InputError(f"Input '{name}': object '{region.key}' has become smaller than its region.")
            done += got
        return array_from_raw(name, item.dtype, item.shape, data)

    def write_output(self, name: str, datatype: str, value: Array, place: Place) -> Place:
        """Write a tensor; returns where it is, which may be less than the place that was offered.

        Raises:
            InputError: it does not fit.
            RequestError: no such region (404).
        """
        region, at = (None, 0) if self._is_cuda(place) else self._range(f"Output '{name}'", place)
        raw = memoryview(raw_from_array(datatype, value)).cast("B")
        if len(raw) > place.size:
            raise InputError(f"Output '{name}' has {len(raw)} bytes, shared_memory_byte_size is {place.size}.")
        if region is None:
            self.cuda.write(f"Output '{name}'", place, raw)
            return Place(place.region, place.offset, len(raw))
        if os.fstat(region.file).st_size < at + len(raw):
            raise InputError(f"Output '{name}': object '{region.key}' has become smaller than its region.")
        done = 0
        while done < len(raw):
            done += os.pwrite(region.file, raw[done:], at + done)
        return Place(place.region, place.offset, len(raw))

    def close(self) -> None:
        """Forget all regions."""
        self.unregister()
        self.cuda.close()

    def _is_cuda(self, place: Place) -> bool:
        return place.region in self.cuda and place.region not in self._regions

    def _find(self, name: str) -> Region:
        region = self._regions.get(name)
        if region is None:
            known = ", ".join(self._regions) or "none"
            raise RequestError(404, f"Shared memory region '{name}' is not registered; registered are: {known}.")
        return region

    def _range(self, what: str, place: Place) -> tuple[Region, int]:
        region = self._find(place.region)
        if place.offset + place.size > region.size:
            raise InputError(
                f"{what} would end at byte {place.offset + place.size} of region '{region.name}', which has "
                f"{region.size}."
            )
        return region, region.offset + place.offset


def _open(name: str, key: str) -> int:
    """A file descriptor of the object called `key`, which is one file of the folder of shared memory, and no other."""
    plain = key.removeprefix("/")
    if not plain or "/" in plain or "\0" in plain or plain in (".", "..") or len(plain.encode()) > 255:
        raise InputError(f"Shared memory region '{name}': key '{key}' is not the name of a shared memory object.")
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        file = os.open(f"{_FOLDER}/{plain}", flags)
    except OSError as error:
        raise InputError(f"Shared memory region '{name}': object '{key}' cannot be opened: {error.strerror}.") from None
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise InputError(f"Shared memory region '{name}': '{key}' is not a shared memory object.")
    return file
