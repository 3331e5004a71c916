// center's CUDA kernels: y = x - mean(x), x read from memory once where it fits on the chip.
//
// center_rows keeps a row in the registers of a team of threads. center_shares deals a line (see
// center_launch.h) out to blocks: each adds up its share, which stays in shared memory as far as it
// fits, the blocks of a line exchange their sums, and each subtracts from its share, what did not
// fit read again backwards: what was read last may still be in the L2 cache.
//
// Sums are kept in double, so that neither a long line nor a large offset costs digits, and are
// added in an order that sizes, alignment and chip alone decide. A memory-bound kernel has room for
// that: even consumer GPUs, with two double operations a cycle and multiprocessor, keep up with
// float32; for the 16-bit dtypes, of which memory brings twice as many, see add().
#pragma once
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "center/center_launch.h"
#include "core/device.h"

namespace blockops::device::center {

constexpr int kWarp = 32;
constexpr int kNarrow = 16;  // up to such an S, columns are added and then each S sums of them

// Elements of a wide vector.
template <class T>
constexpr int kWide = 16 / int(sizeof(T));

// How many vectors of V elements a thread has under way, or in registers, at once.
template <int V>
constexpr int kBatch = V == 1 ? 8 : 4;

// A vector as it lies in memory and in registers, where an array would be moved, and kept, element
// by element.
template <class T, int V>
using Packed = std::conditional_t<V == 1, T, uint4>;

template <class T, int V>
struct Elements {
  T at[V];

  __device__ __forceinline__ explicit Elements(Packed<T, V> packed) {
    std::memcpy(static_cast<void*>(at), &packed, sizeof at);
  }
  __device__ __forceinline__ Packed<T, V> packed() const {
    Packed<T, V> result;
    std::memcpy(static_cast<void*>(&result), at, sizeof at);
    return result;
  }
};

// Adds vectors to one sum, or each element to that of its column; 16-bit numbers first to sums of
// up to eight in float, which are exact where the numbers are of like size. (bfloat16 from 4e37 on
// overflows there, as it does in PyTorch's own sums.)
template <class T, int V, int B, int N>
__device__ __forceinline__ void add(const Packed<T, V> (&batch)[B], double (&sums)[N]) {
  constexpr bool kOne = N == 1;
#pragma unroll
  for (int i = 0; i < (kOne ? B : V); ++i) {
    std::conditional_t<sizeof(T) == 2, float, double> part = 0;
#pragma unroll
    for (int j = 0; j < (kOne ? V : B); ++j) {
      part += widen(Elements<T, V>(batch[kOne ? i : j]).at[kOne ? j : i]);
    }
    sums[kOne ? 0 : i] += part;
  }
}

template <class T, int V, int N>
__device__ __forceinline__ void store_difference(Packed<T, V> vector, const Sum<T> (&means)[N],
                                                 Packed<T, V>* to) {
  Elements<T, V> elements(vector);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    elements.at[e] = narrow<T>(widen(elements.at[e]) - means[N == 1 ? 0 : e]);
  }
  *to = elements.packed();
}

// `size` elements from `begin` on: vectors, counted from the element `shift` on, which is aligned,
// and fewer than V elements at each end.
template <int V>
struct Run {
  int64_t begin, size, first, vectors;
  int shift;

  __device__ __forceinline__ Run(int64_t begin, int64_t size, int shift)
      : begin(begin), size(size), shift(shift) {
    first = (begin - shift + V - 1) / V;
    vectors = max((begin - shift + size) / V - first, int64_t{0});
  }

  // The element outside the vectors that one of 2 V threads takes; -1 for none.
  __device__ __forceinline__ int64_t edge(int thread) const {
    const int64_t before = begin + thread, after = shift + (first + vectors - 1) * V + thread;
    if (thread < V) return before < min(shift + first * V, begin + size) ? before : -1;
    return after < begin + size ? after : -1;
  }
};

// Adds up sums[e] over the threads of the block that have the same threadIdx.x % lanes (a power of
// two): that of lane l goes to totals[l * N + e], for all threads to read. totals has room for
// lanes * N of each warp, or of each `lanes` threads.
template <int N>
__device__ void add_up(double (&sums)[N], int lanes, double* totals) {
  for (int distance = kWarp / 2; distance >= lanes; distance /= 2) {
#pragma unroll
    for (double& sum : sums) sum += __shfl_xor_sync(0xffffffff, sum, distance);
  }
  const int width = lanes * N, team = max(lanes, kWarp), lane = threadIdx.x % team;
  __syncthreads();  // until the totals before these have been read
  if (lane < lanes) {
#pragma unroll
    for (int e = 0; e < N; ++e) totals[threadIdx.x / team * width + lane * N + e] = sums[e];
  }
  __syncthreads();
  for (int at = threadIdx.x; at < width; at += blockDim.x) {
    double total = totals[at];
    for (int i = 1; i < int(blockDim.x) / team; ++i) total += totals[i * width + at];
    totals[at] = total;
  }
  __syncthreads();
}

