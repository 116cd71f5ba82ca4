// One launch from the camera's bytes to the network's planes. Composed of single operators this is a conversion, a
// resize, a padding, a subtraction, a division, a transposition and a rounding: seven passes where one will do.
//
// A block of 256 threads makes a tile of TILE_X x TILE_Y pixels of the output, in two steps with one barrier between:
//   rows     For each row of the tile, the frame's rows under it are blended, byte by byte, into floats in shared
//            memory. Here the frame is read, and neighbouring threads read neighbouring runs of LOAD bytes, whatever
//            the number of channels; what rows of the tile share is found in the L1 cache (hence TILE_Y of 8, where
//            it fits).
//   columns  Each thread makes VEC neighbouring pixels from that blend and stores them to each plane as one pack; a
//            warp's store is one run of at least 128 bytes.
// Rows first, since they leave bytes side by side: columns first would read pixels of 3 bytes at odd addresses.
//
// Shared memory: TILE_Y rows of SPAN floats. A thread of the first step writes LOAD of them with vectors of 16 bytes;
// with LOAD 4 there is no bank conflict, with 8 two threads share a bank. In the second step neighbours read at a
// distance of CHANNELS * VEC * scale floats: no conflict where that is odd, few elsewhere.
// Divergence: pixels outside of the content take no part in the blend; they are whole rows and runs of columns.
//
// The weights are integers (letterbox_normalize.py says why), at most 32768, so they are exact in float.
//
// Constants: T, NV12, CHANNELS, OUT_CHANNELS, FRAME_H, FRAME_W, HEIGHT, WIDTH, CONTENT_H, CONTENT_W, TOP, LEFT, ANTIALIAS,
// SWAP, PAD, THREADS, LOAD, VEC, TILE_X, TILE_Y, SPAN, MULTIPLY_c and ADD_c; for NV12 CHROMA_SPAN, BLACK, Y_SCALE, R_V,
// G_U, G_V and B_U.
#include "device.cuh"

// Frame pixels under the pixels of one axis of the content, and their weights.
template <int Inside, int Content>
struct Axis {
    static constexpr int REACH = 2 * (ANTIALIAS && Inside > Content ? Inside : Content);

    static __device__ int first(int at) {
        const int before = (2 * at + 1) * Inside - Content - REACH;
        return before < 0 ? 0 : before / (2 * Content) + 1;
    }
    static __device__ int last(int at) {
        return min(Inside - 1, ((2 * at + 1) * Inside - Content + REACH - 1) / (2 * Content));
    }
    static __device__ float weight(int at, int tap) {
        const int away = (2 * tap + 1) * Content - (2 * at + 1) * Inside;
        return static_cast<float>(max(0, REACH - (away < 0 ? -away : away)));
    }
};

// The bytes of a plane's row that columns [low, high] of the content need, in whole loads.
template <class Columns, int Width>
struct Run {
    int start, loads;
    __device__ Run(int low, int high) {
        start = Columns::first(low) * Width / LOAD * LOAD;
        loads = ((Columns::last(high) + 1) * Width - start + LOAD - 1) / LOAD;
    }
};

// acc += weight * byte, for LOAD bytes at p. A byte becomes a float by being put under the exponent of 2^23, which is one
// permutation and one subtraction at full rate; the conversion instruction has a quarter of it.
__device__ inline void blend(const u8* p, float weight, float (&acc)[LOAD]) {
#if LOAD >= 4
    const Pack<u32, LOAD / 4> words = load_pack<LOAD / 4>(reinterpret_cast<const u32*>(p));
#pragma unroll
    for (int i = 0; i < LOAD; ++i) {
        const u32 bits = __byte_perm(words.at[i / 4], 0x4b000000u, 0x7440 + i % 4);
        acc[i] += weight * (__uint_as_float(bits) - 8388608.0f);
    }
#else
    const Pack<u8, LOAD> bytes = load_pack<LOAD>(p);
#pragma unroll
    for (int i = 0; i < LOAD; ++i) acc[i] += weight * to_float(bytes.at[i]);
#endif
}

// Blends rows of `plane` (Pitch bytes each) for the tile's rows, of which the first is row `top` of the content.
template <class Rows, int Pitch, int Span, class Bytes>
__device__ inline void blend_rows(const u8* plane, Bytes run, int top, float* held) {
    for (int item = threadIdx.x; item < TILE_Y * run.loads; item += THREADS) {
        const int line = item / run.loads, at = item % run.loads * LOAD, row = top + line;
        if (row < 0 || row >= CONTENT_H) continue;
        float acc[LOAD] = {};
        float total = 0.0f;
        const int last = Rows::last(row);
#pragma unroll 4
        for (int tap = Rows::first(row); tap <= last; ++tap) {
            const float weight = Rows::weight(row, tap);
            blend(plane + static_cast<i64>(tap) * Pitch + run.start + at, weight, acc);
            total += weight;
        }
        const float factor = 1.0f / total;
        constexpr int FLOATS = LOAD < 4 ? LOAD : 4;
#pragma unroll
        for (int i = 0; i < LOAD; i += FLOATS) {
            Pack<float, FLOATS> out;
#pragma unroll
            for (int k = 0; k < FLOATS; ++k) out.at[k] = acc[i + k] * factor;
            store_pack(held + line * Span + at + i, out);
        }
    }
}

