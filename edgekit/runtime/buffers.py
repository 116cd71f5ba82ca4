"""Memory of one tensor that is reused from run to run: page-locked on the host, and its place on the GPU."""

from __future__ import annotations

from collections.abc import Sequence

from edgekit.runtime.cuda import DeviceMemory, Gpu, HostMemory, Stream
from edgekit.tensors import Array, dtype_of


class Staging:
    """Host and device memory of one tensor, which grow to the largest size asked for.

    `mapped`: the GPU works in the host's memory itself, which costs no copy where the two share it (Jetson).
    `on_host`: TensorRT reads or writes the host's memory (shape tensors), and nothing is copied.
    """

    def __init__(self, gpu: Gpu, dtype: str, *, mapped: bool = False, on_host: bool = False) -> None:
        self.dtype = dtype
        self._gpu = gpu
        self._mapped, self._on_host = mapped and not on_host, on_host
        self._host: HostMemory | None = None
        self._device: DeviceMemory | None = None
        self._shape: tuple[int, ...] = ()

    def fit(self, shape: Sequence[int]) -> bool:
        """Make room for `shape` and keep it; True if the addresses changed, which ends every graph that used them."""
        self._shape = tuple(shape)
        return self.reserve(self._bytes)

    def reserve(self, nbytes: int) -> bool:
        """Make room for `nbytes`; True if the addresses changed. Nothing may be using the memory."""
        if self._host is not None and self._host.nbytes >= nbytes:
            return False
        self.close()
        self._host = self._gpu.host_memory(nbytes, mapped=self._mapped)
        if not (self._mapped or self._on_host):
            try:
                self._device = self._gpu.device_memory(nbytes)
            except BaseException:
                self.close()
                raise
        return True

    @property
    def _bytes(self) -> int:
        count = dtype_of(self.dtype).itemsize
        for size in self._shape:
            count *= size
        return count

    @property
    def address(self) -> int:
        """Where TensorRT finds the tensor."""
        if self._device is not None:
            return self._device.address
        assert self._host is not None
        return self._host.device_address if self._mapped else self._host.address

    @property
    def host(self) -> Array:
        """The tensor on the host, of the shape that `fit` was given; a view that the next run overwrites."""
        assert self._host is not None
        return self._host.array(self.dtype, self._shape)

    def upload(self, stream: Stream) -> None:
        """Copy in on `stream`, where a copy is needed."""
        if self._device is not None and self._host is not None:
            stream.to_device(self._device.address, self._host.address, self._bytes)

    def download(self, stream: Stream) -> None:
        """Copy out on `stream`, where a copy is needed."""
        if self._device is not None and self._host is not None:
            stream.to_host(self._host.address, self._device.address, self._bytes)

    def close(self) -> None:
        """Release the memory. Safe to call twice."""
        for memory in (self._device, self._host):
            if memory is not None:
                memory.close()
        self._device = self._host = None
