// The product behind the forward pass and the gradients of the inputs: a weight seen as A slices of
// (D, C), each multiplied by the same vectors,
//
//   P_a[b, c] = sum_d v[b, d] W[a, d, c]
//
// and what is made of the products while they are in registers, either or both of
//
//   sums[b, c] = sum_a s[b, a] P_a[b, c]        dots[b, a] = sum_c P_a[b, c] t[b, c].
//
// Scaling the products, not the operands, keeps the Khatri-Rao product of s and v out of memory and
// is one multiply-add for D of them; and no operand is rounded a second time.
#pragma once
#include "bilinear/tile_product.cuh"

namespace blockops::device {

// Which (a, d, c) take part, for weights whose slots stand for pairs of features: those where the
// blocks of `block` features that two of the slots fall into are in order.
enum class Part {
  kAll,
  kDepthFromSlice,   // block(a) <= block(d)
  kSliceUpToColumn,  // block(a) <= block(c), a block being a tile of columns
  kDepthUpToColumn,  // block(d) <= block(c), likewise
};

template <class T>
struct Slices {
  int64_t B;
  int A, D, C;
  const T* v;  // (B, D), rows stride_v apart
  int64_t stride_v;
  const T* w;
  int64_t stride_a, stride_line;  // of w: of slices, and of the lines within one, which run
  bool depth_major;               // along c, each at one depth, or else along d
  const T* s;                     // (B, A), or null where no sums are wanted
  const T* t;                     // (B, C), or null where no dots are wanted
  const T* bias;                  // (C) or null; goes to out
  T* out;                         // (B, C): the sums, where there is one split and nothing to add
  Sum<T>* sums;                   // (splits, B, C): where there is not
  Sum<T>* dots;  // (slots, B, A): one slot for each warp that shares a row, of each tile of columns
  int splits;    // slices a = i, i + splits, ... are one part of the sums
  Part part = Part::kAll;
  int block = 1;  // with kDepthFromSlice: a multiple of the depth of a tile
  bool v_aligned = false, w_aligned = false;  // whether every line begins at a multiple of 16 bytes
};

constexpr int kStages(size_t element) { return element == 2 ? 3 : 2; }

// Copies (lines, line_length) from global memory, where lines are `stride` apart, to a tile; zeros
// where it ends before. Aligned lines go in asynchronous copies; the other way is for little work.
template <class TileShape, class T>
__device__ __forceinline__ void load_tile(T* tile, const T* from, int64_t stride, int64_t lines,
                                          int64_t line_length, bool aligned) {
  if (aligned) {
    constexpr int kVectors = TileShape::kLineLength / kVector<T>;
#pragma unroll 1
    for (int i = threadIdx.x; i < TileShape::kLines * kVectors; i += kThreads) {
      const int line = i / kVectors, at = i % kVectors * kVector<T>;
      const int64_t left = line < lines ? line_length - at : 0;
      const int valid = left <= 0 ? 0 : left < kVector<T> ? int(left) : kVector<T>;
      copy_async_16(tile + line * TileShape::kPitch + at, valid ? from + line * stride + at : from,
                    valid * int(sizeof(T)));
    }
  } else {
#pragma unroll 1
    for (int i = threadIdx.x; i < TileShape::kLines * TileShape::kLineLength; i += kThreads) {
      const int line = i / TileShape::kLineLength, at = i % TileShape::kLineLength;
      tile[line * TileShape::kPitch + at] =
          line < lines && at < line_length ? from[line * stride + at] : T(0.0f);
    }
  }
}

// One block's work: a tile of rows and columns, and the slices of one split.
template <class Product, class T, bool w_depth_major>
struct SlicesBlock {
  using VTile = Tile<T, Product::kRows, Product::kDepth, false>;
  using WTile = Tile<T, Product::kCols, Product::kDepth, w_depth_major>;
  static constexpr int kStageSize = VTile::kSize + WTile::kSize;
  static constexpr int kRing = kStages(sizeof(T));
  static constexpr int kTPitch = Product::kCols + 8;  // rows of a warp on different banks

  // Where the kernel stands: a slice and a depth.
  struct Step {
    int a, d;
  };

  const Slices<T>& p;
  int64_t b0, c0;
  int split, slot;
  int end_a, end_d;

  __device__ explicit SlicesBlock(const Slices<T>& params) : p(params) {
    const int64_t row_tiles = ceil_div(p.B, Product::kRows);
    const int64_t col_tiles = ceil_div(p.C, Product::kCols);
    const int64_t tile = blockIdx.x / row_tiles;
    b0 = blockIdx.x % row_tiles * Product::kRows;
    split = int(tile / col_tiles);
    const int col_tile = int(col_tiles - 1 - tile % col_tiles);  // those with most slices first
    c0 = int64_t(col_tile) * Product::kCols;
    slot = col_tile * Product::kColumnWarps + Product::column_warp();
    const int up_to_tile = int(p.C - c0 < Product::kCols ? p.C : c0 + Product::kCols);
    end_a = p.part == Part::kSliceUpToColumn && up_to_tile < p.A ? up_to_tile : p.A;
    end_d = p.part == Part::kDepthUpToColumn && up_to_tile < p.D ? up_to_tile : p.D;
  }

  __device__ __forceinline__ Step first(int a) const {
    return {a, p.part == Part::kDepthFromSlice ? a / p.block * p.block : 0};
  }
  __device__ __forceinline__ bool ends_slice(const Step& step) const {
    return step.d + Product::kDepth >= end_d;
  }
  __device__ __forceinline__ Step after(const Step& step) const {
    return ends_slice(step) ? first(step.a + p.splits) : Step{step.a, step.d + Product::kDepth};
  }

