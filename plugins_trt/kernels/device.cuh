// What every kernel of this package includes: types, conversions, vectorised access, reductions.
//
// It stands alone: no header of the CUDA toolkit is needed, so NVRTC compiles a kernel wherever its library is. The same
// source runs on a CPU in the tests (CUDA_ON_HOST): what is written as PTX here has a plain C++ twin there.
//
// A plan's constants are macros in upper case (T, VEC, THREADS, ...), so no name in here is in upper case but WARP and
// ALL_LANES.
#pragma once

using i8 = signed char;
using u8 = unsigned char;
using u16 = unsigned short;
using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;

struct alignas(2) f16 {
    u16 bits;
};
struct alignas(2) bf16 {
    u16 bits;
};

constexpr u32 ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;

// ---- conversions: to float exactly, from float with rounding to nearest even; NaN stays NaN ----

__device__ inline float to_float(float x) { return x; }

__device__ inline float to_float(f16 x) {
#ifdef CUDA_ON_HOST
    return cuda_on_host::float_of_half(x.bits);
#else
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(x.bits));
    return out;
#endif
}

__device__ inline float to_float(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }
__device__ inline float to_float(u8 x) { return static_cast<float>(x); }
__device__ inline float to_float(i8 x) { return static_cast<float>(x); }

template <class Item>
__device__ inline Item from_float(float x);

template <>
__device__ inline float from_float<float>(float x) {
    return x;
}

template <>
__device__ inline f16 from_float<f16>(float x) {
#ifdef CUDA_ON_HOST
    return {cuda_on_host::half_of_float(x)};
#else
    f16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(x));
    return out;
#endif
}

// In integers, since sm_75 has no instruction for it: three operations, lost among the memory accesses around them.
template <>
__device__ inline bf16 from_float<bf16>(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<u16>(bits >> 16 | 0x40u)};
    return {static_cast<u16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

// To the nearest, ties to even, saturated; NaN becomes 0.
template <>
__device__ inline i8 from_float<i8>(float x) {
    if (!(x == x)) return 0;
    return static_cast<i8>(static_cast<int>(rintf(fminf(fmaxf(x, -128.0f), 127.0f))));
}

template <>
__device__ inline u8 from_float<u8>(float x) {
    if (!(x == x)) return 0;
    return static_cast<u8>(static_cast<int>(rintf(fminf(fmaxf(x, 0.0f), 255.0f))));
}

// ---- vectorised access: Count elements that move as one load or store of sizeof(Item) * Count bytes (16 at most) ----

template <class Item, int Count>
struct alignas(sizeof(Item) * Count) Pack {
    Item at[Count];
};

namespace detail {
template <int Bytes>
struct Word;
template <>
struct Word<1> {
    using Type = u8;
};
template <>
struct Word<2> {
    using Type = u16;
};
template <>
struct Word<4> {
    using Type = u32;
};
template <>
struct Word<8> {
    using Type = uint2;
};
template <>
struct Word<16> {
    using Type = uint4;
};
}  // namespace detail

// Elements [i, i + Count) of p; p + i is aligned to the whole pack. Read once, through the read-only path.
template <int Count, class Item>
__device__ inline Pack<Item, Count> load_pack(const Item* p) {
    using Word = typename detail::Word<sizeof(Item) * Count>::Type;
    Word word = __ldg(reinterpret_cast<const Word*>(p));
    Pack<Item, Count> out;
    memcpy(&out, &word, sizeof(out));
    return out;
}

namespace detail {
#ifndef CUDA_ON_HOST
__device__ inline void load_again(u16& out, const u16* p) { asm volatile("ld.global.u16 %0, [%1];" : "=h"(out) : "l"(p)); }
__device__ inline void load_again(u32& out, const u32* p) { asm volatile("ld.global.u32 %0, [%1];" : "=r"(out) : "l"(p)); }
__device__ inline void load_again(uint2& out, const uint2* p) {
    asm volatile("ld.global.v2.u32 {%0, %1}, [%2];" : "=r"(out.x), "=r"(out.y) : "l"(p));
}
__device__ inline void load_again(uint4& out, const uint4* p) {
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out.x), "=r"(out.y), "=r"(out.z), "=r"(out.w)
                 : "l"(p));
}
#endif
}  // namespace detail

// As load_pack, for what a loop reads anew each time round because registers do not hold it: the compiler would take the
// load out of the loop, and spill what it loaded. 2 to 16 bytes.
template <int Count, class Item>
__device__ inline Pack<Item, Count> load_pack_again(const Item* p) {
#ifdef CUDA_ON_HOST
    return load_pack<Count>(p);
#else
    typename detail::Word<sizeof(Item) * Count>::Type word;
    detail::load_again(word, reinterpret_cast<const decltype(word)*>(p));
    Pack<Item, Count> out;
    memcpy(&out, &word, sizeof(out));
    return out;
#endif
}

template <int Count, class Item>
__device__ inline void store_pack(Item* p, const Pack<Item, Count>& pack) {
    using Word = typename detail::Word<sizeof(Item) * Count>::Type;
    Word word;
    memcpy(&word, &pack, sizeof(word));
    *reinterpret_cast<Word*>(p) = word;
}

