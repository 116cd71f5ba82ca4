// Runs the threads of a block as fibers: one at a time, each until it waits for others or ends, in an order that is
// drawn anew each round. Blocks run one after the other.
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#if !defined(__x86_64__) && !defined(PORTABLE)
#define PORTABLE
#endif
#if defined(PORTABLE)
#include <ucontext.h>
#endif

#include <algorithm>
#include <vector>

#include "cuda_on_host.h"
#include "state.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

#if !defined(PORTABLE)
// Saves the callee's registers and the stack pointer, and takes up another stack: far quicker than swapcontext, which
// asks the kernel about signals each time.
extern "C" void cuda_on_host_switch(void** save, void* load);
asm(R"(
.text
.globl cuda_on_host_switch
.hidden cuda_on_host_switch
.type cuda_on_host_switch, @function
cuda_on_host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cuda_on_host_switch, .-cuda_on_host_switch
)");
#endif

namespace cuda_on_host {
namespace {

constexpr std::size_t kStack = 256 * 1024;

enum class State { ready, at_barrier, at_warp, done };

struct Fiber {
    State state;
    Where where;
    bool predicate;
    Exchange what;
    unsigned mask;
    std::uint64_t value;
    int argument, width;
#if !defined(PORTABLE)
    void* context;
#else
    ucontext_t context;
#endif
};

std::vector<Fiber> fibers;
std::vector<std::uint32_t> warp_epochs;
char* stacks = nullptr;
#if !defined(PORTABLE)
void* scheduler_context = nullptr;
#else
ucontext_t scheduler_context;
#endif
void (*entry)(void**) = nullptr;
void** entry_arguments = nullptr;
int threads = 0, arrived = 0, barrier_result = 0;
bool failed = false;
char message[1024];
std::uint64_t random_state = 0;

std::uint32_t random_below(std::uint32_t n) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return static_cast<std::uint32_t>(random_state >> 32) % n;
}

void leave() {  // from a fiber back to the scheduler
#if !defined(PORTABLE)
    cuda_on_host_switch(&fibers[now.thread].context, scheduler_context);
#else
    swapcontext(&fibers[now.thread].context, &scheduler_context);
#endif
}

void fiber_main() {
    entry(entry_arguments);
    fibers[now.thread].state = State::done;
    leave();
    __builtin_unreachable();
}

char* stack_of(int thread) { return stacks + kStack * static_cast<std::size_t>(thread); }

void prepare(int thread) {
    Fiber& fiber = fibers[static_cast<std::size_t>(thread)];
    fiber.state = State::ready;
#if !defined(PORTABLE)
    // Six registers, then the address to return to; at a function's entry the stack is 8 past a multiple of 16.
    auto* top = reinterpret_cast<void**>(stack_of(thread) + kStack) - 2;
    *top = reinterpret_cast<void*>(&fiber_main);
    top -= 6;
    memset(top, 0, 6 * sizeof(void*));
    fiber.context = top;
#else
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack_of(thread);
    fiber.context.uc_stack.ss_size = kStack;
    makecontext(&fiber.context, fiber_main, 0);
#endif
}

void resume(int thread) {
    auto t = static_cast<unsigned>(thread);
    threadIdx = {t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y)};
    now.thread = t;
    now.warp_epoch = warp_epochs[t / kWarp];
    now.stack_begin = stack_of(thread);
    now.stack_end = now.stack_begin + kStack;
#if !defined(PORTABLE)
    cuda_on_host_switch(&scheduler_context, fibers[t].context);
#else
    swapcontext(&scheduler_context, &fibers[t].context);
#endif
}

void note(const char* kind, const char* text) {
    if (failed) return;
    failed = true;
    snprintf(message, sizeof(message), "%s: %s", kind, text);
}

const char* short_name(const char* file) {
    const char* slash = strrchr(file, '/');
    return slash ? slash + 1 : file;
}

void note_deadlock() {
    int gone = 0, waiting = 0, in_warp = -1;
    Where where{"", 0};
    for (int t = 0; t < threads; ++t) {
        const Fiber& fiber = fibers[static_cast<std::size_t>(t)];
        gone += fiber.state == State::done;
        if (fiber.state == State::at_warp) in_warp = t;
        if (fiber.state == State::at_barrier) {
            ++waiting;
            where = fiber.where;
        }
    }
    char text[512];
    if (in_warp >= 0) {
        const Fiber& fiber = fibers[static_cast<std::size_t>(in_warp)];
        snprintf(text, sizeof(text), "thread %d waits at %s:%d for lanes of mask 0x%08x that never arrive", in_warp,
                 short_name(fiber.where.file), fiber.where.line, fiber.mask);
        note("bad mask", text);
    } else {
        snprintf(text, sizeof(text), "%d threads wait at %s:%d, but %d of the block have left the kernel", waiting,
                 short_name(where.file), where.line, gone);
        note("divergent barrier", text);
    }
}

