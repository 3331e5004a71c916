// linear_relu on the GPU: the kernels for little work, which do all of it in one launch, and the
// pass over grad and y that stands before the products of the backward pass.
//
// Sums have a fixed order: chains of terms in the lanes, then over lanes, warps and blocks, each in
// their order. NaN stays: whatever is not <= 0 passes ReLU, and lets the gradient pass.
#pragma once
#include <algorithm>

#include "core/device.h"
#include "linear_relu/linear_relu_launch.h"

namespace blockops::device::linear_relu {

constexpr int kWarps = 8;  // of a block
constexpr int kThreads = 32 * kWarps;
constexpr int kBatch = 4;  // terms of a sum that a lane reads at once
// Blocks that a multiprocessor has to hold. Where it is said, the compiler spends registers on
// reads that are under way at once.
constexpr int kMinBlocks = 1;

// Neighbours in memory, read and written at once.
template <class T, int kWidth>
struct alignas(kWidth * sizeof(T)) Pack {
  T values[kWidth];
};

// The elements in 16 bytes.
template <class T>
constexpr int kWidest = 16 / sizeof(T);

// Whether the rows of matrices of so many columns are made of packs of 16 bytes.
template <class T, class... Pointers>
bool are_packs(int64_t columns, Pointers... matrices) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return columns % kWidest<T> == 0 && (aligned(matrices) && ...);
}

template <class S>
__device__ __forceinline__ S relu(S z) {
  return z <= 0 ? S(0) : z;
}

// An element of grad_z.
template <class T>
__device__ __forceinline__ T masked(T grad, T y) {
  return widen(y) <= 0 ? T{} : grad;
}

// ---- forward, little work: a tile of rows and outputs for each warp, or for a few of them ----

constexpr int kOutputs = 2;          // of a tile
constexpr int kFillingWarps = 4096;  // about as many as a GPU holds

// Adds kCount sums over the lanes of a warp; kCount a power of two up to 32. Each lane returns one
// total, of sum number lane * kCount / 32: at each distance it gives away half of its sums.
template <int kDistance = 16, int kCount, class S>
__device__ __forceinline__ S sum_over_lanes(S (&sums)[kCount], int lane) {
  constexpr int kHalf = kCount * kDistance / 32;
  const bool upper = lane & kDistance;
#pragma unroll
  for (int i = 0; i < kHalf; ++i) {
    const S low = sums[i], high = sums[i + kHalf];
    sums[i] = (upper ? high : low) + __shfl_xor_sync(~0u, upper ? low : high, kDistance);
  }
  if constexpr (kHalf == 0) sums[0] += __shfl_xor_sync(~0u, sums[0], kDistance);
  if constexpr (kDistance > 1) return sum_over_lanes<kDistance / 2>(sums, lane);
  return sums[0];
}

// sums += x W^T over packs first, first + step, ... of n. What lies beyond the tile's last row or
// output repeats it.
template <class T, int kRows, int kWidth>
__device__ __forceinline__ void add_products(const Forward<T>& p, int64_t row, int64_t output,
                                             int first, int step,
                                             Sum<T> (&sums)[kRows * kOutputs]) {
  using Features = Pack<T, kWidth>;
  const int64_t packs = p.n / kWidth;
  const auto* const x = reinterpret_cast<const Features*>(p.x);
  const auto* const weight = reinterpret_cast<const Features*>(p.weight);
  for (int64_t i = first; i < packs; i += step) {
    Features w[kOutputs], xs[kRows];
#pragma unroll
    for (int k = 0; k < kOutputs; ++k) w[k] = weight[min(output + k, p.m - 1) * packs + i];
#pragma unroll
    for (int r = 0; r < kRows; ++r) xs[r] = x[min(row + r, p.B - 1) * packs + i];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int k = 0; k < kOutputs; ++k) {
        Sum<T> sum = 0;  // of its own: that makes the chain of `sums` shorter
#pragma unroll
        for (int e = 0; e < kWidth; ++e) sum += widen(xs[r].values[e]) * widen(w[k].values[e]);
        sums[r * kOutputs + k] += sum;
      }
    }
  }
}

