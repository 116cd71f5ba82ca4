"""Kernels with planted bugs: each must be caught, and its repaired twin must pass."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda_on_host.host import KernelError, host_kernel

N = 256

REVERSE = """
extern "C" __global__ void kernel(const float* x, float* y) {
    __shared__ float held[256];
    held[threadIdx.x] = x[threadIdx.x];
    BARRIER;
    y[threadIdx.x] = held[255 - threadIdx.x];
}
"""
TWO_WARPS_ONE_BARRIER = """
extern "C" __global__ void kernel(const float* x, float* y) {
    __shared__ float held[256];
    float mine = x[threadIdx.x];
    for (int round = 0; round < 3; ++round) {
        held[threadIdx.x] = mine;
        __syncthreads();
        mine = held[(threadIdx.x + 32) % 256];
        BARRIER;
    }
    y[threadIdx.x] = mine;
}
"""
WITHIN_A_WARP = """
extern "C" __global__ void kernel(const float* x, float* y) {
    __shared__ float held[256];
    held[threadIdx.x] = x[threadIdx.x];
    BARRIER;
    y[threadIdx.x] = held[threadIdx.x ^ 1];
}
"""
SUM = """
extern "C" __global__ void kernel(const float* x, float* y) {
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    ADD;
    __syncthreads();
    y[threadIdx.x] = total;
}
"""
BLOCKS = """
extern "C" __global__ void kernel(const float* x, float* y) {
    y[WHERE] = x[threadIdx.x];
}
"""
LOOP = """
extern "C" __global__ void kernel(const float* x, float* y) {
    for (int i = threadIdx.x; i < LIMIT; i += blockDim.x) y[i] = x[i];
}
"""
SHARED = """
extern "C" __global__ void kernel(const float* x, float* y) {
    __shared__ float first[64];
    __shared__ float second[64];
    if (threadIdx.x < 64) {
        first[threadIdx.x + SHIFT] = 1;
        second[threadIdx.x] = 2;
    }
    __syncthreads();
    y[threadIdx.x] = first[threadIdx.x % 64] + second[threadIdx.x % 64];
}
"""
FEW_WRITE = """
extern "C" __global__ void kernel(const float* x, float* y) {
    __shared__ float held[256];
    if (threadIdx.x < WRITERS) held[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = held[threadIdx.x];
}
"""
ACCUMULATE = """
extern "C" __global__ void kernel(const float* x, float* y) {
    y[threadIdx.x] FIRST x[threadIdx.x];
}
"""
VECTOR = """
extern "C" __global__ void kernel(const float* x, float* y) {
    if (threadIdx.x < 32) {
        float4 four = *reinterpret_cast<const float4*>(x + threadIdx.x * 4 + SHIFT);
        y[threadIdx.x] = four.x + four.w;
    }
}
"""
INTO_INPUT = """
extern "C" __global__ void kernel(float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];
    WRITE;
}
"""
READ_ONLY_PATH = """
extern "C" __global__ void kernel(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = LOAD + 1;
}
"""
DIVERGENT = """
extern "C" __global__ void kernel(const float* x, float* y) {
    if (WHO) __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}
