// A whole LSTM layer, one or both directions, over all time steps in one launch. The recurrence h(t) = f(W h(t-1)) is
// one small matrix-vector product after the other, each waiting for the last: what it costs is reading W and starting
// kernels, not arithmetic. Here a block runs all steps of its sequences by itself, keeps W in registers, h in shared
// memory and c in registers, and each step has one barrier. Blocks never talk to each other.
//
// The input's part of the gates, x W_ih^T + bias of all steps, is no recurrence: one large matrix product before this
// kernel, which TensorRT does better than one block can. It comes in as `gates`.
//
// Who does what: a warp owns GROUPS groups of 8 hidden units, with all four gates. In a group, lane 4 u + q owns unit u;
// of each 16 columns of W it holds columns 4 q to 4 q + 3 of the unit's four rows. That is at the same time a share of a
// dot product (float) and, with columns renumbered, the A operand of two tensor-core products of 16 rows: gates i and o
// of 8 units, gates f and c of 8 units. Their sums then lie in the lane that owns the unit and sequences 2 q and 2 q + 1,
// all four gates together: the cell is updated in registers, with no exchange and no barrier between product and update.
//
// Tensor cores even for one sequence: a product has 8 columns whether or not they are used, and is still about half the
// instructions of unpacking halves for FP32 multiply-adds. So up to 8 sequences (SEQUENCES) cost little more than one.
// They accumulate in FP32. FP32 weights are multiplied on the ordinary cores: TF32 would lose 13 bits.
//
// Registers: W is 8 H^2 bytes in FP16, 128 KiB of a multiprocessor's 256 KiB of registers at H = 128, the largest H whose
// W is held whole beside sums and addresses. Above, RESIDENT of the 16-column tiles are held (60 % at H = 160, 50 % at 192,
// 19 % at 256) and the others are read again in each step, from L1 as far as it keeps them and from L2 otherwise: at
// H = 256 reading is what takes the time. A cluster of blocks that hand h around in distributed shared memory (sm_90 and
// later) could hold W of 256; it would be a second kernel, for a part of the targets. Shared memory holds h alone: within
// 48 KiB a block it could take another 7 % of that W.
//
// Block size: as few warps as hold W with room for the sums, and at least four where there are units for them, one for
// each of the multiprocessor's four tensor cores. More warps read h more often (each reads all of it each step), fewer
// leave nothing to run while one waits: `tactics` gives both to the autotuner.
// Bank conflicts: a lane reads 4 halves of h of sequence lane / 4; rows of h are an odd multiple of 32 bytes apart, so
// the 16 lanes of one phase touch 128 different bytes of a line. In FP32 all units read the same 64 bytes: a broadcast.
// Divergence: units past H and sequences past the batch have zero weights and states and take part in everything but
// loads and stores. The one branch inside a step is that; lanes of unused sequences (SEQUENCES < 8) have no cell to update.
// Memory: the gates of step t + 1 are requested when those of step t are used, one whole product ahead.
//
// Constants: T, HIDDEN, DIRECTIONS, REVERSE, SEQUENCES (of a block: 1, 2, 4, 8), GROUPS, THREADS, RESIDENT, VEC,
// TENSOR_CORES (T has 16 bits).
#include "device.cuh"

constexpr int UNITS = 8;                     // of a group
constexpr int TILE = 16;                     // columns of W of one tensor-core product
constexpr int TILES = (HIDDEN + TILE - 1) / TILE;
constexpr int STRIDE = TILES * TILE + (TILES % 2 == 0 ? TILE : 0);
constexpr int GATES = 4;                     // in ONNX's order: input, output, forget, cell
constexpr int MINE = SEQUENCES > 1 ? 2 : 1;  // sequences that a lane may own

// Four elements as they are held and moved: whole registers, so that halves are not taken apart.
using Quad = typename detail::Word<4 * sizeof(T)>::Type;