// `split` warps of a block share the sums of a tile, each a part of n.
template <class T, int kRows, int kWidth>
__global__ void __launch_bounds__(kThreads, kMinBlocks) forward_kernel(Forward<T> p, int split) {
  constexpr int kTile = kRows * kOutputs;
  BLOCKOPS_SHARED(memory);
  auto* const totals = reinterpret_cast<Sum<T>*>(memory);  // (kWarps, kTile)
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t output_tiles = ceil_div(p.m, kOutputs);
  const int64_t first_tile = int64_t(blockIdx.x) * (kWarps / split);
  {
    const int64_t tile = first_tile + warp / split;
    const int64_t row = tile / output_tiles * kRows;
    Sum<T> sums[kTile] = {};
    if (row < p.B) {
      add_products<T, kRows, kWidth>(p, row, tile % output_tiles * kOutputs,
                                     warp % split * 32 + lane, split * 32, sums);
    }
    const Sum<T> total = sum_over_lanes(sums, lane);
    if (lane % (32 / kTile) == 0) totals[warp * kTile + lane * kTile / 32] = total;
  }
  __syncthreads();
  const int place = threadIdx.x / kTile, element = threadIdx.x % kTile;
  const int64_t tile = first_tile + place;
  const int64_t row = tile / output_tiles * kRows + element / kOutputs;
  const int64_t k = tile % output_tiles * kOutputs + element % kOutputs;
  if (place >= kWarps / split || row >= p.B || k >= p.m) return;
  Sum<T> z = p.bias ? widen(p.bias[k]) : Sum<T>(0);
  for (int part = 0; part < split; ++part) z += totals[(place * split + part) * kTile + element];
  p.y[row * p.m + k] = narrow<T>(relu(z));
}

template <class T, int kRows, int kWidth>
cudaError_t launch_forward_tiles(const Forward<T>& p, cudaStream_t stream) {
  const int64_t tiles = ceil_div(p.B, kRows) * ceil_div(p.m, kOutputs);
  if (tiles == 0) return cudaSuccess;
  int split = 1;
  while (split < kWarps && tiles * split < kFillingWarps && p.n > split * 32 * kWidth) split *= 2;
  return launch(forward_kernel<T, kRows, kWidth>, dim3(ceil_div(tiles, kWarps / split)),
                dim3(kThreads), kWarps * kRows * kOutputs * sizeof(Sum<T>), stream, p, split);
}

template <class T, int kRows>
cudaError_t launch_forward_rows(const Forward<T>& p, cudaStream_t stream) {
  return are_packs<T>(p.n, p.x, p.weight) ? launch_forward_tiles<T, kRows, kWidest<T>>(p, stream)
                                          : launch_forward_tiles<T, kRows, 1>(p, stream);
}

template <class T>
cudaError_t launch_forward(const Forward<T>& p, cudaStream_t stream) {
  return p.B <= 4 ? launch_forward_rows<T, 4>(p, stream) : launch_forward_rows<T, 16>(p, stream);
}

// ---- backward, little work: three products with grad_z in one launch ----

constexpr int kTileRows = 4;     // of a tile; its columns are 64
constexpr int kLaneColumns = 2;  // 32 apart
constexpr int kTileSums = kTileRows * kLaneColumns;

// out (rows, columns) = G F. G (rows, terms) is grad_z or its transpose, F (terms, columns) the
// weight for grad_x, x for grad_weight, and for grad_bias one column of ones.
template <class T>
struct Product {
  int rows = 0, terms = 0, columns = 1, row_stride = 0, term_stride = 0;  // the strides of G
  const T* F = nullptr;
  T* out = nullptr;
  bool ones = false;  // whether F, whatever it holds, is taken for ones
};

template <class T>
struct Products {
  const T *grad, *y;
  Product<T> of[3];
};

// How many warps share the terms of a tile.
inline __host__ __device__ int warps_for(int terms) {
  int split = 1;
  while (split < kWarps && terms > 16 * split) split *= 2;
  return split;
}

