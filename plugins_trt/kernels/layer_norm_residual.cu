// y = norm(x + residual) * weight + bias over the last dimension, norm being LayerNorm or RMSNorm; also x + residual
// itself (KEEP_SUM), and y as INT8 (OUT is i8): each element is read once and written once, which is all that a
// memory-bound kernel can hope for. Composed of single operators it would be three to five passes.
//
// A row is shared by LANES threads and held in their registers, in float, between the passes of the statistics: up to
// 1024 columns one warp (or a part of it: 64 columns of FP16 are 8 packs of 16 bytes, so 8 lanes) has a row, and the
// reductions are shuffles with no shared memory and no barrier; longer rows take a whole block.
// The variance is the mean of squared differences from the mean, not E[x^2] - E[x]^2, which cancels in float when the
// mean is large against the deviation (residual streams of transformers). It costs no memory traffic here.
//
// Coalescing: neighbouring lanes load neighbouring packs, so a warp's load is one run of memory of up to 512 bytes.
// Divergence: lanes past the row's end or past the last row hold zeros and take part in every shuffle; only their loads
// and stores are skipped. Bank conflicts: shared memory is one float per warp, read by consecutive lanes.
//
// Constants: T, OUT, VEC (elements of a pack), LANES, THREADS, PACKS (of a lane), RMS, KEEP_SUM, EPSILON, INVERSE_SCALE.
#include "device.cuh"

constexpr int ROWS = THREADS / LANES;  // of one block

__device__ inline float over_row(float x, float* scratch) {
    if constexpr (LANES <= WARP) {
        return warp_reduce<LANES>(x, Sum{});
    } else {
        return block_reduce<LANES>(x, Sum{}, 0.0f, scratch);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    edgekit_layer_norm_residual(const T* __restrict__ x, const T* __restrict__ residual, const T* __restrict__ weight,
                                const T* __restrict__ bias, i32 rows, i32 columns, OUT* __restrict__ y
#if KEEP_SUM
                                ,
                                T* __restrict__ sum
#endif
    ) {
    __shared__ float scratch[WARP];
    const i32 row = blockIdx.x * ROWS + threadIdx.x / LANES;
    const i32 lane = threadIdx.x % LANES;
    const i64 start = static_cast<i64>(row) * columns;

    float held[PACKS][VEC];
    float total = 0.0f;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const i32 at = (p * LANES + lane) * VEC;
        const bool inside = row < rows && at < columns;
        Pack<T, VEC> a{}, b{};
        if (inside) {
            a = load_pack<VEC>(x + start + at);
            b = load_pack<VEC>(residual + start + at);
        }
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            held[p][i] = to_float(a.at[i]) + to_float(b.at[i]);
            total += held[p][i];
        }
#if KEEP_SUM
        if (inside) {
            Pack<T, VEC> out;
#pragma unroll
            for (int i = 0; i < VEC; ++i) out.at[i] = from_float<T>(held[p][i]);
            store_pack(sum + start + at, out);
        }
#endif
    }

    const float mean = RMS ? 0.0f : over_row(total, scratch) / columns;
    float squares = 0.0f;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        if ((p * LANES + lane) * VEC >= columns) continue;  // zeros there are not columns: they must not count
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            held[p][i] -= mean;
            squares += held[p][i] * held[p][i];
        }
    }
    const float scale = rsqrtf(over_row(squares, scratch) / columns + EPSILON);

    if (row >= rows) return;
#pragma unroll
    for (int p = 0; p < PACKS; ++p) {
        const i32 at = (p * LANES + lane) * VEC;
        if (at >= columns) continue;
        const Pack<T, VEC> w = load_pack<VEC>(weight + at);
        const Pack<T, VEC> b = load_pack<VEC>(bias + at);
        Pack<OUT, VEC> out;
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            out.at[i] = from_float<OUT>((held[p][i] * scale * to_float(w.at[i]) + to_float(b.at[i])) * INVERSE_SCALE);
        }
        store_pack(y + start + at, out);
    }
}
