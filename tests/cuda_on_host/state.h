// What the scheduler and the memory checker share.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_on_host {

constexpr int kWarp = 32;
constexpr int kMaxThreads = 1024;

// Memory that the kernel may touch. `begin` of a shared array is an offset into the library.
struct Region {
    std::uintptr_t begin;
    std::uint64_t bytes;
    std::int32_t writable;
    std::int32_t initialised;
    const char* name;
};

// Who runs now, and when: `epoch` counts barriers of this block, `warp_epoch` __syncwarp of this thread's warp.
struct Now {
    std::uint32_t block;
    std::uint32_t thread;
    std::uint32_t epoch;
    std::uint32_t warp_epoch;
    const char* stack_begin;
    const char* stack_end;
};
extern Now now;

void memory_begin(const Region* global, int globals, const Region* shared, int shareds, std::size_t dynamic_bytes);
void memory_new_block();
void memory_end();

}  // namespace cuda_on_host
