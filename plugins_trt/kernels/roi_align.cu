// The features under each region, averaged into bins, from whichever of LEVELS pyramid levels suits the region's size.
// Composed of single operators that is a RoiAlign of every region on every level and a selection; here each region is read
// from its own level only, once.
//
// A block has one region. A thread has one bin of it and CHANNELS_EACH channels: where a sample lies and what its four
// neighbours weigh is the same in every channel, so it is worked out once and used CHANNELS_EACH times, with
// CHANNELS_EACH * 4 loads under way at once. Neighbouring threads have neighbouring bins, then the next channel: their
// loads fall into the same few rows of a feature map, and their stores are one run of memory (GROUP channels of BINS).
// The maps are read through the read-only path: a region's samples are 1 or 2 pixels apart, so that what one thread reads
// a neighbour needs too, and the L1 cache has it.
//
// No shared memory: the regions of a feature map that a block needs differ in size from region to region, and staging
// them would cost as many accesses as it saves at 2 x 2 samples a bin.
// Divergence: the level, the number of samples and the geometry are the same for the whole block; only samples outside
// of the map, and threads past the last bin or channel, differ.
//
// Coordinates are computed with roundings of single operations (no multiply-add): whether a sample lies on the map is
// then the same on every GPU and in the reference.
//
// Constants: T, ROI (type of the regions), INDEX, LEVELS, OUT_H, OUT_W, SAMPLES (0: as many as a bin has pixels),
// MOST_SAMPLES, ALIGNED, THREADS, GROUP (channels side by side in a block), CHANNELS_EACH, SCALE_l, LEVEL_AREA_l.
#include "device.cuh"

constexpr int BINS = OUT_H * OUT_W;
constexpr int BINS_OF_BLOCK = BINS < THREADS ? BINS : THREADS;

template <class Item>
struct Map {
    const Item* start;  // of one image
    int height, width;
    float scale;
};

// The two neighbours of a coordinate along one axis. Both weights are 0 where it is off the map (or NaN).
struct Neighbours {
    int low, high;
    float low_weight, high_weight;

    __device__ Neighbours(float at, int size) {
        const bool inside = at >= -1.0f && at <= static_cast<float>(size);
        const float held = inside ? fmaxf(at, 0.0f) : 0.0f;
        low = min(static_cast<int>(held), size - 1);
        high = min(low + 1, size - 1);
        const float beyond = low < size - 1 ? held - static_cast<float>(low) : 0.0f;
        low_weight = inside ? 1.0f - beyond : 0.0f;
        high_weight = inside ? beyond : 0.0f;
    }
};

// A region along one axis: where it starts, the size of a bin, samples in a bin.
struct Extent {
    float start, bin;
    int samples;