// A lane's part of one tile of one group: 4 columns of the unit's row of each gate, zero past the end of W. `rows` is the
// first of them of the lane's first unit; `Again`: in each step, not once.
template <bool Again>
__device__ inline void load_tile(Quad (&out)[GATES], const T* rows, int group, int tile, int lane, bool unit) {
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate) {
        const T* p = rows + (gate * HIDDEN + group * UNITS) * HIDDEN + tile * TILE;
        Pack<T, 4> quad{};
#pragma unroll
        for (int i = 0; i < 4; i += VEC) {
            if (!unit || tile * TILE + lane % 4 * 4 + i >= HIDDEN) continue;
            const Pack<T, VEC> part = Again ? load_pack_again<VEC>(p + i) : load_pack<VEC>(p + i);
#pragma unroll
            for (int j = 0; j < VEC; ++j) quad.at[i + j] = part.at[j];
        }
        memcpy(&out[gate], &quad, sizeof(quad));
    }
}

__device__ inline void load_gates(T (&out)[GATES], const T* gates, int group, int s) {
#pragma unroll
    for (int i = 0; i < GATES; ++i) out[i] = gates[(s * DIRECTIONS * GATES + i) * HIDDEN + group * UNITS];
}

// `multiply` adds the columns of one tile of W h to the sums of one group; `collect` makes of them the sums of the
// sequences that the lane owns, [2 gate + sequence].
#if TENSOR_CORES
constexpr int SUMS = 2 * GATES;

__device__ inline void multiply(float (&sums)[SUMS], const Quad (&rows)[GATES], const T* h, int tile, int lane) {
    uint2 b{};
    if (SEQUENCES == 8 || lane / 4 < SEQUENCES) {
        b = *reinterpret_cast<const uint2*>(h + lane / 4 * STRIDE + tile * TILE + lane % 4 * 4);
    }
    mma_16x8x16<T>(&sums[0], {rows[0].x, rows[1].x, rows[0].y, rows[1].y}, {b.x, b.y});
    mma_16x8x16<T>(&sums[4], {rows[2].x, rows[3].x, rows[2].y, rows[3].y}, {b.x, b.y});
}

__device__ inline void collect(float (&out)[2 * GATES], const float (&sums)[SUMS], int) {
#pragma unroll
    for (int i = 0; i < SUMS; ++i) out[i] = sums[i];
}
#else
constexpr int SUMS = SEQUENCES * GATES;  // a share of each sequence's

__device__ inline void multiply(float (&sums)[SUMS], const Quad (&rows)[GATES], const T* h, int tile, int lane) {
    Pack<T, 4> a[GATES];
    memcpy(a, rows, sizeof(a));
#pragma unroll
    for (int s = 0; s < SEQUENCES; ++s) {
        const Pack<T, 4> b = *reinterpret_cast<const Pack<T, 4>*>(h + s * STRIDE + tile * TILE + lane % 4 * 4);
#pragma unroll
        for (int gate = 0; gate < GATES; ++gate) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[gate * SEQUENCES + s] += to_float(a[gate].at[i]) * to_float(b.at[i]);
        }
    }
}

__device__ inline void collect(float (&out)[2 * GATES], const float (&sums)[SUMS], int lane) {
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate) {
#pragma unroll
        for (int s = 0; s < SEQUENCES; ++s) {
            const float whole = warp_reduce<4>(sums[gate * SEQUENCES + s], Sum{});
            if (s / 2 == lane % 4) out[2 * gate + s % 2] = whole;
        }
    }
}
#endif