"""
TWO_PLACES = """
extern "C" __global__ void kernel(const float* x, float* y) {
    if (threadIdx.x < SPLIT) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    y[threadIdx.x] = x[threadIdx.x];
}
"""
EARLY_RETURN = """
extern "C" __global__ void kernel(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x >= LIVE) return;
    __syncthreads();
}
"""
SHUFFLE = """
extern "C" __global__ void kernel(const float* x, float* y) {
    float mine = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) mine = __shfl_sync(MASK, mine, FROM);
    y[threadIdx.x] = mine;
}
"""

PLANTED = {
    "a missing barrier": (REVERSE, {"BARRIER": ""}, {"BARRIER": "__syncthreads()"}, "race or uninitialised"),
    "a barrier of warps where one of the block is needed": (
        REVERSE, {"BARRIER": "__syncwarp()"}, {"BARRIER": "__syncthreads()"}, "race or uninitialised",
    ),
    "a missing second barrier of a loop": (
        TWO_WARPS_ONE_BARRIER, {"BARRIER": ""}, {"BARRIER": "__syncthreads()"}, "race",
    ),
    "a missing barrier within a warp": (
        WITHIN_A_WARP, {"BARRIER": ""}, {"BARRIER": "__syncwarp()"}, "race or uninitialised",
    ),
    "an addition that is not atomic": (
        SUM, {"ADD": "total += x[threadIdx.x]"}, {"ADD": "atomicAdd(&total, x[threadIdx.x])"}, "race",
    ),
    "an atomic addition without a start value": (
        SUM.replace("if (threadIdx.x == 0) total = 0;", "START"),
        {"START": "", "ADD": "atomicAdd(&total, x[threadIdx.x])"},
        {"START": "if (threadIdx.x == 0) total = 0;", "ADD": "atomicAdd(&total, x[threadIdx.x])"},
        "uninitialised",
    ),
    "two blocks that write the same place": (
        BLOCKS, {"WHERE": "threadIdx.x"}, {"WHERE": "blockIdx.x * 256 + threadIdx.x"}, "race",
    ),
    "a loop one past the end": (LOOP, {"LIMIT": 513}, {"LIMIT": 512}, "out of bounds"),
    "an element before the start": (BLOCKS, {"WHERE": "blockIdx.x * 256 + threadIdx.x - 1"}, {
        "WHERE": "blockIdx.x * 256 + threadIdx.x",
    }, "out of bounds"),
    "a shared array overrun into the next": (SHARED, {"SHIFT": 1}, {"SHIFT": 0}, "out of bounds"),
    "shared memory that nothing wrote": (FEW_WRITE, {"WRITERS": 255}, {"WRITERS": 256}, "uninitialised"),
    "an output taken to be zero": (ACCUMULATE, {"FIRST": "+="}, {"FIRST": "="}, "uninitialised"),
    "a vector load off its alignment": (VECTOR, {"SHIFT": 1}, {"SHIFT": 4}, "misaligned"),
    "a write to an input": (INTO_INPUT, {"WRITE": "x[threadIdx.x] = 0"}, {"WRITE": ""}, "read-only"),
    "an output read through the read-only path": (
        READ_ONLY_PATH, {"LOAD": "__ldg(y + threadIdx.x)"}, {"LOAD": "y[threadIdx.x]"}, "read-only",
    ),
    "a barrier in one half of the block": (
        DIVERGENT, {"WHO": "threadIdx.x < 128"}, {"WHO": "true"}, "divergent barrier",
    ),
    "barriers in two branches": (TWO_PLACES, {"SPLIT": 64}, {"SPLIT": 256}, "divergent barrier"),
    "threads that leave before a barrier": (EARLY_RETURN, {"LIVE": 200}, {"LIVE": 256}, "divergent barrier"),
    "a mask that names lanes that do not come": (
        SHUFFLE, {"MASK": "0xffffffffu", "FROM": 3}, {"MASK": "0x0000ffffu", "FROM": 3}, "bad mask",
    ),
    "a mask without its caller": (
        SHUFFLE, {"MASK": "0x00007fffu", "FROM": 3}, {"MASK": "0x0000ffffu", "FROM": 3}, "bad mask",
    ),
    "a shuffle from a lane outside of the mask": (
        SHUFFLE, {"MASK": "0x0000ffffu", "FROM": 20}, {"MASK": "0x0000ffffu", "FROM": 15}, "bad mask",
    ),
}  # fmt: skip


def launch(source: str, constants: dict[str, object], seed: int) -> np.ndarray:
    """The output of a kernel of one block of 256 threads, or of two for the tests of blocks."""
    x = np.arange(2 * N, dtype=np.float32) + 1
    y = np.zeros(2 * N, np.float32)
    blocks = 2 if source is BLOCKS else 1
    kernel = host_kernel(source, "kernel", constants)  # type: ignore[arg-type]
    kernel.run({"x": x}, {"y": y}, grid=(blocks, 1, 1), block=(N, 1, 1), seed=seed)
    return y


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_caught(name: str, seed: int) -> None:
    source, broken, repaired, kind = PLANTED[name]
    with pytest.raises(KernelError) as caught:
        launch(source, broken, seed)
    assert caught.value.kind in kind.split(" or "), str(caught.value)
    assert np.isfinite(launch(source, repaired, seed)).all()


def test_a_fault_says_who_where_and_what() -> None:
    source, broken, _, _ = PLANTED["a loop one past the end"]
    with pytest.raises(
        KernelError, match=r"thread \(0, 0, 0\) of block \(0, 0, 0\) \w+ 4 bytes at offset 2048 of buffer"
    ):
        launch(source, broken, 1)


def test_a_block_of_too_many_threads_is_refused() -> None:
    kernel = host_kernel(BLOCKS, "kernel", {"WHERE": "threadIdx.x"})
    x = np.zeros(2048, np.float32)
    with pytest.raises(KernelError, match="1 to 1024 threads"):
        kernel.run({"x": x}, {"y": x.copy()}, block=(2048, 1, 1))


def test_a_kernel_that_does_not_compile_shows_the_compiler() -> None:
    with pytest.raises(AssertionError, match=r"broken\.cu:2.*undeclared|broken\.cu:2.*not declared"):
        host_kernel(
            'extern "C" __global__ void kernel(float* y) {\n    y[0] = missing;\n}\n',
            "kernel",
            {},
            file_name="broken.cu",
        )