    __device__ Extent(float low, float high, float scale, int bins) {
        const float offset = ALIGNED ? 0.5f : 0.0f;
        start = __fsub_rn(__fmul_rn(low, scale), offset);
        float size = __fsub_rn(__fsub_rn(__fmul_rn(high, scale), offset), start);
        if (!ALIGNED && size < 1.0f) size = 1.0f;  // not fmaxf, which would make 1 of NaN
        bin = __fdiv_rn(size, static_cast<float>(bins));
        // fmaxf takes 0 for NaN
        samples = SAMPLES > 0 ? SAMPLES : static_cast<int>(fminf(fmaxf(ceilf(bin), 0.0f), MOST_SAMPLES));
    }
    __device__ float at(int which, int sample) const {
        const float into = __fdiv_rn(__fmul_rn(static_cast<float>(sample) + 0.5f, bin), static_cast<float>(samples));
        return __fadd_rn(__fadd_rn(start, __fmul_rn(static_cast<float>(which), bin)), into);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    edgekit_roi_align(const T* __restrict__ x0,
#if LEVELS > 1
                      const T* __restrict__ x1,
#endif
#if LEVELS > 2
                      const T* __restrict__ x2,
#endif
#if LEVELS > 3
                      const T* __restrict__ x3,
#endif
#if LEVELS > 4
                      const T* __restrict__ x4,
#endif
                      const ROI* __restrict__ rois, const INDEX* __restrict__ batch_indices, i32 regions, i32 images,
                      i32 channels, i32 height0, i32 width0,
#if LEVELS > 1
                      i32 height1, i32 width1,
#endif
#if LEVELS > 2
                      i32 height2, i32 width2,
#endif
#if LEVELS > 3
                      i32 height3, i32 width3,
#endif
#if LEVELS > 4
                      i32 height4, i32 width4,
#endif
                      T* __restrict__ y) {
    const int region = blockIdx.x;
    if (region >= regions) return;
    const int place = threadIdx.x % BINS_OF_BLOCK, group = threadIdx.x / BINS_OF_BLOCK;
    const int bin = blockIdx.z * BINS_OF_BLOCK + place;
    const int channel = blockIdx.y * (GROUP * CHANNELS_EACH) + group;
    if (group >= GROUP || bin >= BINS) return;

    const Pack<ROI, 4> corners = load_pack<4>(rois + static_cast<i64>(region) * 4);
    const float left = to_float(corners.at[0]), top = to_float(corners.at[1]);
    const float right = to_float(corners.at[2]), bottom = to_float(corners.at[3]);
    Map<T> map{x0, height0, width0, SCALE_0};
#if LEVELS > 1
    const float area = __fmul_rn(__fsub_rn(right, left), __fsub_rn(bottom, top));
    if (area >= LEVEL_AREA_1) map = {x1, height1, width1, SCALE_1};
#endif
#if LEVELS > 2
    if (area >= LEVEL_AREA_2) map = {x2, height2, width2, SCALE_2};
#endif
#if LEVELS > 3
    if (area >= LEVEL_AREA_3) map = {x3, height3, width3, SCALE_3};
#endif
#if LEVELS > 4
    if (area >= LEVEL_AREA_4) map = {x4, height4, width4, SCALE_4};
#endif
    const Extent rows(top, bottom, map.scale, OUT_H), columns(left, right, map.scale, OUT_W);
    const i64 image = batch_indices[region];
    const bool known = image >= 0 && image < images;  // an image that is not there gives zeros
    const int plane = map.height * map.width;
    const T* start = map.start + ((known ? image : 0) * channels + channel) * plane;

    float sum[CHANNELS_EACH] = {};
    for (int i = 0; known && i < rows.samples; ++i) {
        const Neighbours v(rows.at(bin / OUT_W, i), map.height);
        for (int j = 0; j < columns.samples; ++j) {
            const Neighbours h(columns.at(bin % OUT_W, j), map.width);
            const int offset[4] = {v.low * map.width + h.low, v.low * map.width + h.high, v.high * map.width + h.low,
                                   v.high * map.width + h.high};
            const float weight[4] = {v.low_weight * h.low_weight, v.low_weight * h.high_weight,
                                     v.high_weight * h.low_weight, v.high_weight * h.high_weight};
            // What has no weight is not read: it may be NaN, or cost a sector.
            T held[CHANNELS_EACH][4];
#pragma unroll
            for (int k = 0; k < CHANNELS_EACH; ++k) {
                const T* channel_start = start + static_cast<i64>(k) * GROUP * plane;
                const bool there = channel + k * GROUP < channels;
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    held[k][n] = T{};
                    if (there && weight[n] != 0.0f) held[k][n] = load_pack<1>(channel_start + offset[n]).at[0];
                }
            }
#pragma unroll
            for (int k = 0; k < CHANNELS_EACH; ++k) {
#pragma unroll
                for (int n = 0; n < 4; ++n) sum[k] += weight[n] * to_float(held[k][n]);
            }
        }
    }
    const float factor = 1.0f / static_cast<float>(max(rows.samples * columns.samples, 1));
#pragma unroll
    for (int k = 0; k < CHANNELS_EACH; ++k) {
        const int c = channel + k * GROUP;
        if (c >= channels) break;
        y[(static_cast<i64>(region) * channels + c) * BINS + bin] = from_float<T>(sum[k] * factor);
    }
}
