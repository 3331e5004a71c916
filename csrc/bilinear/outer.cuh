// The product behind the gradient of the weight: a sum over the batch of outer products,
//
//   G[i, j, k] = sum_b p[b, i] q[b, j] r[b, k].
//
// One operand is the Khatri-Rao product of p and q, built tile by tile in shared memory: a tile of
// pairs is i_count features i by j_count features j. Where p is q the sums are symmetric in i and
// j: tiles above the diagonal are computed, and written twice.
#pragma once
#include "bilinear/tile_product.cuh"

namespace blockops::device {

template <class T>
struct Outer {
  int64_t B;
  int I, J, K;
  const T *p, *q, *r;  // (B, I), (B, J), (B, K)
  bool symmetric;
  int64_t stride_i, stride_j, stride_k;  // of the result
  T* out;                                // where there is one split
  Sum<T>* sums;                          // (splits, I * J * K) where there is not
  int splits;                            // parts of the batch
};

// Tiles after which the product is added to the sums: rounding in one long chain would cost digits,
// most of all on tensor cores, which round towards zero.
constexpr int kFold = 16;

template <class Product, class T, int i_count>
struct OuterBlock {
  using Element = typename Product::Element;
  using PairTile = Tile<Element, Product::kRows, Product::kDepth, true>;
  using RTile = Tile<Element, Product::kCols, Product::kDepth, true>;
  static constexpr int kDepth = Product::kDepth, kPairs = Product::kRows;
  static constexpr int j_count = kPairs / i_count;
  // Pairs of one i and consecutive j that a thread builds at a time.
  static constexpr int kRun = kVector<Element>;
  static_assert(j_count % kRun == 0, "a run of pairs has one i");
  // A line of the features of a tile of pairs: those of j, and those of i, of which there may be
  // fewer than there is room for.
  static constexpr int kRoomForI = 8;
  static_assert(i_count <= kRoomForI);
  static constexpr int kFeatures = j_count + kRoomForI;
  static constexpr int kSharedSize = PairTile::kSize + RTile::kSize + kFeatures * kDepth;

  const Outer<T>& o;
  int i0, j0, k0, split;
  int64_t begin, end;  // of the batch

  __device__ explicit OuterBlock(const Outer<T>& params) : o(params) {
    const int64_t i_tiles = ceil_div(o.I, i_count), j_tiles = ceil_div(o.J, j_count);
    const int64_t k_tiles = ceil_div(o.K, Product::kCols);
    int64_t tile = blockIdx.x;
    i0 = int(tile % i_tiles) * i_count, tile /= i_tiles;
    j0 = int(tile % j_tiles) * j_count, tile /= j_tiles;
    k0 = int(tile % k_tiles) * Product::kCols;
    split = int(tile / k_tiles);
    const int64_t rows = ceil_div(ceil_div(o.B, o.splits), kDepth) * kDepth;
    begin = split * rows;
    end = begin + rows < o.B ? begin + rows : o.B;
  }

  __device__ __forceinline__ bool below_diagonal() const {
    return o.symmetric && i0 >= j0 + j_count;
  }

  // Elements of (kDepth, width), of which each thread holds some in registers: it stands in one
  // column, and goes down.
  template <int width>
  struct Columns {
    static_assert(kThreads % width == 0);
    static constexpr int kStep = kThreads / width;
    static constexpr int kLoads = (kDepth + kStep - 1) / kStep;
    T value[kLoads];

    // From rows b0 and columns `first` on of (B, count); zeros outside.
    __device__ __forceinline__ void fetch(const T* from, int first, int count, int64_t b0,
                                          int64_t end) {
      const int col = first + threadIdx.x % width;
      const int64_t row = b0 + threadIdx.x / width;
      const T* at = from + row * count + col;
#pragma unroll
      for (int load = 0; load < kLoads; ++load, at += int64_t(kStep) * count) {
        value[load] = col < count && row + load * kStep < end ? *at : T(0.0f);
      }
    }
    __device__ __forceinline__ void put(Element* to, int pitch) const {
      const int row = threadIdx.x / width;
#pragma unroll
      for (int load = 0; load < kLoads; ++load) {
        if (row + load * kStep >= kDepth) break;
        to[(row + load * kStep) * pitch + threadIdx.x % width] =
            narrow<Element>(widen(value[load]));
      }
    }
  };
  struct Fetched {
    Columns<i_count> i;
    Columns<j_count> j;
    Columns<Product::kCols> k;
  };

