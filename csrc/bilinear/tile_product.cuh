// The product of two tiles in shared memory, by the threads of one block: on tensor cores, or in
// plain multiply-adds. Each thread keeps kThreadRows x kThreadCols elements of the result in its
// registers; row_of and col_of say which.
//
// On tensor cores an instruction computes a (16, k) times (k, 8) product in a warp; which lane
// holds which element is described in the PTX ISA, "Matrix Fragments for mma.m16n8k16" and
// "m16n8k8".
#pragma once
#include "core/device.h"
#include "core/numbers.h"

namespace blockops::device {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

// 16 bytes of elements, which one instruction moves.
template <class T>
constexpr int kVector = 16 / int(sizeof(T));
template <class T>
struct alignas(16) Vector {
  T value[kVector<T>];
};

// The compiler moves no read of memory up past it: where loops are unrolled, values read far ahead
// take registers that are not there.
__device__ __forceinline__ void keep_reads_below() { asm volatile("" ::: "memory"); }

// An operand of a tile product, extent x depth, in shared memory: in lines along the depth, or
// depth-major, in lines along the extent. The padding keeps a warp's reads on different banks, and
// lines aligned to 16 bytes.
template <class T, int extent, int depth, bool depth_major>
struct Tile {
  static constexpr bool kDepthMajor = depth_major;
  static constexpr int kLines = depth_major ? depth : extent;
  static constexpr int kLineLength = depth_major ? extent : depth;
  static constexpr int kPadding = (sizeof(T) == 4 && depth_major ? 32 : 16) / int(sizeof(T));
  static constexpr int kPitch = kLineLength + kPadding;
  static constexpr int kSize = kLines * kPitch;
  static __device__ __forceinline__ int at(int e, int d) {
    return depth_major ? d * kPitch + e : e * kPitch + d;
  }
};

// In plain multiply-adds: for the element types that tensor cores lack, or round.
template <class T, int rows, int cols>
struct PlainProduct {
  using Element = T;
  static constexpr int kRows = rows, kCols = cols, kDepth = 16;
  static constexpr int kLanesPerRow = 8, kColumnWarps = 1;
  static constexpr int kRowStep = kThreads / kLanesPerRow;
  static constexpr int kThreadRows = rows / kRowStep, kThreadCols = cols / kLanesPerRow;
  using Sums = T[kThreadRows][kThreadCols];

  static __device__ __forceinline__ int row_of(int r) {
    return r * kRowStep + threadIdx.x / kLanesPerRow;
  }
  static __device__ __forceinline__ int col_of(int c) {
    return c * kLanesPerRow + threadIdx.x % kLanesPerRow;
  }
  static __device__ __forceinline__ int column_warp() { return 0; }

  template <class ATile, class BTile>
  static __device__ __forceinline__ void multiply_add(Sums& sums, const T* a, const T* b) {
#pragma unroll 1
    for (int d = 0; d < kDepth; ++d) {
      T column[kThreadRows], row[kThreadCols];
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r) column[r] = a[ATile::at(row_of(r), d)];
#pragma unroll
      for (int c = 0; c < kThreadCols; ++c) row[c] = b[BTile::at(col_of(c), d)];
#pragma unroll
      for (int r = 0; r < kThreadRows; ++r)
#pragma unroll
        for (int c = 0; c < kThreadCols; ++c) sums[r][c] += column[r] * row[c];
    }
  }
};

// How each element type reaches the tensor cores: `step` terms of the sums an instruction.
template <class T>
struct TensorCore;

// 16-bit types share their way of loading: an instruction for four 8x8 matrices, which transposes
// where the tile is depth-major.
template <class T>
struct TensorCore16 {
  static constexpr int kStep = 16;

  // (16, 16) of a, from row e and depth d on.
  template <class ATile>
  static __device__ __forceinline__ void load_a(uint32_t (&out)[4], const T* a, int e, int d) {
    const int lane = threadIdx.x % 32;
    if (ATile::kDepthMajor) {
      const int row = lane / 8 % 2 * 8, depth = lane / 16 * 8 + lane % 8;
      load_matrices_transposed(out, a + ATile::at(e + row, d + depth));
    } else {
      load_matrices(out, a + ATile::at(e + lane % 16, d + lane / 16 * 8));
    }
  }
  // Two (16, 8) side by side of b, from column e and depth d on.
  template <class BTile>
  static __device__ __forceinline__ void load_b(uint32_t (&left)[2], uint32_t (&right)[2],
                                                const T* b, int e, int d) {
    const int lane = threadIdx.x % 32;
    uint32_t both[4];
    if (BTile::kDepthMajor) {
      const int col = lane / 16 * 8, depth = lane / 8 % 2 * 8 + lane % 8;
      load_matrices_transposed(both, b + BTile::at(e + col, d + depth));
    } else {
      const int col = lane / 16 * 8 + lane % 8, depth = lane / 8 % 2 * 8;
      load_matrices(both, b + BTile::at(e + col, d + depth));
    }
    left[0] = both[0], left[1] = both[1], right[0] = both[2], right[1] = both[3];
  }
};

