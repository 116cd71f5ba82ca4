"""Device memory by DLPack; numpy and torch's CPU tensors stand for the libraries on the other side."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.runtime.dlpack import CPU, CUDA, CUDA_HOST, DeviceTensor
from edgekit.tensors import dtype_of, numpy_dtype

TYPES = ("bool", "uint8", "int8", "int32", "int64", "float16", "float32", "float64")


def given(array: np.ndarray, *, device: tuple[int, int] = (CUDA_HOST, 0), done: Callable[[], None]) -> DeviceTensor:
    return DeviceTensor(array.ctypes.data, array.dtype.name, array.shape, device=device, release=done)


@pytest.mark.parametrize("dtype", TYPES)
def test_numpy_reads_what_is_given_in_place(dtype: str) -> None:
    source = np.arange(12).reshape(3, 4).astype(numpy_dtype(dtype))
    tensor = given(source, done=lambda: None)
    view = np.from_dlpack(tensor)
    np.testing.assert_array_equal(view, source)
    assert view.dtype == source.dtype
    source[0, 0] = 1
    assert view[0, 0] == 1


def test_memory_is_released_when_nobody_holds_it() -> None:
    released: list[int] = []
    source = np.ones(4, np.float32)
    tensor = given(source, done=lambda: released.append(1))
    view = np.from_dlpack(tensor)
    tensor.close()
    tensor.close()
    assert not released
    del view
    gc.collect()
    assert released == [1]
    with pytest.raises(BufferError, match="closed"):
        tensor.__dlpack__()


def test_a_capsule_that_nobody_takes_is_no_leak() -> None:
    released: list[int] = []
    tensor = given(np.ones(4, np.float32), done=lambda: released.append(1))
    capsule = tensor.__dlpack__()
    del tensor
    del capsule
    gc.collect()
    assert released == [1]


@pytest.mark.parametrize("dtype", TYPES)
def test_memory_of_other_libraries_is_taken_in_place(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    source = torch.ones((2, 3), dtype=getattr(torch, dtype))
    with DeviceTensor.take(source) as tensor:
        assert (tensor.dtype, tensor.shape, tensor.device) == (dtype, (2, 3), (CPU, 0))
        assert tensor.address == source.data_ptr()
        assert tensor.nbytes == 6 * dtype_of(dtype).itemsize


def test_bfloat16_crosses_both_ways() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    source = torch.tensor([1.0, -2.0], dtype=torch.bfloat16)
    taken = DeviceTensor.take(source)
    assert taken.dtype == "bfloat16"
    back = torch.from_dlpack(DeviceTensor(taken.address, "bfloat16", (2,), device=(CPU, 0), release=taken.close))
    assert back.tolist() == [1.0, -2.0]


def test_offsets_are_part_of_the_address() -> None:
    source = np.arange(10, dtype=np.int64)
    tensor = DeviceTensor.take(source[3:])
    assert ctypes.c_int64.from_address(tensor.address).value == 3


def test_scattered_memory_is_refused_and_given_back() -> None:
    with pytest.raises(InputError, match=r"\(4,3\) does not lie in one piece"):
        DeviceTensor.take(np.zeros((3, 4), np.float32).T)
    assert DeviceTensor.take(np.zeros((1, 4), np.float32)[:, ::1]).shape == (1, 4)


def test_types_that_edgekit_lacks_are_refused() -> None:
    with pytest.raises(InputError, match="Convert it first"):
        DeviceTensor.take(np.zeros(3, np.complex64))
    with pytest.raises(InputError, match="a list|A list"):
        DeviceTensor.take([1, 2])


def test_a_gpus_memory_says_where_it_is() -> None:
    tensor = given(np.ones(2, np.float32), device=(CUDA, 1), done=lambda: None)
    assert tensor.__dlpack_device__() == (2, 1)
    again = DeviceTensor.take(tensor)
    assert again is tensor


def test_the_reader_is_named_to_the_other_library() -> None:
    seen: list[int | None] = []

    class Elsewhere:
        def __init__(self) -> None:
            self._own = given(np.ones(2, np.float32), device=(CUDA, 0), done=lambda: None)

        def __dlpack_device__(self) -> tuple[int, int]:
            return (CUDA, 0)

        def __dlpack__(self, *, stream: int | None = None) -> object:
            seen.append(stream)
            return self._own.__dlpack__()

    with DeviceTensor.take(Elsewhere(), stream=77) as tensor:
        assert tensor.device == (CUDA, 0)
    assert seen == [77]