// sums += G F over every `step`th term from `first` on. What lies beyond the tile's last row or
// column repeats it.
template <class T>
__device__ __forceinline__ void add_masked_products(const T* grad, const T* y, const Product<T>& p,
                                                    int row, int column, int first, int step,
                                                    Sum<T> (&sums)[kTileSums]) {
  for (int term = first; term < p.terms; term += step * kBatch) {
    Sum<T> factors[kBatch][kLaneColumns], g[kBatch][kTileRows];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int own_term = term + i * step;
      const bool exists = own_term < p.terms;
#pragma unroll
      for (int c = 0; c < kLaneColumns; ++c) {
        const int at = own_term * p.columns + min(column + 32 * c, p.columns - 1);
        const Sum<T> factor = exists ? widen(p.F[at]) : Sum<T>(0);
        factors[i][c] = p.ones ? Sum<T>(1) : factor;
      }
#pragma unroll
      for (int r = 0; r < kTileRows; ++r) {
        const int at = min(row + r, p.rows - 1) * p.row_stride + own_term * p.term_stride;
        g[i][r] = exists ? widen(masked(grad[at], y[at])) : Sum<T>(0);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
#pragma unroll
      for (int s = 0; s < kTileSums; ++s) {
        sums[s] += g[i][s / kLaneColumns] * factors[i][s % kLaneColumns];
      }
    }
  }
}

// blockIdx.y names the product.
template <class T>
__global__ void __launch_bounds__(kThreads, kMinBlocks) gradients_kernel(Products<T> all) {
  BLOCKOPS_SHARED(memory);
  auto* const totals = reinterpret_cast<Sum<T>*>(memory);  // (kWarps, kTileSums, 32)
  const Product<T> p = all.of[blockIdx.y];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int split = warps_for(p.terms), part = warp % split;
  const int column_tiles = ceil_div(p.columns, 32 * kLaneColumns);
  const int tile = blockIdx.x * (kWarps / split) + warp / split;
  const int row = tile / column_tiles * kTileRows;
  const int column = tile % column_tiles * 32 * kLaneColumns + lane;
  Sum<T> sums[kTileSums] = {};
  if (row < p.rows) {
    add_masked_products(all.grad, all.y, p, row, column, part, split, sums);
  }
#pragma unroll
  for (int i = 0; i < kTileSums; ++i) totals[(warp * kTileSums + i) * 32 + lane] = sums[i];
  __syncthreads();
  for (int i = part; i < kTileSums; i += split) {  // the warps of a tile share its results, too
    const int own_row = row + i / kLaneColumns, own_column = column + i % kLaneColumns * 32;
    if (own_row >= p.rows || own_column >= p.columns) continue;
    Sum<T> total = 0;
    for (int other = warp - part; other < warp - part + split; ++other) {
      total += totals[(other * kTileSums + i) * 32 + lane];
    }
    p.out[own_row * p.columns + own_column] = narrow<T>(total);
  }
}

template <class T>
cudaError_t launch_gradients(const Gradients<T>& p, cudaStream_t stream) {
  Products<T> all = {p.grad, p.y, {}};
  if (p.grad_x && p.n > 0) all.of[0] = {p.B, p.m, p.n, p.m, 1, p.weight, p.grad_x};
  if (p.grad_weight && p.n > 0) all.of[1] = {p.m, p.B, p.n, 1, p.m, p.x, p.grad_weight};
  if (p.grad_bias) all.of[2] = {p.m, p.B, 1, 1, p.m, p.grad, p.grad_bias, true};
  int64_t blocks = 0;
  for (const auto& product : all.of) {
    const int64_t tiles =
        ceil_div(product.rows, kTileRows) * ceil_div(product.columns, 32 * kLaneColumns);
    blocks = std::max(blocks, ceil_div(tiles, kWarps / warps_for(product.terms)));
  }
  if (blocks == 0) return cudaSuccess;
  return launch(gradients_kernel<T>, dim3(blocks, 3), dim3(kThreads),
                kThreads * kTileSums * sizeof(Sum<T>), stream, all);
}

// ---- backward, around ATen's products: grad_z and grad_bias in one pass over grad and y ----

constexpr int kSumWarps = 32;  // of the block that adds the sums of parts

