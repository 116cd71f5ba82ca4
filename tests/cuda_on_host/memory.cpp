// Checks every load and store of a kernel. The kernel is compiled with -fsanitize=thread, which calls a function before
// each access; the functions here stand in for the sanitizer's own library.
#include <elf.h>
#include <link.h>
#include <string.h>

#include <memory>
#include <utility>
#include <vector>

#include "cuda_on_host.h"
#include "state.h"

namespace cuda_on_host {

Now now{};

namespace {

constexpr std::uint32_t kMany = 0xffffffffu;

// The last accesses to one byte. Threads are counted from 1; `kMany` stands for several readers at the same time.
struct Cell {
    std::uint32_t writer, writer_block, reader, reader_block;
    std::uint32_t write_epoch, write_warp_epoch, read_epoch, read_warp_epoch;
    bool initialised, atomic;
};

struct Tracked {
    const char* begin;
    const char* end;
    bool writable, shared, initialised;
    const char* name;
    std::vector<Cell> cells;
};

std::vector<Tracked> regions;
Tracked* latest = nullptr;
std::unique_ptr<char[]> dynamic_memory;
char* dynamic_begin = nullptr;
const char* image_begin = nullptr;
std::vector<std::pair<const char*, const char*>> constants;  // what of the library is not writable

int find_image(dl_phdr_info* info, std::size_t, void*) {
    const char* here = reinterpret_cast<const char*>(&regions);
    bool mine = false;
    constants.clear();
    for (int i = 0; i < info->dlpi_phnum; ++i) {
        if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
        const char* from = reinterpret_cast<const char*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
        const char* to = from + info->dlpi_phdr[i].p_memsz;
        if (!(info->dlpi_phdr[i].p_flags & PF_W)) constants.emplace_back(from, to);
        mine = mine || (here >= from && here < to);
    }
    image_begin = reinterpret_cast<const char*>(info->dlpi_addr);
    return mine;
}

// Whether p is a literal, a __constant__ table, or one of threadIdx, blockIdx, blockDim, gridDim.
bool is_constant(const char* p) {
    for (const dim3* builtin : {&threadIdx, &blockIdx, &blockDim, &gridDim}) {
        const char* begin = reinterpret_cast<const char*>(builtin);
        if (p >= begin && p < begin + sizeof(dim3)) return true;
    }
    for (auto [from, to] : constants) {
        if (p >= from && p < to) return true;
    }
    return false;
}

Tracked* region_of(const char* p) {
    if (latest != nullptr && p >= latest->begin && p < latest->end) return latest;
    for (Tracked& region : regions) {
        if (p >= region.begin && p < region.end) return latest = &region;
    }
    return nullptr;
}

const Tracked* nearest(const char* p) {
    const Tracked* best = nullptr;
    std::ptrdiff_t distance = 0;
    for (const Tracked& region : regions) {
        std::ptrdiff_t away = p < region.begin ? region.begin - p : p - region.end;
        if (best == nullptr || away < distance) {
            best = &region;
            distance = away;
        }
    }
    return best;
}

[[noreturn]] void out_of_bounds(const char* p, int bytes, bool write) {
    const Tracked* region = nearest(p);
    const char* verb = write ? "writes" : "reads";
    if (region == nullptr) fault("out of bounds", "%s %d bytes of memory that it was not given", verb, bytes);
    const char* kind = region->shared ? "shared array" : "buffer";
    if (p < region->begin) {
        fault("out of bounds", "%s %d bytes, %td before the start of %s '%s'", verb, bytes, region->begin - p, kind,
              region->name);
    }
    fault("out of bounds", "%s %d bytes at offset %td of %s '%s', which has %td", verb, bytes, p - region->begin, kind,
          region->name, region->end - region->begin);
}

bool ordered(std::uint32_t who, std::uint32_t block, std::uint32_t epoch, std::uint32_t warp_epoch) {
    if (who == 0 || (who == now.thread + 1 && block == now.block)) return true;
    if (block != now.block) return false;
    if (epoch != now.epoch) return true;
    if (who == kMany) return false;
    return (who - 1) / kWarp == now.thread / kWarp && warp_epoch != now.warp_epoch;
}

[[noreturn]] void race(const Tracked& region, std::ptrdiff_t offset, const char* mine, const char* theirs,
                       std::uint32_t who, std::uint32_t block) {
    const char* kind = region.shared ? "shared array" : "buffer";
    if (who == kMany) {
        fault("race", "%s offset %td of %s '%s', which several threads have %s with no barrier between", mine, offset,
              kind, region.name, theirs);
    }
    fault("race", "%s offset %td of %s '%s', which thread %u of block %u has %s with no barrier between", mine, offset,
          kind, region.name, who - 1, block, theirs);
}

void check_byte(Tracked& region, std::ptrdiff_t offset, bool write, bool atomic) {
    Cell& cell = region.cells[static_cast<std::size_t>(offset)];
    if ((!write || atomic) && !cell.initialised) {
        fault("uninitialised", "reads offset %td of %s '%s', which nothing has written", offset,
              region.shared ? "shared array" : "buffer", region.name);
    }
    if (!(atomic && cell.atomic) &&
        !ordered(cell.writer, cell.writer_block, cell.write_epoch, cell.write_warp_epoch)) {
        race(region, offset, write ? "writes" : "reads", "written", cell.writer, cell.writer_block);
    }
    bool readers_done = ordered(cell.reader, cell.reader_block, cell.read_epoch, cell.read_warp_epoch);
    if (write) {
        if (!readers_done) race(region, offset, "writes", "read", cell.reader, cell.reader_block);
        cell.writer = now.thread + 1;
        cell.writer_block = now.block;
        cell.write_epoch = now.epoch;
        cell.write_warp_epoch = now.warp_epoch;
        cell.initialised = true;
        cell.atomic = atomic;
    } else {
        cell.reader = readers_done ? now.thread + 1 : kMany;
        cell.reader_block = now.block;
        cell.read_epoch = now.epoch;
        cell.read_warp_epoch = now.warp_epoch;
    }
}

void check(const void* address, int bytes, bool write, bool atomic) {
    const char* p = static_cast<const char*>(address);
    if (p >= now.stack_begin && p < now.stack_end) return;
    Tracked* region = region_of(p);
    if (region == nullptr) {
        if (!write && is_constant(p)) return;
        out_of_bounds(p, bytes, write);
    }
    if (p + bytes > region->end) out_of_bounds(p, bytes, write);
    if (!region->writable) {
        if (write) fault("read-only", "writes to input '%s'", region->name);
        return;
    }
    for (int i = 0; i < bytes; ++i) check_byte(*region, p - region->begin + i, write, atomic);
}

void add(const char* begin, const Region& region, bool shared) {
    Tracked added{begin, begin + region.bytes, region.writable != 0, shared, region.initialised != 0, region.name, {}};
    if (added.writable) added.cells.assign(region.bytes, Cell{});
    if (added.initialised) {
        for (Cell& cell : added.cells) cell.initialised = true;
    }
    regions.push_back(std::move(added));
}

[[noreturn]] void misaligned(const char* p, int alignment, unsigned line) {
    const Tracked* region = region_of(p);
    if (region == nullptr) region = nearest(p);
    fault("misaligned", "in line %u accesses %s '%s' at offset %td, which is not a multiple of %d", line,
          region->shared ? "shared array" : "buffer", region->name, p - region->begin, alignment);
}

}  // namespace

void memory_begin(const Region* global, int globals, const Region* shared, int shareds, std::size_t dynamic_bytes) {
    dl_iterate_phdr(find_image, nullptr);
    regions.clear();
    latest = nullptr;
    for (int i = 0; i < globals; ++i) add(reinterpret_cast<const char*>(global[i].begin), global[i], false);
    for (int i = 0; i < shareds; ++i) add(image_begin + shared[i].begin, shared[i], true);
    dynamic_memory = std::make_unique<char[]>(dynamic_bytes + 1024);
    auto aligned = (reinterpret_cast<std::uintptr_t>(dynamic_memory.get()) + 511) / 256 * 256;
    dynamic_begin = reinterpret_cast<char*>(aligned);
    if (dynamic_bytes > 0) add(dynamic_begin, Region{aligned, dynamic_bytes, 1, 0, "dynamic shared memory"}, true);
}

void memory_new_block() {
    for (Tracked& region : regions) {
        if (!region.shared) continue;
        // 0xff is NaN in every floating-point type.
        memset(const_cast<char*>(region.begin), 0xff, static_cast<std::size_t>(region.end - region.begin));
        region.cells.assign(region.cells.size(), Cell{});
    }
}

void memory_end() {
    regions.clear();
    dynamic_memory.reset();
}

void* dynamic_shared() { return dynamic_begin; }

void atomic_access(const void* address, int bytes) { check(address, bytes, true, true); }

void read_only_access(const void* address) {
    const Tracked* region = region_of(static_cast<const char*>(address));
    if (region != nullptr && region->writable) {
        fault("read-only", "reads '%s' through the read-only path (__ldg), which needs memory that no thread writes",
              region->name);
    }
}

}  // namespace cuda_on_host

#define ACCESS(bytes) \
    void __tsan_read##bytes(void* p) { cuda_on_host::check(p, bytes, false, false); } \
    void __tsan_write##bytes(void* p) { cuda_on_host::check(p, bytes, true, false); } \
    void __tsan_unaligned_read##bytes(void* p) { cuda_on_host::check(p, bytes, false, false); } \
    void __tsan_unaligned_write##bytes(void* p) { cuda_on_host::check(p, bytes, true, false); }

extern "C" {
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* p, unsigned long bytes) {
    cuda_on_host::check(p, static_cast<int>(bytes), false, false);
}
void __tsan_write_range(void* p, unsigned long bytes) {
    cuda_on_host::check(p, static_cast<int>(bytes), true, false);
}
// From -fsanitize=alignment, which sees the type of an access even where the compiler splits it into smaller ones.
struct TypeMismatch {
    const char* file;
    unsigned line, column;
    const void* type;
    unsigned char log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(TypeMismatch* seen, void* p) {
    cuda_on_host::misaligned(static_cast<const char*>(p), 1 << seen->log_alignment, seen->line);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
}