  __device__ __forceinline__ void load(const Step& step, T* stage) const {
    if (step.a < end_a) {
      load_tile<VTile>(stage, p.v + b0 * p.stride_v + step.d, p.stride_v, p.B - b0, end_d - step.d,
                       p.v_aligned);
      const T* const slice = p.w + step.a * p.stride_a;
      if (w_depth_major) {
        load_tile<WTile>(stage + VTile::kSize, slice + step.d * p.stride_line + c0, p.stride_line,
                         end_d - step.d, p.C - c0, p.w_aligned);
      } else {
        load_tile<WTile>(stage + VTile::kSize, slice + c0 * p.stride_line + step.d, p.stride_line,
                         p.C - c0, end_d - step.d, p.w_aligned);
      }
    }
    copy_async_commit();  // an empty group too: waiting counts groups
  }

  __device__ __forceinline__ void load_t(T* tile) const {
#pragma unroll 1
    for (int i = threadIdx.x; i < Product::kRows * Product::kCols; i += kThreads) {
      const int64_t row = i / Product::kCols, col = i % Product::kCols;
      tile[row * kTPitch + col] =
          b0 + row < p.B && c0 + col < p.C ? p.t[(b0 + row) * p.C + c0 + col] : T(0.0f);
    }
  }

  // The product of slice a is complete: into the sums and the dots.
  __device__ __forceinline__ void fold(int a, const typename Product::Sums& product,
                                       typename Product::Sums& sums, const T* t_tile) const {
#pragma unroll
    for (int r = 0; r < Product::kThreadRows; ++r) {
      const int row = Product::row_of(r);
      const bool inside = b0 + row < p.B;
      keep_reads_below();
      if (p.s) {
        const Sum<T> scale = inside ? widen(p.s[(b0 + row) * p.A + a]) : Sum<T>(0);
#pragma unroll
        for (int c = 0; c < Product::kThreadCols; ++c) sums[r][c] += scale * product[r][c];
      }
      if (p.t) {
        Sum<T> dot = 0;
#pragma unroll
        for (int c = 0; c < Product::kThreadCols; ++c) {
          const int col = Product::col_of(c);  // beyond C: 0, or NaN where v is infinite
          if (c0 + col < p.C) dot += product[r][c] * widen(t_tile[row * kTPitch + col]);
        }
        for (int lane = Product::kLanesPerRow / 2; lane > 0; lane /= 2) {
          dot += __shfl_xor_sync(~0u, dot, lane);
        }
        if (inside && threadIdx.x % Product::kLanesPerRow == 0) {
          p.dots[(slot * p.B + b0 + row) * p.A + a] = dot;
        }
      }
    }
  }

  __device__ __forceinline__ void store(const typename Product::Sums& sums) const {
#pragma unroll
    for (int r = 0; r < Product::kThreadRows; ++r)
#pragma unroll
      for (int c = 0; c < Product::kThreadCols; ++c) {
        const int64_t row = b0 + Product::row_of(r), col = c0 + Product::col_of(c);
        if (row >= p.B || col >= p.C) continue;
        if (p.out) {
          p.out[row * p.C + col] = narrow<T>(p.bias ? sums[r][c] + widen(p.bias[col]) : sums[r][c]);
        } else {
          p.sums[(split * p.B + row) * p.C + col] = sums[r][c];
        }
      }
  }

  __device__ __forceinline__ void run(T* shared) const {
    T* const t_tile = shared + kRing * kStageSize;
    if (p.t) load_t(t_tile);
    typename Product::Sums product, sums;
    clear<Product>(product);
    clear<Product>(sums);
    Step loading = first(split);
    for (int stage = 0; stage < kRing - 1; ++stage, loading = after(loading)) {
      load(loading, shared + stage * kStageSize);
    }
    int stage = 0, free = kRing - 1;
    for (Step step = first(split); step.a < end_a; step = after(step)) {
      copy_async_wait<kRing - 2>();
      __syncthreads();  // this stage is here, and all have left the one that is loaded next
      load(loading, shared + free * kStageSize);
      loading = after(loading);
      Product::template multiply_add<VTile, WTile>(product, shared + stage * kStageSize,
                                                   shared + stage * kStageSize + VTile::kSize);
      if (ends_slice(step)) {
        fold(step.a, product, sums, t_tile);
        clear<Product>(product);
      }
      stage = stage + 1 == kRing ? 0 : stage + 1;
      free = free + 1 == kRing ? 0 : free + 1;
    }
    if (p.s) store(sums);
  }
};

// With no number of blocks given the compiler spills registers to fit more of them.
template <class Product, class T, bool w_depth_major>
__global__ void __launch_bounds__(kThreads, 2) slices_kernel(Slices<T> params) {
  BLOCKOPS_SHARED(shared);
  SlicesBlock<Product, T, w_depth_major>(params).run(reinterpret_cast<T*>(shared));
}

template <class Product, class T, bool w_depth_major>
cudaError_t launch_slices(const Slices<T>& params, cudaStream_t stream) {
  using Block = SlicesBlock<Product, T, w_depth_major>;
  const int64_t blocks =
      ceil_div(params.B, Product::kRows) * ceil_div(params.C, Product::kCols) * params.splits;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const int t_size = params.t ? Product::kRows * Block::kTPitch : 0;
  const size_t shared = (Block::kRing * Block::kStageSize + t_size) * sizeof(T);
  return launch(slices_kernel<Product, T, w_depth_major>, dim3(unsigned(blocks)), dim3(kThreads),
                shared, stream, params);
}

}  // namespace blockops::device