// Both are exact at the infinities and NaN at NaN.
__device__ inline float sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }
__device__ inline float tanh_of(float x) { return 1.0f - __fdividef(2.0f, __expf(2.0f * x) + 1.0f); }

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    edgekit_lstm(const T* __restrict__ gates, const T* __restrict__ weight, const T* __restrict__ h0,
                 const T* __restrict__ c0, i32 steps, i32 batch, T* __restrict__ y, T* __restrict__ h_last,
                 T* __restrict__ c_last) {
    alignas(16) __shared__ T state[2][SEQUENCES * STRIDE];  // h of this step, h of the next

    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const int direction = blockIdx.y;
    const i32 first = blockIdx.x * SEQUENCES;
    const bool backwards = direction + REVERSE == 1;

    for (int i = threadIdx.x; i < SEQUENCES * STRIDE; i += THREADS) {
        const i32 sequence = first + i / STRIDE, unit = i % STRIDE;
        T start = from_float<T>(0.0f);
        if (unit < HIDDEN && sequence < batch) {
            start = h0[(static_cast<i64>(direction) * batch + sequence) * HIDDEN + unit];
        }
        state[0][i] = start;
        state[1][i] = from_float<T>(0.0f);
    }

    // Where this lane's first unit and first sequence are: in the states, in a row of y, in a row of the gates. Its other
    // units and sequences are at constant distances, so that one pointer serves all of them.
    const int own = warp * GROUPS * UNITS + lane / 4, column = lane % 4 * 2;
    const i64 at = (static_cast<i64>(direction) * batch + first + column) * HIDDEN + own;
    const i64 row = static_cast<i64>(batch) * DIRECTIONS * HIDDEN;
    const i64 start = (backwards && steps > 0 ? (steps - 1) * row : 0) +
                      (static_cast<i64>(first + column) * DIRECTIONS + direction) * HIDDEN;
    const i64 advance = backwards ? -row : row;
    y += start + own;
    gates += GATES * start + own;
    const T* rows = weight + (static_cast<i64>(direction) * GATES * HIDDEN + own) * HIDDEN + lane % 4 * 4;

    Quad held[GROUPS][RESIDENT][GATES];
    float c[GROUPS][MINE];
    T h[GROUPS][MINE];
    T given[GROUPS][MINE][GATES];  // the gates of the step to come
    bool alive[GROUPS][MINE];
#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
        const bool unit = own + group * UNITS < HIDDEN;
#pragma unroll
        for (int tile = 0; tile < RESIDENT; ++tile) load_tile<false>(held[group][tile], rows, group, tile, lane, unit);
#pragma unroll
        for (int s = 0; s < MINE; ++s) {
            alive[group][s] = unit && column + s < SEQUENCES && first + column + s < batch;
            if (!alive[group][s]) continue;
            c[group][s] = to_float(c0[at + s * HIDDEN + group * UNITS]);
            h[group][s] = h0[at + s * HIDDEN + group * UNITS];
            if (steps > 0) load_gates(given[group][s], gates, group, s);
        }
    }
    __syncthreads();

    for (i32 step = 0; step < steps; ++step) {
        const T* read = state[step % 2];
        T* write = state[(step + 1) % 2] + column * STRIDE + own;
        gates += GATES * advance;

        float sums[GROUPS][SUMS];
#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
#pragma unroll
            for (int i = 0; i < SUMS; ++i) sums[group][i] = 0.0f;
        }
#pragma unroll
        for (int tile = 0; tile < RESIDENT; ++tile) {
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) multiply(sums[group], held[group][tile], read, tile, lane);
        }
#pragma unroll 1
        for (int tile = RESIDENT; tile < TILES; ++tile) {
#pragma unroll
            for (int group = 0; group < GROUPS; ++group) {
                Quad loaded[GATES];
                load_tile<true>(loaded, rows, group, tile, lane, own + group * UNITS < HIDDEN);
                multiply(sums[group], loaded, read, tile, lane);
            }
        }

#pragma unroll
        for (int group = 0; group < GROUPS; ++group) {
            float whole[2 * GATES];
            collect(whole, sums[group], lane);
#pragma unroll
            for (int s = 0; s < MINE; ++s) {
                if (!alive[group][s]) continue;
                float gate[GATES];
#pragma unroll
                for (int i = 0; i < GATES; ++i) gate[i] = whole[2 * i + s] + to_float(given[group][s][i]);
                if (step + 1 < steps) load_gates(given[group][s], gates, group, s);
                c[group][s] = sigmoid(gate[2]) * c[group][s] + sigmoid(gate[0]) * tanh_of(gate[3]);
                h[group][s] = from_float<T>(sigmoid(gate[1]) * tanh_of(c[group][s]));
                write[s * STRIDE + group * UNITS] = h[group][s];
                y[s * DIRECTIONS * HIDDEN + group * UNITS] = h[group][s];
            }
        }
        y += advance;
        __syncthreads();  // h of the next step is complete; and the one just read may be overwritten
    }

#pragma unroll
    for (int group = 0; group < GROUPS; ++group) {
#pragma unroll
        for (int s = 0; s < MINE; ++s) {
            if (!alive[group][s]) continue;
            h_last[at + s * HIDDEN + group * UNITS] = h[group][s];
            c_last[at + s * HIDDEN + group * UNITS] = from_float<T>(c[group][s]);
        }
    }
}
