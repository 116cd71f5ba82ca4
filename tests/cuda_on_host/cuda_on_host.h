// CUDA on the CPU, for tests: enough of the language for the kernels of plugins_trt to be compiled by the host's
// compiler, from the same source. Threads of a block are fibers that run one at a time, in a random order that changes at
// every barrier; what they read and write is checked by memory.cpp.
#pragma once

#include <math.h>
#include <string.h>

#include <cstdint>
#include <utility>

#define CUDA_ON_HOST 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __restrict__
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __constant__ static const
// One copy serves all blocks, since they run one after the other. The loader finds each array by its symbol.
#define __shared__ static __attribute__((section("cuda_shared")))

#define UNCHECKED __attribute__((no_sanitize("thread")))

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
extern dim3 threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

struct alignas(8) int2 { int x, y; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(8) float2 { float x, y; };
struct float3 { float x, y, z; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct uchar3 { unsigned char x, y, z; };
struct alignas(4) uchar4 { unsigned char x, y, z, w; };
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) { return {x, y, z, w}; }

namespace cuda_on_host {

struct Where {
    const char* file;
    int line;
};

enum class Exchange { index, up, down, xor_, ballot, match, sync };

[[noreturn]] void fault(const char* kind, const char* format, ...);
void* dynamic_shared();
// Waits for the whole block; returns how many of its threads hold `predicate`.
int barrier(bool predicate, Where where);
// One collective operation of the lanes in `mask`; the result is the value that this lane gets.
std::uint64_t warp_exchange(Exchange what, unsigned mask, std::uint64_t value, int argument, int width, Where where);
// Called before an atomic access of `bytes`: checks the address and remembers that the access cannot race.
void atomic_access(const void* address, int bytes);
// Called before a load through the read-only path: what this kernel writes must not be read that way.
void read_only_access(const void* address);

inline float float_of_bits(std::uint32_t bits) {
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
inline std::uint32_t bits_of_float(float x) {
    std::uint32_t out;
    memcpy(&out, &x, 4);
    return out;
}
float float_of_half(std::uint16_t bits);
std::uint16_t half_of_float(float x);

template <class Item>
UNCHECKED std::uint64_t packed(Item x) {
    static_assert(sizeof(Item) <= 8, "a lane exchanges 8 bytes at most");
    std::uint64_t out = 0;
    memcpy(&out, &x, sizeof(x));
    return out;
}
template <class Item>
UNCHECKED Item unpacked(std::uint64_t bits) {
    Item out;
    memcpy(&out, &bits, sizeof(out));
    return out;
}

template <class Item, class Change>
UNCHECKED Item atomically(Item* p, Change change) {
    atomic_access(p, sizeof(Item));
    Item old = *p;
    *p = change(old);
    return old;
}

// Calls `kernel` with the values that `arguments` point to.
template <class... Parameters, std::size_t... Index>
UNCHECKED void call_with(void (*kernel)(Parameters...), void** arguments, std::index_sequence<Index...>) {
    kernel(*static_cast<Parameters*>(arguments[Index])...);
}
template <class... Parameters>
UNCHECKED void call(void (*kernel)(Parameters...), void** arguments) {
    call_with(kernel, arguments, std::index_sequence_for<Parameters...>{});
}

}  // namespace cuda_on_host

// ---- barriers and warps ----
// Where the kernel calls one of these: compared between threads, and named in faults.
#define HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
inline void __syncthreads(HERE) { cuda_on_host::barrier(false, {file, line}); }
inline int __syncthreads_count(int p, HERE) { return cuda_on_host::barrier(p != 0, {file, line}); }
inline int __syncthreads_or(int p, HERE) { return cuda_on_host::barrier(p != 0, {file, line}) > 0; }
inline int __syncthreads_and(int p, HERE) {
    return cuda_on_host::barrier(p != 0, {file, line}) == static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, HERE) {
    cuda_on_host::warp_exchange(cuda_on_host::Exchange::sync, mask, 0, 0, 32, {file, line});
}

template <class Item>
Item __shfl_sync(unsigned mask, Item x, int lane, int width = 32, HERE) {
    using namespace cuda_on_host;
    return unpacked<Item>(warp_exchange(Exchange::index, mask, packed(x), lane, width, {file, line}));
}
template <class Item>
Item __shfl_up_sync(unsigned mask, Item x, unsigned delta, int width = 32, HERE) {
    using namespace cuda_on_host;
    return unpacked<Item>(warp_exchange(Exchange::up, mask, packed(x), static_cast<int>(delta), width, {file, line}));
}
template <class Item>
Item __shfl_down_sync(unsigned mask, Item x, unsigned delta, int width = 32, HERE) {
    using namespace cuda_on_host;
    return unpacked<Item>(warp_exchange(Exchange::down, mask, packed(x), static_cast<int>(delta), width, {file, line}));
}
template <class Item>
Item __shfl_xor_sync(unsigned mask, Item x, int lanes, int width = 32, HERE) {
    using namespace cuda_on_host;
    return unpacked<Item>(warp_exchange(Exchange::xor_, mask, packed(x), lanes, width, {file, line}));
}
inline unsigned __ballot_sync(unsigned mask, int p, HERE) {
    return static_cast<unsigned>(cuda_on_host::warp_exchange(cuda_on_host::Exchange::ballot, mask, p != 0, 0, 32, {file, line}));
}
inline int __any_sync(unsigned mask, int p, HERE) { return __ballot_sync(mask, p, file, line) != 0; }
inline int __all_sync(unsigned mask, int p, HERE) { return __ballot_sync(mask, p, file, line) == mask; }
template <class Item>
unsigned __match_any_sync(unsigned mask, Item x, HERE) {
    using namespace cuda_on_host;
    return static_cast<unsigned>(warp_exchange(Exchange::match, mask, packed(x), 0, 32, {file, line}));
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- atomics ----
template <class Item>
Item atomicAdd(Item* p, Item x) {
    return cuda_on_host::atomically(p, [x](Item old) { return static_cast<Item>(old + x); });
}
template <class Item>
Item atomicSub(Item* p, Item x) {
    return cuda_on_host::atomically(p, [x](Item old) { return static_cast<Item>(old - x); });
}
template <class Item>
Item atomicMax(Item* p, Item x) {
    return cuda_on_host::atomically(p, [x](Item old) { return old < x ? x : old; });
}
template <class Item>
Item atomicMin(Item* p, Item x) {
    return cuda_on_host::atomically(p, [x](Item old) { return x < old ? x : old; });
}
template <class Item>
Item atomicOr(Item* p, Item x) {
    return cuda_on_host::atomically(p, [x](Item old) { return old | x; });
}
template <class Item>
Item atomicAnd(Item* p, Item x) {
    return cuda_on_host::atomically(p, [x](Item old) { return old & x; });
}
template <class Item>
Item atomicExch(Item* p, Item x) {
    return cuda_on_host::atomically(p, [x](Item) { return x; });
}
template <class Item>
Item atomicCAS(Item* p, Item expected, Item x) {
    return cuda_on_host::atomically(p, [=](Item old) { return old == expected ? x : old; });
}

// ---- loads and stores with a hint ----
template <class Item>
Item __ldg(const Item* p) {
    cuda_on_host::read_only_access(p);
    return *p;
}
template <class Item>
Item __ldcs(const Item* p) {
    return *p;
}
template <class Item>
Item __ldcg(const Item* p) {
    return *p;
}
template <class Item>
void __stcs(Item* p, Item x) {
    *p = x;
}

// ---- arithmetic ----
inline float __uint_as_float(unsigned x) { return cuda_on_host::float_of_bits(x); }
inline float __int_as_float(int x) { return cuda_on_host::float_of_bits(static_cast<unsigned>(x)); }
inline unsigned __float_as_uint(float x) { return cuda_on_host::bits_of_float(x); }
inline int __float_as_int(float x) { return static_cast<int>(cuda_on_host::bits_of_float(x)); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
// Never contracted into a multiply-add.
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
int __float2int_rn(float x);
int __float2int_rd(float x);
int __float2int_rz(float x);
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __brev(unsigned x) {
    unsigned out = 0;
    for (int bit = 0; bit < 32; ++bit) out |= (x >> bit & 1u) << (31 - bit);
    return out;
}
inline unsigned __umulhi(unsigned x, unsigned y) {
    return static_cast<unsigned>(static_cast<std::uint64_t>(x) * y >> 32);
}
// Byte k of the result is the byte of y:x that nibble k of the selector names.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const std::uint64_t both = static_cast<std::uint64_t>(y) << 32 | x;
    unsigned out = 0;
    for (int k = 0; k < 4; ++k) out |= static_cast<unsigned>(both >> 8 * (selector >> 4 * k & 7u) & 0xffu) << 8 * k;
    return out;
}
inline int __mul24(int x, int y) { return x * y; }
inline int __dp4a(int x, int y, int sum) {
    for (int byte = 0; byte < 4; ++byte) {
        sum += static_cast<signed char>(x >> 8 * byte) * static_cast<signed char>(y >> 8 * byte);
    }
    return sum;
}
template <class Item>
constexpr Item min(Item a, Item b) {
    return b < a ? b : a;
}
template <class Item>
constexpr Item max(Item a, Item b) {
    return a < b ? b : a;
}
