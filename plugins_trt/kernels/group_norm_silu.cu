// y = silu(group_norm(x) * weight + bias), x being [N, C, ...] or, CHANNELS_LAST, [N, ..., C].
//
// A block has GROUPS groups of one image. If they fit, each thread keeps its part in registers, as it was loaded (HOLD
// packs of 16 bytes or less): x is read once and y written once. Else the block reads x twice, and the second time it is
// mostly in the L2 cache. There is no way to share statistics between blocks in one launch, so where images times groups
// are too few blocks to fill the GPU, SLICES blocks compute the same statistics and write a slice of the group each:
// more reads from the L2 cache, the same from memory. TensorRT times the variants.
//
// Statistics: in registers the mean first, then squared differences from it. When x is read twice, one pass sums
// differences from the group's first element, and their squares: E[x^2] - E[x]^2 without its cancellation for groups
// whose mean is large against their deviation.
//
// Coalescing: [N, C, ...] has a group in one piece, and neighbouring threads take neighbouring packs. CHANNELS_LAST has
// only C / groups channels of a group side by side (20 bytes for 320 channels in 32 groups), so a block takes as many
// groups as make 64 bytes; a thread keeps to one pack of channels (PACKS of them a pixel) and walks over the pixels,
// which also keeps its weights in registers. Threads beyond a multiple of PACKS idle.
// Divergence: only at the ends of the loops. Bank conflicts: partial sums are written by consecutive threads, and read by
// lanes that are PACKS apart or side by side: at worst the stride is even, for at most a few hundred reads of a block.
//
// Constants: T, VEC (elements of a pack), THREADS, CHANNELS_LAST, GROUPS, PACKS, HOLD (packs of a thread; 0: read twice),
// SLICES, EPSILON.
#include "device.cuh"

constexpr int LANES_OF_PIXEL = CHANNELS_LAST ? PACKS : 1;
constexpr int STRIDE = THREADS / LANES_OF_PIXEL;  // steps of a thread go on by STRIDE pixels, or packs

// The packs that a thread visits, one after the other.
struct Walk {
    i64 at;        // of the pack's first element in x
    i32 step;      // pixel, or pack of the group
    i32 steps;     // how many there are
    i32 channel;   // of the pack's first element
    i32 within;    // [N, C, ...]: position in the channel
    i32 width;     // elements of a channel
    i32 channels;  // of x
    i64 forth;     // elements to the thread's next pack
    i32 whole, rest;  // the same in channels

    __device__ Walk(i32 image, i32 first_channel, i32 group_channels, i32 pixels, i32 all_channels, i32 first_step) {
        width = pixels;
        channels = all_channels;
        const i32 t = threadIdx.x;
        if (CHANNELS_LAST) {
            const bool idle = t >= STRIDE * LANES_OF_PIXEL;
            steps = idle ? 0 : pixels;
            step = first_step + t / LANES_OF_PIXEL;
            channel = first_channel + t % LANES_OF_PIXEL * VEC;
            at = (static_cast<i64>(image) * pixels + step) * channels + channel;
            forth = static_cast<i64>(STRIDE) * channels;
            within = whole = rest = 0;
        } else {
            steps = static_cast<i32>(static_cast<i64>(group_channels) * pixels / VEC);
            step = first_step + t;
            const i64 offset = static_cast<i64>(step) * VEC;
            at = (static_cast<i64>(image) * channels + first_channel) * pixels + offset;
            channel = first_channel + static_cast<i32>(offset / pixels);
            within = static_cast<i32>(offset % pixels);
            forth = STRIDE * VEC;
            whole = STRIDE * VEC / pixels;  // divided once, so that no step has to
            rest = STRIDE * VEC % pixels;
        }
    }

    __device__ bool inside(i32 end) const { return step < end; }

    __device__ void next() {
        step += STRIDE;
        at += forth;
        if (CHANNELS_LAST) return;
        channel += whole;
        within += rest;
        if (within >= width) {
            within -= width;
            ++channel;
        }
    }
};

// The sum over the threads of this thread's group.
__device__ inline float over_group(float x, float* partial, float* result) {
    if constexpr (GROUPS == 1) {
        return block_reduce<THREADS>(x, Sum{}, 0.0f, partial);
    } else {
        constexpr int OF_PIXEL = PACKS / GROUPS;  // neighbouring threads of one group
        constexpr int MEMBERS = OF_PIXEL * STRIDE;
        __syncthreads();
        partial[threadIdx.x] = x;
        __syncthreads();
        for (int group = threadIdx.x / WARP; group < GROUPS; group += THREADS / WARP) {
            float sum = 0.0f;
            for (int i = threadIdx.x % WARP; i < MEMBERS; i += WARP) {
                sum += partial[i / OF_PIXEL * PACKS + group * OF_PIXEL + i % OF_PIXEL];
            }
            sum = warp_reduce(sum, Sum{});
            if (threadIdx.x % WARP == 0) result[group] = sum;
        }
        __syncthreads();
        return result[threadIdx.x % PACKS / OF_PIXEL];
    }
}