// Rows of S elements, up to kBatch vectors for each thread of a team. A team is a power of two:
// 16 or 32 threads, of which a block holds several, or the whole block.
template <class T, int V>
__global__ void __launch_bounds__(1024) center_rows(const T* __restrict__ x, T* __restrict__ y,
                                                    int64_t rows, int64_t S, int shift, int team) {
  BLOCKOPS_SHARED(shared);
  const int lane = threadIdx.x % team, teams = blockDim.x / team;
  const int64_t row = int64_t(blockIdx.x) * teams + threadIdx.x / team;
  const Run<V> run(row * S, row < rows ? S : 0, shift);
  const int64_t edge = run.edge(lane);
  const auto* const from = reinterpret_cast<const Packed<T, V>*>(x + shift) + run.first;
  auto* const to = reinterpret_cast<Packed<T, V>*>(y + shift) + run.first;

  Packed<T, V> held[kBatch<V>] = {};
#pragma unroll
  for (int i = 0; i < kBatch<V>; ++i) {
    if (i * team + lane < run.vectors) held[i] = from[i * team + lane];
  }
  const T held_edge = edge < 0 ? narrow<T>(0) : x[edge];
  double sum[1] = {widen(held_edge)};
  add<T, V>(held, sum);
  if (team > kWarp) {
    auto* const total = reinterpret_cast<double*>(shared);
    add_up(sum, 1, total);
    sum[0] = total[0];
  } else {
    for (int distance = team / 2; distance > 0; distance /= 2) {
      sum[0] += __shfl_xor_sync(0xffffffff, sum[0], distance);
    }
  }
  const Sum<T> mean[1] = {static_cast<Sum<T>>(sum[0] / S)};
#pragma unroll
  for (int i = 0; i < kBatch<V>; ++i) {
    if (i * team + lane < run.vectors) store_difference<T, V>(held[i], mean, to + i * team + lane);
  }
  if (edge >= 0) y[edge] = narrow<T>(widen(held_edge) - mean[0]);
}

// One thread's part of a block's share of a line: every blockDim.x-th vector; and where the thread
// stands, which is at the first of them, and moves.
template <int V, bool kColumns>
struct Share {
  int64_t offset, column;  // of the vector where the thread stands: in memory, and in its row
  int64_t edge;            // offset of an element outside the vectors that is the thread's, or -1
  int count;               // of the thread's vectors

  __device__ __forceinline__ Share(const Cut& cut, int64_t line, int member) {
    const int thread = threadIdx.x, threads = blockDim.x;
    const int64_t beside = line % cut.across * cut.pitch;
    const int64_t first = line / cut.across * cut.R * cut.stride + beside;
    const Run<V> run(first, min(cut.pitch, cut.stride - beside), cut.shift);
    const int64_t vectors = cut.R * (kColumns ? cut.per_row : run.vectors);
    const int64_t begin = member * cut.share, size = min(cut.share, vectors - begin);
    const bool exists = line < cut.lines;
    const bool takes_part = exists && (!kColumns || thread % cut.lanes < run.vectors);
    count = takes_part && thread < size ? int(ceil_div(size - thread, threads)) : 0;
    edge = !kColumns && exists && member == 0 ? run.edge(thread) : -1;
    column = (begin + thread) % cut.per_row;
    offset = run.first + (begin + thread) / cut.per_row * (cut.stride / V) + column;
  }

  __device__ __forceinline__ void forward(const Cut& cut) {
    offset += cut.offset_step;
    if constexpr (!kColumns) {  // where the column stays
      column += cut.column_step;
      if (column >= cut.per_row) column -= cut.per_row, offset += cut.turn;
    }
  }
  __device__ __forceinline__ void backward(const Cut& cut) {
    offset -= cut.offset_step;
    if constexpr (!kColumns) {
      column -= cut.column_step;
      if (column < 0) column += cut.per_row, offset -= cut.turn;
    }
  }
};

// What a block does, thread by thread: a thread reads in shared memory only what it put there
// itself, save for sums.
template <class T, int V, bool kColumns>
struct Block {
  using Part = Share<V, kColumns>;
  static constexpr int N = kColumns ? V : 1, B = kBatch<V>;