// One block, to its end or to the first fault.
void run_block() {
    memory_new_block();
    now.epoch = 0;
    arrived = 0;
    std::fill(warp_epochs.begin(), warp_epochs.end(), 0u);
    std::vector<int> order(static_cast<std::size_t>(threads));
    for (int t = 0; t < threads; ++t) {
        prepare(t);
        order[static_cast<std::size_t>(t)] = t;
    }
    int left = threads;
    while (left > 0 && !failed) {
        for (auto i = static_cast<std::uint32_t>(threads) - 1; i > 0; --i) std::swap(order[i], order[random_below(i + 1)]);
        bool progress = false;
        for (int t : order) {
            if (fibers[static_cast<std::size_t>(t)].state != State::ready) continue;
            progress = true;
            resume(t);
            if (failed) return;
            left -= fibers[static_cast<std::size_t>(t)].state == State::done;
        }
        if (!progress) note_deadlock();
    }
}

int source_lane(const Fiber& fiber, int lane) {
    int first = lane & ~(fiber.width - 1), source = lane;
    switch (fiber.what) {
        case Exchange::index:
            return first + (fiber.argument & (fiber.width - 1));
        case Exchange::up:
            source = lane - fiber.argument;
            return source < first ? lane : source;
        case Exchange::down:
            source = lane + fiber.argument;
            return source >= first + fiber.width ? lane : source;
        case Exchange::xor_:
            source = lane ^ fiber.argument;
            return source >= first + fiber.width ? lane : source;
        default:
            return lane;
    }
}

// All lanes of the mask have arrived: give each its value and let it go on.
void complete(Fiber* warp, unsigned mask) {
    std::uint64_t given[kWarp] = {};
    for (int lane = 0; lane < kWarp; ++lane) {
        if (mask >> lane & 1u) given[lane] = warp[lane].value;
    }
    for (int lane = 0; lane < kWarp; ++lane) {
        if (!(mask >> lane & 1u)) continue;
        Fiber& fiber = warp[lane];
        std::uint64_t out = 0;
        if (fiber.what == Exchange::ballot || fiber.what == Exchange::match) {
            for (int other = 0; other < kWarp; ++other) {
                if (!(mask >> other & 1u)) continue;
                bool counts = fiber.what == Exchange::ballot ? given[other] != 0 : given[other] == given[lane];
                out |= static_cast<std::uint64_t>(counts) << other;
            }
        } else if (fiber.what != Exchange::sync) {
            int source = source_lane(fiber, lane);
            if (!(mask >> source & 1u)) {
                fault("bad mask", "lane %d reads lane %d at %s:%d, which mask 0x%08x leaves out", lane, source,
                      short_name(fiber.where.file), fiber.where.line, mask);
            }
            out = given[source];
        }
        fiber.value = out;
    }
    for (int lane = 0; lane < kWarp; ++lane) {
        if (mask >> lane & 1u) warp[lane].state = State::ready;
    }
}

}  // namespace

void fault(const char* kind, const char* format, ...) {
    char text[768], line[960];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    snprintf(line, sizeof(line), "thread (%u, %u, %u) of block (%u, %u, %u) %s", threadIdx.x, threadIdx.y, threadIdx.z,
             blockIdx.x, blockIdx.y, blockIdx.z, text);
    note(kind, line);
    leave();
    __builtin_unreachable();
}

int barrier(bool predicate, Where where) {
    Fiber& self = fibers[now.thread];
    self.state = State::at_barrier;
    self.where = where;
    self.predicate = predicate;
    if (++arrived < threads) {
        leave();
        return barrier_result;
    }
    barrier_result = 0;
    for (const Fiber& fiber : fibers) {
        barrier_result += fiber.predicate;
        if (fiber.where.line != where.line || strcmp(fiber.where.file, where.file) != 0) {
            fault("divergent barrier", "waits at %s:%d while others of the block wait at %s:%d", short_name(where.file),
                  where.line, short_name(fiber.where.file), fiber.where.line);
        }
    }
    for (Fiber& fiber : fibers) fiber.state = State::ready;
    arrived = 0;
    ++now.epoch;
    leave();
    return barrier_result;
}

