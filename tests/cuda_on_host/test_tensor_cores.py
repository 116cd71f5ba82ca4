"""The tensor-core product on the CPU, in the layout that PTX gives the fragments of mma.m16n8k16."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from tests.cuda_on_host.host import host_kernel

PRODUCT = """
#include "device.cuh"
extern "C" __global__ void product(const T* a, const T* b, const float* c, float* d) {
    int group = threadIdx.x / 4, within = threadIdx.x % 4;
    T held[8], other[4];
    for (int i = 0; i < 8; ++i) {
        int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
        held[i] = a[row * 16 + within * 2 + (i & 1) + (i >= 4 ? 8 : 0)];
    }
    for (int i = 0; i < 4; ++i) other[i] = b[(within * 2 + (i & 1) + (i >= 2 ? 8 : 0)) * 8 + group];
    u32 left[4], right[2];
    memcpy(left, held, sizeof(left));
    memcpy(right, other, sizeof(right));
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = c[(i < 2 ? group : group + 8) * 8 + within * 2 + (i & 1)];
    mma_16x8x16<T>(sums, left, right);
    for (int i = 0; i < 4; ++i) d[(i < 2 ? group : group + 8) * 8 + within * 2 + (i & 1)] = sums[i];
}
"""


@pytest.mark.parametrize(("name", "dtype"), [("f16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_a_product_of_fragments_is_the_product_of_the_matrices(name: str, dtype: type) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((16, 16)).astype(dtype), rng.standard_normal((16, 8)).astype(dtype)
    c, d = rng.standard_normal((16, 8)).astype(np.float32), np.zeros((16, 8), np.float32)
    host_kernel(PRODUCT, "product", {"T": name}).run({"a": a, "b": b, "c": c}, {"d": d})
    np.testing.assert_allclose(d, a.astype(np.float32) @ b.astype(np.float32) + c, rtol=1e-5, atol=1e-5)