__device__ inline Pack<T, VEC> finished(const Pack<T, VEC>& x, const Walk& walk, float mean, float scale,
                                        const T* weight, const T* bias) {
    Pack<T, VEC> w, b, out;
    if (CHANNELS_LAST) {
        w = load_pack<VEC>(weight + walk.channel);
        b = load_pack<VEC>(bias + walk.channel);
    } else {
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            w.at[i] = weight[walk.channel];
            b.at[i] = bias[walk.channel];
        }
    }
#pragma unroll
    for (int i = 0; i < VEC; ++i) {
        const float v = (to_float(x.at[i]) - mean) * (scale * to_float(w.at[i])) + to_float(b.at[i]);
        out.at[i] = from_float<T>(__fdividef(v, 1.0f + __expf(-v)));
    }
    return out;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    edgekit_group_norm_silu(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                            i32 channels, i32 group_channels, i32 pixels, T* __restrict__ y) {
    __shared__ float partial[GROUPS == 1 ? WARP : THREADS];
    __shared__ float result[GROUPS];
    const i32 slice = blockIdx.x % SLICES;
    const i32 blocks_of_image = channels / (group_channels * GROUPS);
    const i32 image = blockIdx.x / SLICES / blocks_of_image;
    const i32 first_channel = blockIdx.x / SLICES % blocks_of_image * (group_channels * GROUPS);
    const float count = static_cast<float>(group_channels) * pixels;
    const Walk begin(image, first_channel, group_channels, pixels, channels, 0);

#if HOLD
    Pack<T, VEC> held[HOLD];
    float total = 0.0f, squares = 0.0f;
    Walk walk = begin;
#pragma unroll
    for (int p = 0; p < HOLD; ++p, walk.next()) {
        if (!walk.inside(walk.steps)) break;
        held[p] = load_pack<VEC>(x + walk.at);
#pragma unroll
        for (int i = 0; i < VEC; ++i) total += to_float(held[p].at[i]);
    }
    const float mean = over_group(total, partial, result) / count;
    walk = begin;
#pragma unroll
    for (int p = 0; p < HOLD; ++p, walk.next()) {
        if (!walk.inside(walk.steps)) break;
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            const float away = to_float(held[p].at[i]) - mean;
            squares += away * away;
        }
    }
    const float scale = rsqrtf(over_group(squares, partial, result) / count + EPSILON);
    walk = begin;
#pragma unroll
    for (int p = 0; p < HOLD; ++p, walk.next()) {
        if (!walk.inside(walk.steps)) break;
        store_pack(y + walk.at, finished(held[p], walk, mean, scale, weight, bias));
    }
#else
    // The first element of this thread's group: of its image's first pixel.
    const i32 own_group = GROUPS == 1 ? 0 : static_cast<i32>(threadIdx.x % PACKS / (PACKS / GROUPS));
    const i64 own_channel = first_channel + own_group * group_channels;
    const i64 image_start = static_cast<i64>(image) * channels * pixels;
    const float shift = to_float(x[image_start + (CHANNELS_LAST ? own_channel : own_channel * pixels)]);
    float total = 0.0f, squares = 0.0f;
#pragma unroll 2
    for (Walk walk = begin; walk.inside(walk.steps); walk.next()) {
        const Pack<T, VEC> pack = load_pack<VEC>(x + walk.at);
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            const float away = to_float(pack.at[i]) - shift;
            total += away;
            squares += away * away;
        }
    }
    const float away = over_group(total, partial, result) / count;
    const float spread = over_group(squares, partial, result) / count - away * away;
    // Rounding can leave it just below zero; a NaN must stay one.
    const float scale = rsqrtf((spread < 0.0f ? 0.0f : spread) + EPSILON);
    const float mean = shift + away;
    // A slice is a run of whole rounds of the block, so that its accesses stay aligned.
    const i32 rounds = (begin.steps + STRIDE - 1) / STRIDE;
    const i32 from = static_cast<i32>(static_cast<i64>(rounds) * slice / SLICES) * STRIDE;
    const i32 to = static_cast<i32>(static_cast<i64>(rounds) * (slice + 1) / SLICES) * STRIDE;
    const i32 end = to < begin.steps ? to : begin.steps;
#pragma unroll 2
    for (Walk walk(image, first_channel, group_channels, pixels, channels, from); walk.inside(end); walk.next()) {
        store_pack(y + walk.at, finished(load_pack<VEC>(x + walk.at), walk, mean, scale, weight, bias));
    }
#endif
}
