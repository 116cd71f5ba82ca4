"""Tensors that stay where they are: device memory given to and taken from other libraries through DLPack.

there = DeviceTensor.take(torch_tensor)      # no copy; torch keeps the memory until `there` is closed
torch.from_dlpack(session.run_device(feed)["scores"])
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

from edgekit.errors import InputError, ModelError
from edgekit.tensors import dtype_of, shape_text

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
"""DLPack's device types."""

_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}
_NAME, _USED = b"dltensor", b"used_dltensor"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_Destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, _Destructor)(("PyCapsule_New", _api))
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_SetName", _api))

_given: dict[int, tuple[_Managed, Any, Callable[[], None]]] = {}
"""Structures that other libraries hold, by address, with what keeps their memory."""


def _delete(address: int | None) -> None:
    entry = _given.pop(address or 0, None)
    if entry is not None:
        entry[2]()


def _destroy(capsule: int) -> None:
    if _is_valid(capsule, _NAME):  # nobody took it
        _delete(_pointer(capsule, _NAME))


_DELETE, _DESTROY = _Deleter(_delete), _Destructor(_destroy)


class DeviceTensor:
    """A contiguous tensor at `address`, of which `release` gives the memory back once it is closed and no library
    that took it over DLPack holds it any more.

    Attributes:
        address: of its first element.
        dtype: edgekit's name of the type; shape: sizes.
        device: DLPack's device type and number: (2, 0) is CUDA GPU 0, (3, 0) page-locked host memory.
    """

    def __init__(
        self,
        address: int,
        dtype: str,
        shape: tuple[int, ...],
        *,
        device: tuple[int, int],
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self.address, self.dtype, self.shape, self.device = address, dtype, shape, device
        self._release: Callable[[], None] | None = release
        self._holders = 1
        self._closed = False

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * dtype_of(self.dtype).itemsize

    @classmethod
    def take(cls, source: Any, *, stream: int | None = None) -> DeviceTensor:
        """The memory of `source`, any object with `__dlpack__`; `stream` will read it (1 or a CUDA stream's address).

        Raises:
            InputError: it is no such object, or its memory is not contiguous or of a type that edgekit has not.
        """
        if isinstance(source, DeviceTensor):
            return source
        if not hasattr(source, "__dlpack__") or not hasattr(source, "__dlpack_device__"):
            raise InputError(f"A {type(source).__name__} gives no device memory; expected an object with __dlpack__.")
        kind = int(source.__dlpack_device__()[0])
        try:
            capsule = source.__dlpack__() if kind == CPU or stream is None else source.__dlpack__(stream=stream)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(f"A {type(source).__name__} cannot be taken over: {error}") from error
        if not _is_valid(id(capsule), _NAME):
            raise InputError("The DLPack capsule was used already. Ask the library for a new one.")
        address = _pointer(id(capsule), _NAME)
        managed = _Managed.from_address(address)
        _rename(id(capsule), _USED)

        def release() -> None:
            if managed.deleter:
                _Deleter(managed.deleter)(address)

        tensor = managed.tensor
        try:
            shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
            dtype = _dtype_name(tensor)
            if tensor.strides and math.prod(shape) > 1:
                _check_contiguous(shape, tuple(tensor.strides[i] for i in range(tensor.ndim)))
        except InputError:
            release()
            raise
        device = (tensor.device_type, tensor.device_id)
        return cls((tensor.data or 0) + tensor.byte_offset, dtype, shape, device=device, release=release)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, *, stream: Any = None, **_newer: Any) -> Any:
        """A capsule with this memory. Its content is complete: no stream needs to wait."""
        if self._closed:
            raise BufferError("This tensor is closed.")
        shape = (ctypes.c_int64 * max(1, len(self.shape)))(*self.shape)
        code, bits = _code(self.dtype)
        tensor = _Tensor(self.address, *self.device, len(self.shape), code, bits, 1, shape, None, 0)
        managed = _Managed(tensor, None, ctypes.cast(_DELETE, ctypes.c_void_p))
        address = ctypes.addressof(managed)
        self._holders += 1
        _given[address] = (managed, shape, self._let_go)
        return _new(address, _NAME, _DESTROY)

    def _let_go(self) -> None:
        self._holders -= 1
        if self._holders == 0 and self._release is not None:
            release, self._release = self._release, None
            release()

    def close(self) -> None:
        """Let go of the memory. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._let_go()

    def __enter__(self) -> DeviceTensor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


def _code(dtype: str) -> tuple[int, int]:
    bits = 8 * dtype_of(dtype).itemsize
    kinds = {name: code for code, name in _KINDS.items()}
    if dtype == "string":
        raise BufferError("Strings do not lie in device memory.")
    return kinds[dtype.rstrip("0123456789")], bits


def _dtype_name(tensor: _Tensor) -> str:
    kind = _KINDS.get(tensor.code, "")
    name = kind if kind == "bool" else f"{kind}{tensor.bits}"
    try:
        if tensor.lanes != 1:
            raise ModelError("vectors")
        return dtype_of(name).name
    except ModelError:
        raise InputError(
            f"A tensor of DLPack type {tensor.code} with {tensor.bits} bits is not supported. Convert it first."
        ) from None


def _check_contiguous(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides)):
        if size != 1 and stride != expected:
            raise InputError(
                f"A tensor of {shape_text(shape)} does not lie in one piece (strides {shape_text(strides)}). "
                "Make it contiguous first."
            )
        expected *= size
