"""The CUDA that the host runs computes what CUDA's own guide says."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.cuda_on_host.host import host_kernel

LANES = np.arange(64, dtype=np.int32)


def ints(body: str, *, block: tuple[int, int, int] = (64, 1, 1), grid: tuple[int, int, int] = (1, 1, 1)) -> np.ndarray:
    """What a kernel writes that computes `body` into `out` for each thread."""
    source = (
        '#include "device.cuh"\nextern "C" __global__ void kernel(const int* x, int* y) {\n'
        "    unsigned t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);\n"
        "    unsigned b = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);\n"
        "    unsigned at = b * blockDim.x * blockDim.y * blockDim.z + t;\n"
        f"    int out = x[t];\n    {body}\n    y[at] = out;\n}}\n"
    )
    threads, blocks = int(np.prod(block)), int(np.prod(grid))
    y = np.zeros(threads * blocks, np.int32)
    x = np.arange(threads, dtype=np.int32)
    host_kernel(source, "kernel", {}).run({"x": x}, {"y": y}, grid=grid, block=block)
    return y


@pytest.mark.parametrize(
    ("call", "want"),
    [
        ("__shfl_sync(ALL_LANES, out, 5)", LANES // 32 * 32 + 5),
        ("__shfl_sync(ALL_LANES, out, 3, 8)", LANES // 8 * 8 + 3),
        ("__shfl_up_sync(ALL_LANES, out, 2)", np.where(LANES % 32 < 2, LANES, LANES - 2)),
        ("__shfl_down_sync(ALL_LANES, out, 3, 16)", np.where(LANES % 16 + 3 > 15, LANES, LANES + 3)),
        ("__shfl_xor_sync(ALL_LANES, out, 6)", LANES ^ 6),
        ("__popc(__ballot_sync(ALL_LANES, out % 3 == 0))", np.where(LANES < 32, 11, 11)),
        ("__any_sync(ALL_LANES, out == 40)", LANES // 32),
        ("__all_sync(ALL_LANES, out >= 32)", LANES // 32),
        ("__popc(__match_any_sync(ALL_LANES, out % 4))", np.full(64, 8)),
        ("__syncthreads_count(out % 2)", np.full(64, 32)),
        ("__syncthreads_or(out == 63)", np.ones(64)),
        ("__syncthreads_and(out < 63)", np.zeros(64)),
        ("__clz(out)", [32] + [31 - int(np.log2(i)) for i in range(1, 64)]),
        ("__ffs(out)", [0] + [(i & -i).bit_length() for i in range(1, 64)]),
        ("__float2int_rn(out + 0.5f)", [int(np.rint(i + 0.5)) for i in range(64)]),
        ("__dp4a(0x01ff0203, out, 7)", [7 + 3 * i for i in range(64)]),
    ],
)
def test_functions_of_a_thread_and_of_a_warp(call: str, want: np.ndarray) -> None:
    np.testing.assert_array_equal(ints(f"out = {call};"), want)


def test_indices_count_x_first() -> None:
    y = ints("out = threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z + 1000 * b;", block=(4, 3, 2), grid=(2, 1, 2))
    first = [x + 10 * y + 100 * z for z in range(2) for y in range(3) for x in range(4)]
    np.testing.assert_array_equal(y, [v + 1000 * b for b in range(4) for v in first])


@pytest.mark.parametrize(
    ("operation", "want"),
    [
        ("atomicAdd(&held, out)", sum(range(64))),
        ("atomicSub(&held, out)", -sum(range(64))),
        ("atomicMax(&held, out)", 63),
        ("atomicMin(&held, -out)", -63),
        ("atomicOr(&held, out)", 63),
        ("atomicExch(&held, 9)", 9),
        ("int seen, old = 0; do { seen = old; old = atomicCAS(&held, seen, seen + 2); } while (old != seen)", 128),
    ],
)
def test_atomics(operation: str, want: int) -> None:
    body = f"__shared__ int held; if (t == 0) held = 0; __syncthreads(); {operation}; __syncthreads(); out = held;"
    np.testing.assert_array_equal(ints(body), np.full(64, want))


def test_reductions_of_a_warp_of_a_part_of_it_and_of_a_block() -> None:
    np.testing.assert_array_equal(ints("out = (int)warp_reduce(float(out), Sum{});"), [496] * 32 + [1520] * 32)
    parts = LANES.reshape(8, 8).max(axis=1).repeat(8)
    np.testing.assert_array_equal(ints("out = (int)warp_reduce<8>(float(out), Max{});"), parts)
    body = "__shared__ float scratch[32]; out = (int)block_reduce<64>(float(out), Sum{}, 0.0f, scratch);"
    np.testing.assert_array_equal(ints(body + body.replace("__shared__ float scratch[32];", "")), [2016 * 64] * 64)


@pytest.mark.parametrize(("name", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_every_half_converts_exactly_and_rounds_as_numpy_does(name: str, dtype: type) -> None:
    source = (
        '#include "device.cuh"\nextern "C" __global__ '
        "void kernel(const T* x, const float* f, int n, float* y, T* z) {\n"
        "    for (int i = threadIdx.x; i < n; i += 256) { y[i] = to_float(x[i]); z[i] = from_float<T>(f[i]); }\n}\n"
    )
    kernel = host_kernel(source, "kernel", {"T": name})
    x = np.arange(65536, dtype=np.uint16).view(dtype)
    rng = np.random.default_rng(0)
    f = rng.integers(0, 2**32, 65536, np.uint32).view(np.float32)
    f[:4096] = rng.standard_normal(4096)
    y, z = np.zeros(65536, np.float32), np.zeros(65536, dtype)
    kernel.run({"x": x, "f": f}, {"y": y, "z": z}, scalars=[65536], block=(256, 1, 1))
    np.testing.assert_array_equal(y, x.astype(np.float32))
    with np.errstate(over="ignore", invalid="ignore"):
        np.testing.assert_array_equal(z.astype(np.float32), f.astype(dtype).astype(np.float32))


def test_integers_are_rounded_to_even_and_saturated() -> None:
    source = (
        '#include "device.cuh"\nextern "C" __global__ void kernel(const float* x, i8* y, u8* z) {\n'
        "    y[threadIdx.x] = from_float<i8>(x[threadIdx.x]); z[threadIdx.x] = from_float<u8>(x[threadIdx.x]);\n}\n"
    )
    x = np.array([0.5, 1.5, -2.5, 127.4, 127.6, 300, -300, np.nan, np.inf, -np.inf, 254.5, -0.4], np.float32)
    y, z = np.zeros(12, np.int8), np.zeros(12, np.uint8)
    host_kernel(source, "kernel", {}).run({"x": x}, {"y": y, "z": z}, block=(12, 1, 1))
    assert y.tolist() == [0, 2, -2, 127, 127, 127, -128, 0, 127, -128, 127, 0]
    assert z.tolist() == [0, 2, 0, 127, 128, 255, 0, 0, 255, 0, 254, 0]


def test_other_processors_switch_threads_in_another_way() -> None:
    source = (
        'extern "C" __global__ void kernel(const float* x, float* y) {\n    __shared__ float held[96];\n'
        "    held[threadIdx.x] = x[threadIdx.x];\n    __syncthreads();\n"
        "    y[threadIdx.x] = held[95 - threadIdx.x] + __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);\n}\n"
    )
    x, y = np.arange(96, dtype=np.float32), np.zeros(96, np.float32)
    host_kernel(source, "kernel", {}, portable=True).run({"x": x}, {"y": y}, block=(96, 1, 1))
    np.testing.assert_array_equal(y, x[::-1] + (np.arange(96) ^ 1))


def test_threads_run_in_another_order_with_another_seed() -> None:
    source = (
        'extern "C" __global__ void kernel(int* order) {\n    __shared__ int next; if (threadIdx.x == 0) next = 0;\n'
        "    __syncthreads();\n    order[atomicAdd(&next, 1)] = threadIdx.x;\n}\n"
    )
    orders = []
    for seed in (1, 1, 2):
        order = np.zeros(64, np.int32)
        host_kernel(source, "kernel", {}).run({}, {"order": order}, block=(64, 1, 1), seed=seed)
        orders.append(order.tolist())
    assert sorted(orders[0]) == list(range(64))
    assert orders[0] == orders[1] != orders[2]
