// Small kernels on which the tests of kernels on the CPU are tested themselves. A bug is planted by
// a template argument; kNone is the right kernel.
#pragma once
#include "core/device.h"
#include "core/numbers.h"

namespace blockops::samples {

using namespace device;

enum Bug {
  kNone,
  kNoBarrier,
  kNoBarrierBeforeReuse,
  kNoWait,
  kSwappedRegisters,
  kWrongTail,
  kStoreBeyond,
  kSharedBeyond,
  kDivergentBarrier,
  kWrongMask,
  kNoGridSync,
  kSharedOutput,
  kNoSyncwarp,
  kMisalignedCopy,
};

constexpr int kTile = 64, kThreads = 128;

// How the product's tiles of T lie in shared memory, and the tensor cores' instruction for T.
// Elements of 16 bits come in pairs: `depth` of them in one instruction.
template <class T>
struct Fragments {
  static constexpr int depth = sizeof(T) == 4 ? 8 : 16;
  static constexpr int tile_depth = 32, row = tile_depth + 16 / sizeof(T);
  static constexpr size_t bytes = 2 * 2 * kTile * row * sizeof(T);
};

__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2], const BFloat16*) {
  mma_bf16(d, a, b);
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2], const Half*) {
  mma_f16(d, a, b);
}
__device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2], const float*) {
  mma_tf32(d, a, b);
}

// One warp's part of a step: 32 rows of a times 32 rows of b, transposed.
template <Bug bug, class T>
__device__ __forceinline__ void multiply_step(float (&sums)[2][4][4], const T* a, const T* b) {
  using F = Fragments<T>;
  const int lane = threadIdx.x % 32;
  for (int k = 0; k < F::tile_depth; k += F::depth) {
    uint32_t left[2][4], right[4][2];
    if constexpr (sizeof(T) == 2) {
      for (int i = 0; i < 2; ++i) {
        load_matrices(left[i], a + (16 * i + lane % 16) * F::row + k + lane / 16 * 8);
        uint32_t both[4];
        load_matrices(both,
                      b + (16 * i + lane % 8 + lane / 16 * 8) * F::row + k + lane / 8 % 2 * 8);
        for (int j = 0; j < 4; ++j) right[2 * i + j / 2][j % 2] = both[j];
      }
    } else {
      const int row = lane / 4, column = k + lane % 4;
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
          left[i][j] = round_to_tf32(a[(16 * i + row + j % 2 * 8) * F::row + column + j / 2 * 4]);
        }
      }
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 2; ++j) {
          right[i][j] = round_to_tf32(b[(8 * i + row) * F::row + column + j * 4]);
        }
      }
    }
    for (int i = 0; i < 2; ++i) {
      if (bug == kSwappedRegisters) {
        const uint32_t second = left[i][1];
        left[i][1] = left[i][2];
        left[i][2] = second;
      }
      for (int j = 0; j < 4; ++j) {
        multiply(sums[i][j], left[i], right[j], static_cast<const T*>(nullptr));
      }
    }
  }
}

// y (rows, columns) = a (rows, depth) b (columns, depth)^T, rows of a and b aligned to 16 bytes: a
// tile of 64 x 64 for each block, copied in two turns.
template <class T, Bug bug>
__global__ void __launch_bounds__(kThreads)
    product_kernel(float* y, const T* a, const T* b, int rows, int columns, int depth) {
  using F = Fragments<T>;
  constexpr int vector = 16 / sizeof(T);
  BLOCKOPS_SHARED(shared);
  T* tiles = reinterpret_cast<T*>(shared);  // [turn][a or b][row]
  const int first_row = blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

  const auto copy = [&](int turn, int k) {
    for (int i = threadIdx.x; i < 2 * kTile * F::tile_depth / vector; i += kThreads) {
      const int row = i / (F::tile_depth / vector), column = i % (F::tile_depth / vector) * vector;
      const bool is_b = row >= kTile;
      const int source_row = is_b ? first_column + row - kTile : first_row + row;
      const bool inside =
          source_row < (is_b ? columns : rows) && (k + column < depth || bug == kWrongTail);
      const T* source = is_b ? b : a;
      if (inside) source += static_cast<int64_t>(source_row) * depth + k + column;
      if (bug == kMisalignedCopy) source += 1;
      copy_async_16(tiles + (turn * 2 * kTile + row) * F::row + column, source, inside ? 16 : 0);
    }
    copy_async_commit();
  };

  float sums[2][4][4] = {};
  copy(0, 0);
  for (int k = 0, turn = 0; k < depth; k += F::tile_depth, turn ^= 1) {
    if (k + F::tile_depth < depth) {
      copy(turn ^ 1, k + F::tile_depth);
      if (bug != kNoWait) copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    if (bug != kNoBarrier) __syncthreads();
    const T* tile = tiles + turn * 2 * kTile * F::row;
    multiply_step<bug>(sums, tile + warp / 2 * 32 * F::row,
                       tile + (kTile + warp % 2 * 32) * F::row);
    if (bug != kNoBarrierBeforeReuse) __syncthreads();
  }

  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      for (int e = 0; e < 4; ++e) {
        const int row = first_row + warp / 2 * 32 + i * 16 + lane / 4 + e / 2 * 8;
        const int column = first_column + warp % 2 * 32 + j * 8 + lane % 4 * 2 + e % 2;
        const bool inside = row < rows && column < columns;
        if (inside || (bug == kStoreBeyond && row == rows && column < columns)) {
          y[static_cast<int64_t>(row) * columns + column] = sums[i][j][e];
        }
      }
    }
  }
}