  __device__ __forceinline__ void fetch(int64_t b0, Fetched& fetched) const {
    fetched.i.fetch(o.p, i0, o.I, b0, end);
    fetched.j.fetch(o.q, j0, o.J, b0, end);
    fetched.k.fetch(o.r, k0, o.K, b0, end);
  }
  __device__ __forceinline__ void put(const Fetched& fetched, Element* r_tile,
                                      Element* features) const {
    fetched.j.put(features, kFeatures);
    fetched.i.put(features + j_count, kFeatures);
    fetched.k.put(r_tile, RTile::kPitch);
  }

  // The tile of the Khatri-Rao product, from the features in shared memory.
  __device__ __forceinline__ void build(const Element* features, Element* pairs) const {
    using Run = Vector<Element>;
    constexpr int kRuns = kPairs / kRun;
#pragma unroll 2
    for (int run = threadIdx.x; run < kRuns * kDepth; run += kThreads) {
      const int d = run / kRuns, pair = run % kRuns * kRun;
      const Element* const line = features + d * kFeatures;
      const auto left = widen(line[j_count + pair / j_count]);
      Run products = *reinterpret_cast<const Run*>(line + pair % j_count);
#pragma unroll
      for (int u = 0; u < kRun; ++u) {
        products.value[u] = narrow<Element>(left * widen(products.value[u]));
      }
      *reinterpret_cast<Run*>(pairs + PairTile::at(pair, d)) = products;
    }
  }

  __device__ __forceinline__ void write(int i, int j, int k, Sum<T> sum) const {
    const int64_t at = i * o.stride_i + j * o.stride_j + k * o.stride_k;
    if (o.out) {
      o.out[at] = narrow<T>(sum);
    } else {
      o.sums[int64_t(split) * o.I * o.J * o.K + at] = sum;
    }
  }

  __device__ __forceinline__ void store(const typename Product::Sums& sums) const {
#pragma unroll
    for (int r = 0; r < Product::kThreadRows; ++r) {
      const int pair = Product::row_of(r);
      const int i = i0 + pair / j_count, j = j0 + pair % j_count;
      if (i >= o.I || j >= o.J || (o.symmetric && i > j)) continue;
#pragma unroll
      for (int c = 0; c < Product::kThreadCols; ++c) {
        const int k = k0 + Product::col_of(c);
        if (k >= o.K) continue;
        write(i, j, k, sums[r][c]);
        if (o.symmetric && i < j) write(j, i, k, sums[r][c]);
      }
    }
  }

  __device__ __forceinline__ void run(Element* shared) const {
    if (below_diagonal()) return;
    Element* const pairs = shared;
    Element* const r_tile = pairs + PairTile::kSize;
    Element* const features = r_tile + RTile::kSize;
    typename Product::Sums product, sums;
    clear<Product>(product);
    clear<Product>(sums);
    Fetched fetched;
    fetch(begin, fetched);
    int in_product = 0;
    for (int64_t b0 = begin; b0 < end; b0 += kDepth) {
      put(fetched, r_tile, features);
      __syncthreads();
      build(features, pairs);
      fetch(b0 + kDepth, fetched);
      __syncthreads();
      Product::template multiply_add<PairTile, RTile>(product, pairs, r_tile);
      if (++in_product == kFold || b0 + kDepth >= end) {
        add<Product>(product, sums);
        clear<Product>(product);
        in_product = 0;
      }
      __syncthreads();  // all have read the tiles
    }
    store(sums);
  }
};

template <class Product, class T, int i_count>
__global__ void __launch_bounds__(kThreads) outer_kernel(Outer<T> params) {
  BLOCKOPS_SHARED(shared);
  OuterBlock<Product, T, i_count>(params).run(reinterpret_cast<typename Product::Element*>(shared));
}

template <class Product, int i_count, class T>
int64_t outer_tiles(const Outer<T>& params) {
  return ceil_div(params.I, i_count) * ceil_div(params.J, Product::kRows / i_count) *
         ceil_div(params.K, Product::kCols);
}

template <class Product, int i_count, class T>
cudaError_t launch_outer(const Outer<T>& params, cudaStream_t stream) {
  const int64_t blocks = outer_tiles<Product, i_count>(params) * params.splits;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  const size_t shared =
      OuterBlock<Product, T, i_count>::kSharedSize * sizeof(typename Product::Element);
  return launch(outer_kernel<Product, T, i_count>, dim3(unsigned(blocks)), dim3(kThreads), shared,
                stream, params);
}

}  // namespace blockops::device
