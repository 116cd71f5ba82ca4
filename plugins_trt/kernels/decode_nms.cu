// A detector's head to its detections in one launch: scores are searched, the best TOP_K candidates sorted, their boxes
// decoded and suppressed. Composed of single operators this is some twenty launches with a round trip of sizes to the
// host; here nothing leaves the multiprocessor but the result.
//
// One block makes one image. Blocks cannot hand candidates to each other within a launch (that needs memory which is
// zero before it, and there is none), so the work of an image is that of one multiprocessor: it is small (8400 candidates
// of 80 classes are 1.3 MB), and the launches that it saves cost more.
//
//   search    Threads read the scores with vector loads, LANES of them share a candidate's classes, and a shuffle finds
//             the best. What passes the threshold is appended to `keys`, one atomic addition a warp. A key is the score,
//             in the order of unsigned integers, over the complement of the index: keys never tie, so equal scores
//             rank by index, and the result depends neither on the order of appending nor on the launch.
//   condense  Only when the next round might not fit: sort, keep TOP_K, and let nothing below them in again. That is
//             never for a sensible threshold, and a few times when everything passes.
//   sort      Bitonic, over the power of two that holds what there is: of the 78 steps of a full buffer 57 stay within
//             a warp (see block_sort).
//   suppress  32 boxes at a time, in order: all threads fill the 32 x 32 matrix of overlaps (a ballot is a row), each
//             warp finds which of the 32 survive (a loop over bits, the same in every warp: no barrier), each thread
//             tests the later boxes that it owns, in registers, against the survivors. One barrier for 32 boxes, and
//             it ends when MAX_DETECTIONS are found.
//
// Shared memory: 32 KiB of keys. Once they are sorted each thread takes its own into registers, and the boxes lie there.
// Bank conflicts: keys are 8 bytes, neighbours side by side; boxes are read by all lanes at once (a broadcast) or in a
// row. Divergence: every loop with a barrier or a vote in it has the same bounds in all threads.
//
// Overlap is computed with roundings of single operations (no multiply-add), so that the decision is the same on every
// GPU and in the reference.
//
// Constants: T, HEAD (scores and boxes in one tensor, channels first), ANCHORS, CLASSES, VEC (elements of a load), LANES,
// THREADS, TOP_K, MAX_DETECTIONS, THRESHOLD, IOU, CENTER, SIGMOID, MULTI_LABEL, CLASS_AGNOSTIC, BACKGROUND,
// CENTER_VARIANCE, SIZE_VARIANCE.
#include "device.cuh"

constexpr int CAPACITY = 4096;
constexpr int WARPS = THREADS / WARP;
constexpr int EMIT = HEAD && !MULTI_LABEL ? VEC : 4;     // candidates that a thread finds in a round
constexpr int OWN = (TOP_K + THREADS - 1) / THREADS;     // boxes of a thread
constexpr int ROUND = 2;                                 // candidates of a thread between looks at the room that is left
static_assert(TOP_K <= CAPACITY - ROUND * THREADS, "a round does not fit beside the best");

struct Box {
    float left, top, right, bottom;
};

// ---- keys ----

__device__ inline u64 key_of(float score, u32 index) {
    const u32 bits = __float_as_uint(score + 0.0f);  // -0 becomes 0: they are equal scores
    const u32 ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<u64>(ordered) << 32 | ~index;
}
__device__ inline u32 index_of(u64 key) { return ~static_cast<u32>(key); }
__device__ inline float score_of(u64 key) {
    const u32 ordered = static_cast<u32>(key >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// What threads append to, in shared memory.
struct Buffer {
    u64* keys;
    int* count;
    u64* floor;  // no key at or below it is among the best
};

// Sorts what there is and keeps the best TOP_K.
__device__ inline void condense(Buffer buffer) {
    const int count = *buffer.count;
    int length = 2;
    while (length < count) length *= 2;
    for (int i = count + threadIdx.x; i < length; i += THREADS) buffer.keys[i] = 0;
    __syncthreads();
    block_sort<THREADS>(buffer.keys, length);
    if (threadIdx.x == 0 && count > TOP_K) {
        *buffer.count = TOP_K;
        *buffer.floor = buffer.keys[TOP_K - 1];
    }
    __syncthreads();
}

// Appends the keys of each thread that are not 0. Every thread calls it.
template <int Count>
__device__ inline void append(Buffer buffer, const u64 (&keys)[Count]) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < Count; ++i) {
        if (i % ROUND == 0) {
            __syncthreads();
            const bool full = *buffer.count > CAPACITY - ROUND * THREADS;
            __syncthreads();  // nobody adds to the count before all have read it
            if (full) condense(buffer);
        }
        const bool fine = keys[i] > *buffer.floor;  // written by condense alone, between barriers
        const u32 votes = __ballot_sync(ALL_LANES, fine);
        if (votes == 0) continue;
        int base = 0;
        if (lane == 0) base = atomicAdd(buffer.count, __popc(votes));
        base = __shfl_sync(ALL_LANES, base, 0);
        if (fine) buffer.keys[base + __popc(votes & ((1u << lane) - 1u))] = keys[i];
    }
}