// y[b] = the sum of row b of x (rows, columns): one block a row, and a partial sum for each warp.
template <class T, Bug bug>
__global__ void __launch_bounds__(kThreads) row_sums_kernel(Sum<T>* y, const T* x, int columns) {
  BLOCKOPS_SHARED(shared);
  auto* partial = reinterpret_cast<Sum<T>*>(shared);
  const T* row = x + static_cast<int64_t>(blockIdx.x) * columns;
  Sum<T> sum = 0;
  for (int j = threadIdx.x; j < columns; j += kThreads) sum += widen(row[j]);
  const bool half_mask = bug == kWrongMask && threadIdx.x % 32 == 5;
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(half_mask ? 0x0000ffffu : 0xffffffffu, sum, distance);
  }
  const int beyond = bug == kSharedBeyond ? 1 : 0;
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32 + beyond] = sum;
  if (bug != kNoBarrier && (bug != kDivergentBarrier || threadIdx.x < 33)) __syncthreads();
  if (bug == kDivergentBarrier) __syncwarp();
  if (threadIdx.x == 0) {
    sum = 0;
    for (int i = 0; i < kThreads / 32; ++i) sum += partial[i + beyond];
    y[bug == kSharedOutput ? 0 : blockIdx.x] = sum;
  }
}

// y = x - sum of x: partial sums by all blocks, then the difference. partial has a place a block.
template <Bug bug>
__global__ void __launch_bounds__(kThreads)
    subtract_sum_kernel(float* y, const float* x, float* partial, int64_t size) {
  BLOCKOPS_SHARED(shared);
  auto* sums = reinterpret_cast<float*>(shared);
  const int64_t first = blockIdx.x * kThreads + threadIdx.x, step = gridDim.x * kThreads;
  float sum = 0;
  for (int64_t i = first; i < size; i += step) sum += x[i];
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    sum = 0;
    for (int i = 0; i < kThreads; ++i) sum += sums[i];
    partial[blockIdx.x] = sum;
  }
  if (bug != kNoGridSync && (bug != kDivergentBarrier || blockIdx.x > 0)) grid_sync();
  sum = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
  for (int64_t i = first; i < size; i += step) y[i] = x[i] - sum;
}

// y = x reversed within each 4 elements, as vectors; what is left over one by one, and unchanged.
template <Bug bug>
__global__ void __launch_bounds__(kThreads) reverse_kernel(float* y, const float* x, int size) {
  const int i = (blockIdx.x * kThreads + threadIdx.x) * 4;
  if (i + 4 <= size || (bug == kStoreBeyond && i < size)) {
    const float4 v = *reinterpret_cast<const float4*>(x + i);
    *reinterpret_cast<float4*>(y + i) = make_float4(v.w, v.z, v.y, v.x);
  } else {
    for (int j = i; j < size - (bug == kWrongTail ? 1 : 0); ++j) y[j] = x[j];
  }
}

// y = x with the lanes of each warp reversed, through shared memory.
template <Bug bug>
__global__ void __launch_bounds__(kThreads) reverse_lanes_kernel(float* y, const float* x) {
  BLOCKOPS_SHARED(shared);
  auto* values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = x[threadIdx.x];
  if (bug == kNoSyncwarp) {
    __shfl_sync(~0u, 0, 0);  // brings the lanes together, but orders no memory
  } else {
    __syncwarp();
  }
  y[threadIdx.x] = values[threadIdx.x ^ 31];
}

}  // namespace blockops::samples