  const Packed<T, V>* __restrict__ x;
  Packed<T, V>* __restrict__ y;
  const Cut& cut;
  Packed<T, V>* tiles;
  double* totals;

  __device__ __forceinline__ Packed<T, V>* slot(int step, int i) const {
    return tiles + (step % cut.stages * cut.held + i) * int(blockDim.x) + threadIdx.x;
  }

  // Begins to copy what is held of a share into the tile of its step.
  __device__ __forceinline__ void fetch(Part share, int step) const {
#pragma unroll B
    for (int i = 0; i < min(share.count, cut.held); ++i, share.forward(cut)) {
      if constexpr (V > 1) {
        copy_async_16(slot(step, i), x + share.offset, 16);
      } else {
        *slot(step, i) = x[share.offset];
      }
    }
    copy_async_commit();
  }

  // The vector with number i of the thread, at which the share stands; zeros after the last one.
  __device__ __forceinline__ Packed<T, V> vector(const Part& share, int step, int i) const {
    if (i >= share.count) return {};
    return i < cut.held ? *slot(step, i) : x[share.offset];
  }

  // Adds up the share; returns the number of the vector, after the last one, where it then stands.
  __device__ __forceinline__ int add_share(Part& share, int step, double (&sums)[N]) const {
    int i = 0;
    while (i < share.count) {
      Packed<T, V> batch[B];
#pragma unroll
      for (int q = 0; q < B; ++q, ++i, share.forward(cut)) {
        batch[q] = vector(share, step, i);
      }
      add<T, V>(batch, sums);
    }
    return i;
  }

  // The way back.
  __device__ __forceinline__ void subtract(Part& share, int step, int i,
                                           const Sum<T> (&means)[N]) const {
    while (i > 0) {
      Packed<T, V> batch[B];
#pragma unroll
      for (int q = B - 1; q >= 0; --q) {
        share.backward(cut);
        batch[q] = vector(share, step, --i);
      }
      Part at = share;
#pragma unroll
      for (int q = 0; q < B; ++q, at.forward(cut)) {
        if (i + q < share.count) store_difference<T, V>(batch[q], means, y + at.offset);
      }
    }
  }

  // Makes the totals of a block those of its line. There are two sets of partial sums: a block may
  // be a step ahead of another, for there is one meeting in a step.
  __device__ __forceinline__ void exchange(int step, double* partial) const {
    const int width = cut.lanes * N, lane = threadIdx.x % cut.lanes;
    double* const set = partial + step % 2 * gridDim.x * width;
    for (int at = threadIdx.x; at < width; at += blockDim.x) {
      set[int64_t(blockIdx.x) * width + at] = totals[at];
    }
    grid_sync();
    double sums[N] = {};
    const int64_t first = blockIdx.x / cut.members * cut.members;
    for (int m = threadIdx.x / cut.lanes; m < cut.members; m += blockDim.x / cut.lanes) {
#pragma unroll
      for (int e = 0; e < N; ++e) sums[e] += set[(first + m) * width + lane * N + e];
    }
    add_up(sums, cut.lanes, totals);
  }

  // The means of the thread's columns; those next to each other share one by S.
  __device__ __forceinline__ void take_means(Sum<T> (&means)[N]) const {
    const double elements = static_cast<double>(cut.R) * cut.S;
#pragma unroll
    for (int e = 0; e < N; ++e) {
      const int sums = kColumns ? cut.S : 1;
      const int first = kColumns ? (threadIdx.x % cut.lanes * N + e) / sums * sums : 0;
      double total = 0;
      for (int i = 0; i < sums && first + i < cut.lanes * N; ++i) total += totals[first + i];
      means[e] = static_cast<Sum<T>>(total / elements);
    }
  }
};