// ---- boxes ----

// The tensors of one image.
struct Image {
    const T* boxes;
    const T* scores;
    const T* anchors;
    int count;  // of candidates: boxes, not pairs of a box and a class
};

__device__ inline float coordinate(const Image& image, int at, int which) {
    return to_float(image.boxes[HEAD ? static_cast<i64>(which) * image.count + at : static_cast<i64>(at) * 4 + which]);
}

// The box of candidate `at`, its corners in order; false if one of them is NaN or infinite.
__device__ inline bool decode(const Image& image, int at, Box& box) {
    float a = coordinate(image, at, 0), b = coordinate(image, at, 1);
    float c = coordinate(image, at, 2), d = coordinate(image, at, 3);
#if ANCHORS
    const Pack<T, 4> anchor = load_pack<4>(image.anchors + static_cast<i64>(at) * 4);
    const float width = to_float(anchor.at[2]), height = to_float(anchor.at[3]);
    a = __fadd_rn(__fmul_rn(__fmul_rn(a, CENTER_VARIANCE), width), to_float(anchor.at[0]));
    b = __fadd_rn(__fmul_rn(__fmul_rn(b, CENTER_VARIANCE), height), to_float(anchor.at[1]));
    c = __fmul_rn(expf(__fmul_rn(c, SIZE_VARIANCE)), width);
    d = __fmul_rn(expf(__fmul_rn(d, SIZE_VARIANCE)), height);
#endif
    if (CENTER || ANCHORS) {
        const float half_width = __fmul_rn(c, 0.5f), half_height = __fmul_rn(d, 0.5f);
        c = __fadd_rn(a, half_width);
        d = __fadd_rn(b, half_height);
        a = __fsub_rn(a, half_width);
        b = __fsub_rn(b, half_height);
    }
    box = {fminf(a, c), fminf(b, d), fmaxf(a, c), fmaxf(b, d)};
    return (a - a) + (b - b) + (c - c) + (d - d) == 0.0f;  // infinity less itself is NaN
}

__device__ inline float area(const Box& box) {
    return __fmul_rn(__fsub_rn(box.right, box.left), __fsub_rn(box.bottom, box.top));
}

__device__ inline bool overlap(const Box& a, const Box& b) {
    const float width = __fsub_rn(fminf(a.right, b.right), fmaxf(a.left, b.left));
    const float height = __fsub_rn(fminf(a.bottom, b.bottom), fmaxf(a.top, b.top));
    if (!(width > 0.0f && height > 0.0f)) return false;
    const float both = __fmul_rn(width, height);
    return __fdiv_rn(both, __fsub_rn(__fadd_rn(area(a), area(b)), both)) > IOU;
}

// ---- search ----

__device__ inline float lowest() { return __uint_as_float(0xff800000u); }  // minus infinity

__device__ inline u64 candidate(const Image& image, float score, int at, int label) {
    Box box;
    if (!(score > THRESHOLD) || !decode(image, at, box)) return 0;
    return key_of(score, static_cast<u32>(at) * CLASSES + label);
}

// The better of two labels; of equal scores the first. -1, as unsigned, is after all.
__device__ inline void take_better(float& score, int& label, float other, int its_label) {
    if (other > score || (other == score && static_cast<u32>(its_label) < static_cast<u32>(label))) {
        score = other;
        label = its_label;
    }
}