std::uint64_t warp_exchange(Exchange what, unsigned mask, std::uint64_t value, int argument, int width, Where where) {
    const unsigned lane = now.thread % kWarp, first = now.thread - lane;
    const int lanes = std::min(kWarp, threads - static_cast<int>(first));
    const char* file = short_name(where.file);
    if (!(mask >> lane & 1u)) {
        fault("bad mask", "is not in mask 0x%08x of the warp function that it calls at %s:%d", mask, file, where.line);
    }
    if (lanes < kWarp && mask >> lanes != 0) {
        fault("bad mask", "names lanes in mask 0x%08x at %s:%d that its warp of %d does not have", mask, file, where.line,
              lanes);
    }
    if (width < 1 || width > kWarp || (width & (width - 1)) != 0) {
        fault("bad mask", "gives width %d at %s:%d; it is a power of two up to 32", width, file, where.line);
    }
    Fiber* warp = &fibers[first];
    Fiber& self = warp[lane];
    self.state = State::at_warp;
    self.where = where;
    self.what = what;
    self.mask = mask;
    self.value = value;
    self.argument = argument;
    self.width = width;
    for (int other = 0; other < lanes; ++other) {
        if (!(mask >> other & 1u)) continue;
        const Fiber& fiber = warp[other];
        if (fiber.state != State::at_warp) {
            leave();
            now.warp_epoch = warp_epochs[first / kWarp];
            return self.value;
        }
        if (fiber.mask != mask || fiber.what != what || fiber.where.line != where.line) {
            fault("bad mask", "calls a warp function at %s:%d with mask 0x%08x while lane %d is at %s:%d with 0x%08x", file,
                  where.line, mask, other, short_name(fiber.where.file), fiber.where.line, fiber.mask);
        }
    }
    complete(warp, mask);
    if (what == Exchange::sync) now.warp_epoch = ++warp_epochs[first / kWarp];
    return self.value;
}

float float_of_half(std::uint16_t bits) {
    _Float16 half;
    memcpy(&half, &bits, 2);
    return static_cast<float>(half);
}

std::uint16_t half_of_float(float x) {
    _Float16 half = static_cast<_Float16>(x);
    std::uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
}

}  // namespace cuda_on_host

// Saturating, NaN to 0, as the GPU converts.
static int to_int(float x) {
    if (!(x == x)) return 0;
    if (x >= 2147483648.0f) return 2147483647;
    if (x < -2147483648.0f) return -2147483647 - 1;
    return static_cast<int>(x);
}
int __float2int_rn(float x) { return to_int(rintf(x)); }
int __float2int_rd(float x) { return to_int(floorf(x)); }
int __float2int_rz(float x) { return to_int(truncf(x)); }

using cuda_on_host::Region;

// Runs a kernel. `size` is the grid and the block, three numbers each. Returns 0, or 1 with the fault's text in `text`.
extern "C" __attribute__((visibility("default"))) int cuda_on_host_launch(
    void (*entry)(void**), void** arguments, const unsigned* size, std::size_t shared_bytes, std::uint64_t seed,
    const Region* global, int globals, const Region* shared, int shareds, char* text, std::size_t text_bytes) {
    using namespace cuda_on_host;
    gridDim = {size[0], size[1], size[2]};
    blockDim = {size[3], size[4], size[5]};
    threads = static_cast<int>(size[3] * size[4] * size[5]);
    failed = false;
    message[0] = 0;
    random_state = seed * 0x9e3779b97f4a7c15ull + 0x2545f4914f6cdd1dull;
    cuda_on_host::entry = entry;
    entry_arguments = arguments;
    if (threads < 1 || threads > kMaxThreads) {
        note("launch", "a block has 1 to 1024 threads");
    } else {
        std::size_t bytes = kStack * static_cast<std::size_t>(threads);
        stacks = static_cast<char*>(
            mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        fibers.assign(static_cast<std::size_t>(threads), Fiber{});
        warp_epochs.assign(static_cast<std::size_t>(threads + kWarp - 1) / kWarp, 0u);
        memory_begin(global, globals, shared, shareds, shared_bytes);
        now.block = 0;
        for (unsigned z = 0; z < gridDim.z && !failed; ++z) {
            for (unsigned y = 0; y < gridDim.y && !failed; ++y) {
                for (unsigned x = 0; x < gridDim.x && !failed; ++x) {
                    blockIdx = {x, y, z};
                    run_block();
                    ++now.block;
                }
            }
        }
        memory_end();
        munmap(stacks, bytes);
    }
    if (failed) snprintf(text, text_bytes, "%s", message);
    return failed ? 1 : 0;
}