template <class T, int V, bool kColumns>
__global__ void __launch_bounds__(1024)
    center_shares(const T* __restrict__ x, T* __restrict__ y, double* partial, const Cut cut) {
  BLOCKOPS_SHARED(shared);
  using Part = Share<V, kColumns>;
  using Memory = Packed<T, V>;
  auto* const tiles = reinterpret_cast<Memory*>(shared);
  auto* const totals = reinterpret_cast<double*>(tiles + cut.stages * cut.held * int(blockDim.x));
  const Block<T, V, kColumns> block{reinterpret_cast<const Memory*>(x + cut.shift),
                                    reinterpret_cast<Memory*>(y + cut.shift), cut, tiles, totals};
  const int64_t group = blockIdx.x / cut.members;
  const int member = blockIdx.x % cut.members;
  const auto share_of = [&](int step) { return Part(cut, step * cut.groups + group, member); };
  const int steps = int(ceil_div(cut.lines, cut.groups));
  for (int step = 0; step < steps; ++step) {
    Part share = share_of(step);
    if (step == 0 || cut.stages == 1) block.fetch(share, step);
    if (cut.stages == 2) {
      block.fetch(share_of(step + 1), step + 1);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    const T edge = share.edge < 0 ? narrow<T>(0) : x[share.edge];
    double sums[block.N] = {};
    const int end = block.add_share(share, step, sums);
    sums[0] += widen(edge);  // which strips of columns do not have
    add_up(sums, cut.lanes, block.totals);
    if (cut.members > 1) block.exchange(step, partial);
    Sum<T> means[block.N];
    block.take_means(means);
    block.subtract(share, step, end, means);
    if (share.edge >= 0) y[share.edge] = narrow<T>(widen(edge) - means[0]);
  }
}

// ---- host ----

// The smallest power of two from `low` to `high` that is no less than `value`; else `high`.
inline int power_of_two(int64_t value, int low, int high) {
  int power = low;
  while (power < value && power < high) power *= 2;
  return power;
}

// Whether memory can be taken in vectors of 16 bytes. Where a mean runs along memory, it is enough
// that x and y are aligned alike.
template <class T>
bool is_wide(const Center<T>& c, bool columns) {
  const auto x = reinterpret_cast<uintptr_t>(c.x) % 16, y = reinterpret_cast<uintptr_t>(c.y) % 16;
  if (!columns && c.R == 1) return x == y;
  return x == 0 && y == 0 && (columns ? c.K * c.S : c.S) % kWide<T> == 0;
}

inline int batch_of(bool wide) { return wide ? kBatch<4> : kBatch<1>; }

template <class T>
Plan plan_rows(const Center<T>& c, bool wide, const Chip& chip) {
  Plan plan{Schedule::kRows, wide};
  const int64_t vectors = wide ? c.S / kWide<T> : c.S;
  plan.team = power_of_two(ceil_div(vectors, batch_of(wide)), 16, chip.threads / 2);
  plan.threads = plan.team > kWarp ? plan.team : std::min(256, chip.threads);
  plan.blocks = ceil_div(c.K, plan.threads / plan.team);
  plan.shared_bytes = plan.threads / kWarp * sizeof(double);
  return plan;
}

// The vectors in a row of a strip: 128 bytes, a line of the cache, since a narrow strip is few sums
// to exchange; more where columns are so short that a block would have little to do; no more than
// x has.
inline int lanes_of(int64_t R, int64_t K, int64_t S, int V, int threads) {
  int lanes = power_of_two(S, V > 1 ? 8 : 32, threads);
  while (2 * lanes <= threads / 2 && lanes * R <= threads) lanes *= 2;
  while (lanes > 1 && lanes / 2 * V >= K * S) lanes /= 2;
  return lanes;
}

// What add_up needs.
inline int64_t totals_bytes(int threads, int lanes, int sums) {
  return int64_t(threads / std::max(lanes, kWarp)) * lanes * sums * int64_t(sizeof(double));
}

// A block for each line, of as many threads as the line's vectors are worth.
inline int give_whole(Cut& cut, int64_t vectors, int batch, const Chip& chip) {
  const int threads =
      power_of_two(ceil_div(vectors, batch), std::max(cut.lanes, kWarp), chip.threads / 2);
  cut.groups = std::min(cut.lines, int64_t{1} << 30);  // a grid has room for so many
  cut.members = cut.stages = 1;
  cut.share = vectors;
  cut.held = int(ceil_div(vectors, threads));
  return threads;
}

// Several blocks for each line; a block's shared memory has `slots` vectors for each thread.
inline void deal_out(Cut& cut, int64_t vectors, int64_t slots, bool columns, const Chip& chip) {
  const int64_t needed = ceil_div(vectors, slots / 2 * chip.threads);  // with a second stage
  const bool in_turn = 2 * needed <= chip.processors;
  const int64_t groups = in_turn ? chip.processors / needed : columns ? chip.processors : 1;
  const int64_t steps = ceil_div(cut.lines, groups);
  cut.groups = ceil_div(cut.lines, steps);
  cut.stages = in_turn && steps > 1 ? 2 : 1;
  const int64_t unit = columns ? cut.lanes : 8;  // whole rows, or 128 bytes
  cut.share = ceil_div(ceil_div(vectors, chip.processors / cut.groups), unit) * unit;
  cut.members = int(ceil_div(vectors, cut.share));
  cut.held = int(std::min(ceil_div(cut.share, chip.threads), slots / cut.stages));
}

template <class T>
Plan plan_shares(const Center<T>& c, bool columns, bool wide, const Chip& chip) {
  Plan plan{columns ? Schedule::kColumns : Schedule::kLines, wide};
  const int V = wide ? kWide<T> : 1, sums = columns ? V : 1;
  const int64_t vector_bytes = V * int64_t(sizeof(T));
  Cut& cut = plan.cut;
  cut.R = c.R;
  cut.S = c.S;
  cut.stride = c.K * c.S;
  cut.lanes = columns ? lanes_of(c.R, c.K, c.S, V, chip.threads) : 1;
  int64_t whole = c.S;  // a strip has whole means and whole vectors
  while (whole % V != 0) whole *= 2;
  cut.pitch = columns ? cut.lanes * V / whole * whole : c.S;
  cut.across = ceil_div(cut.stride, cut.pitch);
  cut.lines = c.O * cut.across;

  const int64_t vectors = c.R * (columns ? cut.lanes : c.S / V);
  const int64_t slots = (chip.shared_bytes - totals_bytes(chip.threads, cut.lanes, sums)) /
                        (chip.threads * vector_bytes);
  plan.threads = chip.threads;
  if (vectors <= slots / 2 * chip.threads) {
    plan.threads = give_whole(cut, vectors, batch_of(wide), chip);
  } else {
    deal_out(cut, vectors, slots, columns, chip);
  }
  cut.per_row = columns ? cut.lanes : c.S / V;
  cut.column_step = plan.threads % cut.per_row;
  cut.turn = cut.stride / V - cut.per_row;
  cut.offset_step = plan.threads / cut.per_row * (cut.stride / V) + cut.column_step;
  plan.blocks = cut.groups * cut.members;
  plan.shared_bytes = cut.stages * cut.held * plan.threads * vector_bytes +
                      totals_bytes(plan.threads, cut.lanes, sums);
  if (cut.members > 1) {
    plan.workspace_bytes = 2 * plan.blocks * cut.lanes * sums * int64_t(sizeof(double));
  }
  return plan;
}

// The choice of a schedule:
// - Means of up to kNarrow neighbours (most often one: S = 1) go by columns, for memory to be read
//   in one piece; others along memory.
// - A row that the registers of half a block hold stays there (plan_rows): no shared memory,
// nothing
//   to exchange. Of half, because then a multiprocessor has room for two: one reads or writes while
//   the other adds up.
// - A line that takes at most half of a block's shared memory has half a block of its own, for the
//   same reason (give_whole).
// - Longer lines are dealt out to several blocks (deal_out), which all meet once in a step. Where a
//   line fills at most half of the chip, as many are under way as fit, and the next ones are
//   fetched during the meeting: x is read once. Beyond that, what fits is worth less than few
//   meetings: lines along memory go one by one, the whole chip at each; strips all at once, for one
//   on every block would cost more to exchange than to read again.
template <class T>
Plan plan_center(const Center<T>& given, const Chip& chip) {
  Center<T> c = given;
  if (c.R == 1) c.K *= c.O, c.O = 1;
  const bool columns = c.S <= kNarrow;
  const bool wide = is_wide(c, columns);
  const int64_t vectors = wide ? c.S / kWide<T> : c.S;
  const bool rows = !columns && c.R == 1 && vectors <= int64_t{batch_of(wide)} * (chip.threads / 2);
  Plan plan = rows ? plan_rows(c, wide, chip) : plan_shares(c, columns, wide, chip);
  plan.cut.shift = wide ? int(-reinterpret_cast<uintptr_t>(c.x) % 16 / sizeof(T)) : 0;
  return plan;
}

template <class T>
cudaError_t launch_center(const Center<T>& c, const Plan& plan, double* partial,
                          cudaStream_t stream) {
  const dim3 grid(plan.blocks), block(plan.threads);
  if (plan.schedule == Schedule::kRows) {
    const auto kernel = plan.wide ? center_rows<T, kWide<T>> : center_rows<T, 1>;
    return launch(kernel, grid, block, plan.shared_bytes, stream, c.x, c.y, c.O * c.K, c.S,
                  plan.cut.shift, plan.team);
  }
  auto kernel = plan.wide ? center_shares<T, kWide<T>, false> : center_shares<T, 1, false>;
  if (plan.schedule == Schedule::kColumns) {
    kernel = plan.wide ? center_shares<T, kWide<T>, true> : center_shares<T, 1, true>;
  }
  const auto start = plan.cut.members > 1 ? launch_cooperative<const T*, T*, double*, Cut>
                                          : launch<const T*, T*, double*, Cut>;
  return start(kernel, grid, block, plan.shared_bytes, stream, c.x, c.y, partial, plan.cut);
}

}  // namespace blockops::device::center
