// y = v / (1 + exp(-v)) with v = x + bias, x being [..., C], one bias a channel.
//
// Memory-bound: a thread takes one pack of VEC neighbouring elements (16 bytes where C allows it), a load and a store each.
// Constants: T, VEC, THREADS.
#include "device.cuh"

extern "C" __global__ void __launch_bounds__(THREADS)
    bias_silu(const T* __restrict__ x, const T* __restrict__ bias, i32 packs, i32 channels, T* __restrict__ y) {
    const i32 pack = blockIdx.x * THREADS + threadIdx.x;
    if (pack >= packs) return;
    const i64 at = static_cast<i64>(pack) * VEC;
    const Pack<T, VEC> offsets = load_pack<VEC>(bias + at % channels);
    Pack<T, VEC> values = load_pack<VEC>(x + at);
    for (int i = 0; i < VEC; ++i) {
        const float v = to_float(values.at[i]) + to_float(offsets.at[i]);
        values.at[i] = from_float<T>(__fdividef(v, 1.0f + __expf(-v)));
    }
    store_pack(y + at, values);
}