template <>
struct TensorCore<BFloat16> : TensorCore16<BFloat16> {
  static __device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4],
                                                      const uint32_t (&b)[2]) {
    mma_bf16(d, a, b);
  }
};

template <>
struct TensorCore<Half> : TensorCore16<Half> {
  static __device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4],
                                                      const uint32_t (&b)[2]) {
    mma_f16(d, a, b);
  }
};

// float32 rounded to TF32 on its way into the registers: the tensor core itself would cut it off.
template <>
struct TensorCore<float> {
  static constexpr int kStep = 8;

  template <class ATile>
  static __device__ __forceinline__ void load_a(uint32_t (&out)[4], const float* a, int e, int d) {
    const int group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[i] = round_to_tf32(a[ATile::at(e + group + i % 2 * 8, d + member + i / 2 * 4)]);
    }
  }
  template <class BTile>
  static __device__ __forceinline__ void load_b(uint32_t (&left)[2], uint32_t (&right)[2],
                                                const float* b, int e, int d) {
    const int group = threadIdx.x % 32 / 4, member = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      left[i] = round_to_tf32(b[BTile::at(e + group, d + member + i * 4)]);
      right[i] = round_to_tf32(b[BTile::at(e + 8 + group, d + member + i * 4)]);
    }
  }
  static __device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4],
                                                      const uint32_t (&b)[2]) {
    mma_tf32(d, a, b);
  }
};

// Few rows share their warps out along the columns.
template <class T, int rows, int cols>
struct TensorCoreProduct {
  using Element = T;
  using Core = TensorCore<T>;
  static constexpr int kRows = rows, kCols = cols, kDepth = 32;
  static constexpr int kWarpRows = 32, kColumnWarps = kWarps * kWarpRows / rows;
  static constexpr int kWarpCols = cols / kColumnWarps;
  static constexpr int kLanesPerRow = 4;
  static constexpr int kThreadRows = kWarpRows / 8, kThreadCols = kWarpCols / 4;
  using Sums = float[kThreadRows][kThreadCols];

  static __device__ __forceinline__ int column_warp() { return threadIdx.x / 32 % kColumnWarps; }
  static __device__ __forceinline__ int warp_row() {
    return threadIdx.x / 32 / kColumnWarps * kWarpRows;
  }
  static __device__ __forceinline__ int row_of(int r) {
    return warp_row() + r * 8 + threadIdx.x % 32 / 4;
  }
  static __device__ __forceinline__ int col_of(int c) {
    return column_warp() * kWarpCols + c / 2 * 8 + threadIdx.x % 4 * 2 + c % 2;
  }

  template <class ATile, class BTile>
  static __device__ __forceinline__ void multiply_add(Sums& sums, const T* a, const T* b) {
#pragma unroll
    for (int d = 0; d < kDepth; d += Core::kStep) {
      uint32_t a_part[kThreadRows / 2][4], b_part[kThreadCols / 2][2];
#pragma unroll
      for (int r = 0; r < kThreadRows; r += 2) {
        Core::template load_a<ATile>(a_part[r / 2], a, warp_row() + r * 8, d);
      }
#pragma unroll
      for (int c = 0; c < kThreadCols; c += 4) {
        Core::template load_b<BTile>(b_part[c / 2], b_part[c / 2 + 1], b,
                                     column_warp() * kWarpCols + c * 4, d);
      }
#pragma unroll
      for (int r = 0; r < kThreadRows; r += 2)
#pragma unroll
        for (int c = 0; c < kThreadCols; c += 2) {
          float d4[4] = {sums[r][c], sums[r][c + 1], sums[r + 1][c], sums[r + 1][c + 1]};
          Core::multiply_add(d4, a_part[r / 2], b_part[c / 2]);
          sums[r][c] = d4[0], sums[r][c + 1] = d4[1];
          sums[r + 1][c] = d4[2], sums[r + 1][c + 1] = d4[3];
        }
    }
  }
};

template <class Product>
__device__ __forceinline__ void clear(typename Product::Sums& sums) {
#pragma unroll
  for (int r = 0; r < Product::kThreadRows; ++r)
#pragma unroll
    for (int c = 0; c < Product::kThreadCols; ++c) sums[r][c] = 0;
}

template <class Product>
__device__ __forceinline__ void add(const typename Product::Sums& from,
                                    typename Product::Sums& to) {
#pragma unroll
  for (int r = 0; r < Product::kThreadRows; ++r)
#pragma unroll
    for (int c = 0; c < Product::kThreadCols; ++c) to[r][c] += from[r][c];
}

}  // namespace blockops::device