// ---- reductions ----

struct Sum {
    __device__ float operator()(float a, float b) const { return a + b; }
};
struct Max {  // NaN if any is NaN
    __device__ float operator()(float a, float b) const { return a > b || !(a == a) ? a : b; }
};

// Over the Width lanes (a power of two) that a thread's lane shares; every lane gets the result, in the same order.
template <int Width = WARP, class Operation>
__device__ inline float warp_reduce(float x, Operation op) {
    for (int step = Width / 2; step > 0; step /= 2) x = op(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// Over the whole block of Threads (a multiple of 32, at most 1024); every thread gets the result. `scratch` is 32 floats
// of shared memory. Two barriers; the first guards a scratch that is used again.
template <int Threads, class Operation>
__device__ inline float block_reduce(float x, Operation op, float identity, float* scratch) {
    static_assert(Threads % WARP == 0 && Threads <= 1024, "whole warps only");
    x = warp_reduce(x, op);
    if (Threads == WARP) return x;
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    __syncthreads();
    if (lane == 0) scratch[warp] = x;
    __syncthreads();
    // Each warp reduces the partial sums again: cheaper than a third barrier to hand one result around.
    return warp_reduce(lane < Threads / WARP ? scratch[lane] : identity, op);
}

// ---- tensor cores ----

// d += a b for a 16 x 16 matrix a and a 16 x 8 matrix b of f16 or bf16 (from sm_80), accumulated in float by one whole
// warp. Each register holds two neighbours of a row of a, or of a column of b. With u = lane / 4 and q = lane % 4:
// a[0] is row u, columns 2 q and 2 q + 1; a[1] the same of row u + 8; a[2] and a[3] the same, 8 columns on;
// b[0] is column u, rows 2 q and 2 q + 1; b[1] the same, 8 rows on;
// d[0] and d[1] are row u, columns 2 q and 2 q + 1; d[2] and d[3] the same of row u + 8.
template <class Item>
__device__ inline void mma_16x8x16(float* d, const u32 (&a)[4], const u32 (&b)[2]);

#ifdef CUDA_ON_HOST
template <class Item>
__device__ inline void mma_16x8x16(float* d, const u32 (&a)[4], const u32 (&b)[2]) {
    const int lane = threadIdx.x % WARP, u = lane / 4, q = lane % 4;
    const u64 left[2] = {a[0] | static_cast<u64>(a[2]) << 32, a[1] | static_cast<u64>(a[3]) << 32};
    const u64 right = b[0] | static_cast<u64>(b[1]) << 32;
    for (int part = 0; part < 4; ++part) {  // of the four lanes that share a row of a, or a column of b
        u64 rows[2], columns[2];
        for (int i = 0; i < 2; ++i) {
            rows[i] = __shfl_sync(ALL_LANES, left[i], u * 4 + part);
            columns[i] = __shfl_sync(ALL_LANES, right, (q * 2 + i) * 4 + part);
        }
        for (int i = 0; i < 4; ++i) {
            Item x[4], w[4];
            memcpy(w, &rows[i / 2], sizeof(w));
            memcpy(x, &columns[i % 2], sizeof(x));
            for (int k = 0; k < 4; ++k) d[i] += to_float(w[k]) * to_float(x[k]);
        }
    }
}
#else
template <>
__device__ inline void mma_16x8x16<f16>(float* d, const u32 (&a)[4], const u32 (&b)[2]) {
#if __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else  // sm_75 has half of it
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%8}, {%0, %1, %2, %3};\n\t"
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%6, %7}, {%9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

#if __CUDA_ARCH__ >= 800
template <>
__device__ inline void mma_16x8x16<bf16>(float* d, const u32 (&a)[4], const u32 (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif
#endif

// ---- sorting ----

// Sorts `length` keys (a power of two) in shared memory, largest first, by a bitonic network. Every thread of the block
// of Threads calls it after a barrier; it ends with one. A step whose stride is up to 32 stays within 64 keys, which are
// those of one warp in every such step, so that between two of them a barrier of the warp is enough.
template <int Threads>
__device__ inline void block_sort(u64* keys, int length) {
    for (int size = 2; size <= length; size *= 2) {
        for (int stride = size / 2; stride > 0; stride /= 2) {
            for (int pair = threadIdx.x; pair < length / 2; pair += Threads) {
                const int low = 2 * pair - (pair & (stride - 1)), high = low + stride;
                const u64 a = keys[low], b = keys[high];
                if ((a < b) == ((low & size) == 0)) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
            const int next = stride > 1 ? stride / 2 : size;  // the first stride of the next size is this size
            if (stride > WARP || next > WARP) {
                __syncthreads();
            } else {
                __syncwarp();
            }
        }
    }
    __syncthreads();
}

// ---- shared memory whose size the launch decides ----
#ifdef CUDA_ON_HOST
#define DYNAMIC_SHARED(Item, name) Item* name = static_cast<Item*>(cuda_on_host::dynamic_shared())
#else
extern __shared__ uint4 edgekit_dynamic_shared[];
#define DYNAMIC_SHARED(Item, name) Item* name = reinterpret_cast<Item*>(edgekit_dynamic_shared)
#endif