#if MULTI_LABEL
// Every pair of a candidate and a class.
__device__ inline void search(const Image& image, Buffer buffer) {
    const u32 pairs = static_cast<u32>(image.count) * CLASSES;
    for (u32 base = 0; base < pairs; base += EMIT * THREADS) {
        u64 keys[EMIT];
#pragma unroll
        for (int i = 0; i < EMIT; ++i) {
            const u32 pair = base + i * THREADS + threadIdx.x;
            keys[i] = 0;
            if (pair >= pairs) continue;
            const float score = to_float(image.scores[pair]);
            if (!(score > THRESHOLD)) continue;  // before the divisions
            // In the order of memory; in a head that is one class after the other.
            const u32 at = HEAD ? pair % image.count : pair / CLASSES, label = HEAD ? pair / image.count : pair % CLASSES;
            if (label >= BACKGROUND) keys[i] = candidate(image, score, at, label);
        }
        append(buffer, keys);
    }
}
#elif HEAD
// The best class of each candidate; VEC candidates side by side are one load, LANES threads take every LANES-th class.
__device__ inline void search(const Image& image, Buffer buffer) {
    constexpr int SIDE = WARP / LANES;  // neighbouring threads, at the same class
    const int share = threadIdx.x % WARP / SIDE, place = threadIdx.x / WARP * SIDE + threadIdx.x % SIDE;
    for (int base = 0; base < image.count; base += THREADS / LANES * VEC) {
        const int first = base + place * VEC;
        float best[VEC];
        int label[VEC];
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
            best[i] = lowest();
            label[i] = -1;
        }
        if (first < image.count) {
#pragma unroll 4
            for (int c = BACKGROUND + share; c < CLASSES; c += LANES) {
                const Pack<T, VEC> pack = load_pack<VEC>(image.scores + static_cast<i64>(c) * image.count + first);
#pragma unroll
                for (int i = 0; i < VEC; ++i) {
                    const float score = to_float(pack.at[i]);
                    if (score > best[i]) {  // never for NaN
                        best[i] = score;
                        label[i] = c;
                    }
                }
            }
        }
        u64 keys[EMIT];
#pragma unroll
        for (int i = 0; i < VEC; ++i) {
#pragma unroll
            for (int step = SIDE; step < WARP; step *= 2) {
                const float other = __shfl_xor_sync(ALL_LANES, best[i], step);
                take_better(best[i], label[i], other, __shfl_xor_sync(ALL_LANES, label[i], step));
            }
            keys[i] = share == 0 && first < image.count ? candidate(image, best[i], first + i, label[i]) : 0;
        }
        append(buffer, keys);
    }
}
#else
// The best class of each candidate; LANES threads side by side read its scores.
__device__ inline void search(const Image& image, Buffer buffer) {
    constexpr int PER_PASS = THREADS / LANES;
    const int share = threadIdx.x % LANES, place = threadIdx.x / LANES;
    for (int base = 0; base < image.count; base += PER_PASS * EMIT) {
        u64 keys[EMIT];
#pragma unroll
        for (int i = 0; i < EMIT; ++i) {
            const int at = base + i * PER_PASS + place;
            float best = lowest();
            int label = -1;
            if (at < image.count) {
                const T* scores = image.scores + static_cast<i64>(at) * CLASSES;
                for (int c = share * VEC; c < CLASSES; c += LANES * VEC) {
                    const Pack<T, VEC> pack = load_pack<VEC>(scores + c);
#pragma unroll
                    for (int k = 0; k < VEC; ++k) {
                        const float score = to_float(pack.at[k]);
                        if (score > best && c + k >= BACKGROUND) {  // never for NaN
                            best = score;
                            label = c + k;
                        }
                    }
                }
            }
#pragma unroll
            for (int step = 1; step < LANES; step *= 2) {
                const float other = __shfl_xor_sync(ALL_LANES, best, step);
                take_better(best, label, other, __shfl_xor_sync(ALL_LANES, label, step));
            }
            keys[i] = share == 0 && at < image.count ? candidate(image, best, at, label) : 0;
        }
        append(buffer, keys);
    }
}
#endif

// One block a multiprocessor: there are as many blocks as images, so a second one's registers are better used by the first.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    edgekit_decode_nms(
#if HEAD
        const T* __restrict__ head,
#else
        const T* __restrict__ boxes, const T* __restrict__ scores,
#if ANCHORS
        const T* __restrict__ anchors,