// Column `at` of the content, from a blended row that starts at byte `start` of the plane's rows.
template <class Columns, int Width>
__device__ inline void sample(const float* row, int start, int at, float (&out)[Width]) {
    float total = 0.0f;
#pragma unroll
    for (int c = 0; c < Width; ++c) out[c] = 0.0f;
    const int last = Columns::last(at);
    for (int tap = Columns::first(at); tap <= last; ++tap) {
        const float weight = Columns::weight(at, tap);
        total += weight;
#pragma unroll
        for (int c = 0; c < Width; ++c) out[c] += weight * row[tap * Width - start + c];
    }
    const float factor = 1.0f / total;
#pragma unroll
    for (int c = 0; c < Width; ++c) out[c] *= factor;
}

__device__ inline float normalised(float pixel, int channel) {
#if OUT_CHANNELS == 1
    return pixel * MULTIPLY_0 + ADD_0;
#else
    if (channel == 0) return pixel * MULTIPLY_0 + ADD_0;
    if (channel == 1) return pixel * MULTIPLY_1 + ADD_1;
    return pixel * MULTIPLY_2 + ADD_2;
#endif
}

__device__ inline float pixel_range(float x) { return fminf(fmaxf(x, 0.0f), 255.0f); }

extern "C" __global__ void __launch_bounds__(THREADS)
    edgekit_letterbox_normalize(const u8* __restrict__ frame, i32 batch, T* __restrict__ y) {
    DYNAMIC_SHARED(float, held);
    using Rows = Axis<FRAME_H, CONTENT_H>;
    using Columns = Axis<FRAME_W, CONTENT_W>;
    const int image = blockIdx.z;
    if (image >= batch) return;  // the whole block
    const int top = static_cast<int>(blockIdx.y) * TILE_Y - TOP, left = static_cast<int>(blockIdx.x) * TILE_X - LEFT;
    const int low = max(left, 0), high = min(left + TILE_X, CONTENT_W) - 1;
    const bool content = low <= high;
    const Run<Columns, CHANNELS> run(content ? low : 0, content ? high : 0);
#if NV12
    using ChromaRows = Axis<FRAME_H / 2, CONTENT_H>;
    using ChromaColumns = Axis<FRAME_W / 2, CONTENT_W>;
    float* chroma = held + TILE_Y * SPAN;
    const u8* plane = frame + static_cast<i64>(image) * (FRAME_H / 2 * 3) * FRAME_W;
    const Run<ChromaColumns, 2> chroma_run(content ? low : 0, content ? high : 0);
    if (content) {
        blend_rows<Rows, FRAME_W, SPAN>(plane, run, top, held);
        blend_rows<ChromaRows, FRAME_W, CHROMA_SPAN>(plane + FRAME_H * FRAME_W, chroma_run, top, chroma);
    }
#else
    constexpr int PITCH = FRAME_W * CHANNELS;
    if (content) {
        blend_rows<Rows, PITCH, SPAN>(frame + static_cast<i64>(image) * FRAME_H * PITCH, run, top, held);
    }
#endif
    __syncthreads();

    constexpr int PACKS = TILE_X / VEC;
    for (int item = threadIdx.x; item < TILE_Y * PACKS; item += THREADS) {
        const int line = item / PACKS, at = item % PACKS * VEC;
        const int row = top + line, out_x = left + LEFT + at, out_y = row + TOP;
        if (out_x >= WIDTH || out_y >= HEIGHT) continue;
        Pack<T, VEC> out[OUT_CHANNELS];
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            const int column = left + at + i;
            float pixel[OUT_CHANNELS];
#pragma unroll
            for (int c = 0; c < OUT_CHANNELS; ++c) pixel[c] = PAD;
            if (row >= 0 && row < CONTENT_H && column >= 0 && column < CONTENT_W) {
                float found[CHANNELS];
                sample<Columns>(held + line * SPAN, run.start, column, found);
#if NV12
                float uv[2];
                sample<ChromaColumns>(chroma + line * CHROMA_SPAN, chroma_run.start, column, uv);
                const float luma = (found[0] - BLACK) * Y_SCALE, u = uv[0] - 128.0f, v = uv[1] - 128.0f;
                const float colour[3] = {pixel_range(luma + R_V * v), pixel_range(luma + G_U * u + G_V * v),
                                         pixel_range(luma + B_U * u)};
#else
                const float* colour = found;
#endif
#pragma unroll
                for (int c = 0; c < OUT_CHANNELS; ++c) pixel[c] = colour[SWAP ? OUT_CHANNELS - 1 - c : c];
            }
#pragma unroll
            for (int c = 0; c < OUT_CHANNELS; ++c) out[c].at[i] = from_float<T>(normalised(pixel[c], c));
        }
#pragma unroll
        for (int c = 0; c < OUT_CHANNELS; ++c) {
            const i64 plane_row = (static_cast<i64>(image) * OUT_CHANNELS + c) * HEIGHT + out_y;
            store_pack(y + plane_row * WIDTH + out_x, out[c]);
        }
    }
}