// A block takes the rows of one part, a warp every kWarps-th of them, a lane kWidth columns.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads, kMinBlocks) mask_kernel(Mask<T> p, int64_t part_rows) {
  using Columns = Pack<T, kWidth>;
  BLOCKOPS_SHARED(memory);
  auto* const totals = reinterpret_cast<double*>(memory);  // (kWarps, 32 * kWidth)
  const auto* const grad = reinterpret_cast<const Columns*>(p.grad);
  const auto* const y = reinterpret_cast<const Columns*>(p.y);
  auto* const grad_z = reinterpret_cast<Columns*>(p.grad_z);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t packs = p.m / kWidth, groups = ceil_div(packs, 32);
  const int64_t part = blockIdx.x / groups, first_column = blockIdx.x % groups * 32 * kWidth;
  const int64_t pack = blockIdx.x % groups * 32 + lane;
  const int64_t end = pack < packs ? min((part + 1) * part_rows, p.B) : 0;
  double sums[kWidth] = {};
  for (int64_t row = part * part_rows + warp; row < end; row += kWarps * kBatch) {
    Columns grads[kBatch], ys[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t at = min(row + i * kWarps, end - 1) * packs + pack;
      grads[i] = grad[at];
      ys[i] = y[at];
    }
    Sum<T> batch[kWidth] = {};  // short chains in float; double would be slow on some GPUs
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      if (row + i * kWarps >= end) break;
      Columns result;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        result.values[e] = masked(grads[i].values[e], ys[i].values[e]);
        batch[e] += widen(result.values[e]);
      }
      grad_z[(row + i * kWarps) * packs + pack] = result;
    }
#pragma unroll
    for (int e = 0; e < kWidth; ++e) sums[e] += batch[e];
  }
  if (!p.grad_bias) return;
#pragma unroll
  for (int e = 0; e < kWidth; ++e) totals[(warp * 32 + lane) * kWidth + e] = sums[e];
  __syncthreads();
  const int64_t own_column = first_column + threadIdx.x;
  if (threadIdx.x >= 32 * kWidth || own_column >= p.m) return;
  double total = 0;
  for (int i = 0; i < kWarps; ++i) total += totals[i * 32 * kWidth + threadIdx.x];
  p.sums[part * p.m + own_column] = total;
}

// grad_bias: the sums of all parts, 32 columns a block.
template <class T>
__global__ void __launch_bounds__(32 * kSumWarps) add_parts_kernel(Mask<T> p, int64_t parts) {
  BLOCKOPS_SHARED(memory);
  auto* const totals = reinterpret_cast<double*>(memory);  // (kSumWarps, 32)
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t column = int64_t(blockIdx.x) * 32 + lane;
  double sum = 0;
  if (column < p.m) {
#pragma unroll 8
    for (int64_t part = warp; part < parts; part += kSumWarps) sum += p.sums[part * p.m + column];
  }
  totals[threadIdx.x] = sum;
  __syncthreads();
  if (warp > 0 || column >= p.m) return;
  double total = 0;
  for (int i = 0; i < kSumWarps; ++i) total += totals[i * 32 + lane];
  p.grad_bias[column] = narrow<T>(static_cast<Sum<T>>(total));
}

template <class T, int kWidth>
cudaError_t launch_mask_columns(const Mask<T>& p, const RowParts& parts, cudaStream_t stream) {
  const int64_t blocks = parts.count * ceil_div(p.m, 32 * kWidth);
  if (blocks == 0) return cudaSuccess;
  return launch(mask_kernel<T, kWidth>, dim3(blocks), dim3(kThreads),
                kThreads * kWidth * sizeof(double), stream, p, parts.rows);
}

template <class T>
cudaError_t launch_mask(const Mask<T>& p, cudaStream_t stream) {
  const RowParts parts(p.B, p.m);
  const auto error = are_packs<T>(p.m, p.grad, p.y, p.grad_z)
                         ? launch_mask_columns<T, kWidest<T>>(p, parts, stream)
                         : launch_mask_columns<T, 1>(p, parts, stream);
  if (error || !p.grad_bias || p.m == 0) return error;
  return launch(add_parts_kernel<T>, dim3(ceil_div(p.m, 32)), dim3(32 * kSumWarps),
                32 * kSumWarps * sizeof(double), stream, p, parts.count);
}

}  // namespace blockops::device::linear_relu