#endif
#endif
        i32 batch, i32 candidates, i32* __restrict__ count_out, float* __restrict__ boxes_out,
        float* __restrict__ scores_out, i32* __restrict__ labels_out) {
#if !ANCHORS
    const T* const anchors = nullptr;
#endif
    alignas(16) __shared__ u64 keys[CAPACITY];
    __shared__ u64 floor_key;
    __shared__ int appended;
    __shared__ u32 matrix[2][WARP];  // of two turns, so that one barrier a turn is enough
    __shared__ u32 standing[2];
    const int which = blockIdx.x;
    if (which >= batch) return;  // the whole block
    const i64 first = static_cast<i64>(which) * candidates;
#if HEAD
    const T* start = head + first * (4 + CLASSES);
    const Image image{start, start + 4 * static_cast<i64>(candidates), anchors, candidates};
#else
    const Image image{boxes + first * 4, scores + first * CLASSES, anchors, candidates};
#endif
    const Buffer buffer{keys, &appended, &floor_key};
    if (threadIdx.x == 0) {
        appended = 0;
        floor_key = 0;
    }
    search(image, buffer);  // starts with a barrier, unless there are no candidates
    __syncthreads();
    condense(buffer);
    const int kept = appended;

    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    u64 mine[OWN];
#pragma unroll
    for (int m = 0; m < OWN; ++m) {
        const int rank = m * THREADS + threadIdx.x;
        mine[m] = rank < kept ? keys[rank] : 0;
    }
    __syncthreads();
    Box* held = reinterpret_cast<Box*>(keys);  // from here on
    float* held_scores = reinterpret_cast<float*>(held + TOP_K);
    int* labels = reinterpret_cast<int*>(held_scores + TOP_K);
    static_assert(TOP_K * (sizeof(Box) + 8) <= sizeof(keys), "the boxes do not fit where the keys were");
    Box own[OWN];
    int own_label[OWN];
    u32 alive = 0;  // bit m: box m of this thread
#pragma unroll
    for (int m = 0; m < OWN; ++m) {
        const int rank = m * THREADS + threadIdx.x;
        own[m] = {};
        own_label[m] = 0;
        if (rank < kept) {
            const u32 index = index_of(mine[m]);
            own_label[m] = static_cast<int>(index % CLASSES);
            decode(image, static_cast<int>(index / CLASSES), own[m]);
            held[rank] = own[m];
            held_scores[rank] = score_of(mine[m]);
            labels[rank] = own_label[m];
            alive |= 1u << m;
        }
    }
    __syncthreads();

    const i64 out = static_cast<i64>(which) * MAX_DETECTIONS;
    int found = 0;
    for (int base = 0, turn = 0; base < kept && found < MAX_DETECTIONS; base += WARP, turn ^= 1) {
        for (int row = warp; row < WARP; row += WARPS) {
            const int i = base + row, j = base + lane;
            const bool hit = row < lane && j < kept && (CLASS_AGNOSTIC || labels[i] == labels[j]) &&
                             overlap(held[i], held[j]);
            const u32 bits = __ballot_sync(ALL_LANES, hit);
            if (lane == 0) matrix[turn][row] = bits;
        }
        const bool owner = warp == base % THREADS / WARP;  // of the 32 boxes
        if (owner) {
            const u32 bits = __ballot_sync(ALL_LANES, alive >> base / THREADS & 1u);
            if (lane == 0) standing[turn] = bits;
        }
        __syncthreads();

        const u32 row = matrix[turn][lane];
        u32 left = standing[turn], survivors = 0;
        for (int room = MAX_DETECTIONS - found; left != 0 && room > 0; --room) {
            const int best = __ffs(static_cast<int>(left)) - 1;
            survivors |= 1u << best;
            left &= ~(__shfl_sync(ALL_LANES, row, best) | 1u << best);
        }
#pragma unroll
        for (int m = 0; m < OWN; ++m) {
            if (m * THREADS + static_cast<int>(threadIdx.x) < base + WARP) continue;
            for (u32 bits = survivors; bits != 0 && (alive >> m & 1u) != 0; bits &= bits - 1) {
                const int i = base + __ffs(static_cast<int>(bits)) - 1;
                if ((CLASS_AGNOSTIC || labels[i] == own_label[m]) && overlap(held[i], own[m])) alive &= ~(1u << m);
            }
        }
        if (owner && (survivors >> lane & 1u) != 0) {
            const i64 at = out + found + __popc(survivors & ((1u << lane) - 1u));
            const Box box = held[base + lane];
            store_pack(boxes_out + at * 4, Pack<float, 4>{{box.left, box.top, box.right, box.bottom}});
            const float score = held_scores[base + lane];
            scores_out[at] = SIGMOID ? 1.0f / (1.0f + expf(-score)) : score;
            labels_out[at] = labels[base + lane];
        }
        found += __popc(survivors);
    }

    if (threadIdx.x == 0) count_out[which] = found;
    for (int empty = found + threadIdx.x; empty < MAX_DETECTIONS; empty += THREADS) {
        store_pack(boxes_out + (out + empty) * 4, Pack<float, 4>{});
        scores_out[out + empty] = 0.0f;
        labels_out[out + empty] = -1;
    }
}
