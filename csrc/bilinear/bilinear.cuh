// quadratic and bilinear on the GPU: which products of slices.cuh and outer.cuh each pass is made
// of, and the two small kernels around them.
//
// The schedules, by the number of outputs m:
//   wide     forward: slices i of W, (j, k); their products, scaled by x_i, are summed to y.
//            grad of inputs: slices i, (k, j), of vectors grad: scaled by x1_i they sum to grad_x2,
//            and their dot products with x2 are grad_x1: one product serves both.
//   narrow   (m <= 16, where m would fill a part of a tile) forward: slices k, (i, j), whose dot
//            products with x2 are y. grad of inputs: slices k, scaled by grad_k: a product for
//            each.
// What is shared out over more blocks than there are tiles, to keep the device busy, is summed in a
// fixed order. The rules are arithmetic; they were not yet tuned by measurement.
//
// quadratic needs each pair (i, j) once: with features in blocks, only pairs with block(i) <=
// block(j), where W_ij + W_ji stands for both if the blocks differ. Pairs within a block stay as
// they are, so that no factor is a made-up 0, which times Inf would be NaN.
#pragma once
#include <algorithm>
#include <type_traits>

#include "bilinear/bilinear_launch.h"
#include "bilinear/outer.cuh"
#include "bilinear/slices.cuh"

namespace blockops::device {

constexpr int kNarrow = 16;
constexpr int64_t kLittleWork = 1 << 18;  // multiply-adds: launches cost more than they
constexpr int kBlocksPerProcessor = 2;
constexpr int64_t kWorthSplitting = 256;  // terms of a sum
constexpr int kMapThreads = 256;

inline dim3 map_grid(int64_t size) {
  return dim3(unsigned(std::min<int64_t>(ceil_div(size, kMapThreads), 1 << 20)));
}

// ---- W for quadratic: both orders of a pair in one element ----

template <class T>
struct Pack {
  const T* W;  // (n, n, m)
  T* out;      // (n, n, m), or (m, n, n), lines of the last axis `pitch` apart
  int64_t pitch;
  int n, m;
  bool outputs_first;
  int block;  // of features; 0: W_ij + W_ji everywhere
};

template <class T>
__global__ void pack_kernel(Pack<T> p) {
  const int64_t size = int64_t(p.n) * p.n * p.m, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < size; at += step) {
    const int64_t i = at / p.m / p.n, j = at / p.m % p.n, k = at % p.m;
    if (p.block && i / p.block > j / p.block) continue;  // nobody reads it
    const bool both = p.block == 0 || i / p.block < j / p.block;
    const T own = p.W[at];
    p.out[p.outputs_first ? (k * p.n + i) * p.pitch + j : (i * p.n + j) * p.pitch + k] =
        both ? narrow<T>(widen(own) + widen(p.W[(j * p.n + i) * p.m + k])) : own;
  }
}

// What every line of W or of vectors is as long as, for asynchronous copies to take it.
template <class T>
int64_t aligned_pitch(int64_t length) {
  return ceil_div(length, kVector<T>) * kVector<T>;
}

template <class T>
T* allocate(const Launch& launch, int64_t count) {
  return static_cast<T*>(launch.allocate(count * int64_t(sizeof(T))));
}

// The weight of quadratic as the slices want it.
template <class T>
struct Packed {
  const T* W;
  int64_t pitch;
  cudaError_t error = cudaSuccess;
};

template <class T>
Packed<T> pack(const Launch& launch, const T* W, int n, int m, bool outputs_first, int block) {
  const int64_t pitch = aligned_pitch<T>(outputs_first ? n : m);
  T* const out = allocate<T>(launch, int64_t(n) * (outputs_first ? m : n) * pitch);
  const auto error =
      device::launch(pack_kernel<T>, map_grid(int64_t(n) * n * m), dim3(kMapThreads), 0,
                     launch.stream, Pack<T>{W, out, pitch, n, m, outputs_first, block});
  return {out, pitch, error};
}

// ---- lines of odd length, copied to where they are aligned ----

template <class T>
struct Pad {
  const T* from;
  T* to;
  int64_t lines, length, pitch;
};

template <class T>
__global__ void pad_kernel(Pad<T> p) {
  const int64_t size = p.lines * p.length, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < size; at += step) {
    p.to[at / p.length * p.pitch + at % p.length] = p.from[at];
  }
}

template <class T>
cudaError_t pad(const Launch& launch, const T*& lines, int64_t count, int64_t length) {
  const int64_t pitch = aligned_pitch<T>(length);
  T* const to = allocate<T>(launch, count * pitch);
  const Pad<T> params{lines, to, count, length, pitch};
  lines = to;
  return device::launch(pad_kernel<T>, map_grid(count * length), dim3(kMapThreads), 0,
                        launch.stream, params);
}

// ---- partial sums, added in their order ----

template <class T>
struct Total {
  int64_t B, C;
  T* out;  // (B, C)
  const Sum<T>* sums = nullptr;
  int splits = 0;
  const Sum<T>* dots = nullptr;
  int slots = 0;
  int block = 0, slots_per_block = 0;  // not 0: column c has dots from its own block's slots on
  const T* bias = nullptr;
};

template <class T>
__global__ void total_kernel(Total<T> p) {
  const int64_t size = p.B * p.C, step = int64_t(gridDim.x) * blockDim.x;
  for (int64_t at = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; at < size; at += step) {
    const int64_t c = at % p.C;
    Sum<T> total = 0;
    for (int split = 0; split < p.splits; ++split) total += p.sums[split * size + at];
    for (int64_t slot = p.block ? c / p.block * p.slots_per_block : 0; slot < p.slots; ++slot) {
      total += p.dots[slot * size + at];
    }
    if (p.bias) total += widen(p.bias[c]);
    p.out[at] = narrow<T>(total);
  }
}

template <class T>
cudaError_t total(const Launch& launch, const Total<T>& params) {
  if (params.B * params.C == 0) return cudaSuccess;
  return device::launch(total_kernel<T>, map_grid(params.B * params.C), dim3(kMapThreads), 0,
                        launch.stream, params);
}

// ---- the products ----

template <class Product>
struct Chosen {
  using Type = Product;
};

// Calls body(Chosen<Product>()) with the product of element type T for B rows. float32 that must
// stay float32 is multiplied in plain multiply-adds: three products in TF32, whose sum is as exact,
// would run at a third of the tensor cores' speed, which is about the same, and would have to take
// Inf and NaN apart.
template <class T, class Body>
cudaError_t with_product(const Launch& launch, int64_t B, const Body& body) {
  const bool few = B <= 32;
  if constexpr (std::is_same_v<T, double>) {
    return few ? body(Chosen<PlainProduct<T, 32, 32>>()) : body(Chosen<PlainProduct<T, 64, 32>>());
  } else {
    if constexpr (std::is_same_v<T, float>) {
      if (!launch.tf32) {
        return few ? body(Chosen<PlainProduct<T, 32, 64>>())
                   : body(Chosen<PlainProduct<T, 128, 64>>());
      }
    }
    return few ? body(Chosen<TensorCoreProduct<T, 32, 128>>())
               : body(Chosen<TensorCoreProduct<T, 128, 64>>());
  }
}

// How many parts the work of `tiles` blocks is cut into, of `most` that there can be, each of sums
// of `terms` terms.
inline int splits_for(const Launch& launch, int64_t tiles, int64_t most, int64_t terms) {
  const int64_t wanted = kBlocksPerProcessor * int64_t(launch.processors) / tiles;
  const int64_t worth = most * terms / kWorthSplitting;
  return int(std::clamp<int64_t>(std::min(wanted, worth), 1, most));
}

template <class Product, class T>
int slots_of(const Slices<T>& params) {
  return int(ceil_div(params.C, Product::kCols)) * Product::kColumnWarps;
}

// Whether lines that begin at multiples of these strides are aligned.
template <class T, class... Strides>
bool is_aligned(const T* first, Strides... strides) {
  return reinterpret_cast<uintptr_t>(first) % 16 == 0 && ((strides % kVector<T> == 0) && ...);
}

// Sees to it that both operands are aligned, unless copying them costs more than it saves.
template <class T>
cudaError_t align(const Launch& launch, Slices<T>& params) {
  params.v_aligned = is_aligned(params.v, params.stride_v);
  params.w_aligned = is_aligned(params.w, params.stride_a, params.stride_line);
  if (params.B * params.A * params.D * params.C <= kLittleWork) return cudaSuccess;
  if (!params.v_aligned) {
    if (const auto error = pad(launch, params.v, params.B, params.D)) return error;
    params.stride_v = aligned_pitch<T>(params.D);
  }
  if (!params.w_aligned) {
    const int64_t length = params.depth_major ? params.C : params.D;
    const int64_t lines = int64_t(params.A) * params.D * params.C / length;
    if (const auto error = pad(launch, params.w, lines, length)) return error;
    params.stride_a = params.stride_a / length * aligned_pitch<T>(length);
    params.stride_line = params.stride_line / length * aligned_pitch<T>(length);
  }
  params.v_aligned = params.w_aligned = true;
  return cudaSuccess;
}

// Chooses the splits, allocates what is not to go straight to params.out, and launches.
template <class Product, class T>
cudaError_t run_slices(const Launch& launch, Slices<T>& params) {
  if (const auto error = align(launch, params)) return error;
  const int64_t tiles = ceil_div(params.B, Product::kRows) * ceil_div(params.C, Product::kCols);
  params.splits = splits_for(launch, tiles, params.A, params.D);
  if (params.s && (params.splits > 1 || params.t)) {
    params.sums = allocate<Sum<T>>(launch, params.splits * params.B * params.C);
  }
  if (params.t) {
    params.dots = allocate<Sum<T>>(launch, slots_of<Product>(params) * params.B * params.A);
  }
  T* const out = params.out;
  if (params.sums) params.out = nullptr;
  const auto error = params.depth_major ? launch_slices<Product, T, true>(params, launch.stream)
                                        : launch_slices<Product, T, false>(params, launch.stream);
  params.out = out;
  return error;
}

// out (B, C) = the sums of the products.
template <class Product, class T>
cudaError_t sum_slices(const Launch& launch, Slices<T> params) {
  if (const auto error = run_slices<Product>(launch, params)) return error;
  if (!params.sums) return cudaSuccess;
  Total<T> all{params.B, params.C, params.out};
  all.sums = params.sums, all.splits = params.splits, all.bias = params.bias;
  return total(launch, all);
}

// out (B, A) = the dots of the products.
template <class Product, class T>
cudaError_t dot_slices(const Launch& launch, Slices<T> params, const T* bias, T* out) {
  if (const auto error = run_slices<Product>(launch, params)) return error;
  Total<T> all{params.B, params.A, out};
  all.dots = params.dots, all.slots = slots_of<Product>(params), all.bias = bias;
  return total(launch, all);
}

template <class Product, int i_count, class T>
cudaError_t run_outer(const Launch& launch, Outer<T> params) {
  const int64_t size = int64_t(params.I) * params.J * params.K;
  params.splits = splits_for(launch, outer_tiles<Product, i_count>(params),
                             ceil_div(params.B, Product::kDepth), Product::kDepth);
  T* const out = params.out;
  if (params.splits > 1) {
    params.sums = allocate<Sum<T>>(launch, params.splits * size);
    params.out = nullptr;
  }
  const auto error = launch_outer<Product, i_count>(params, launch.stream);
  if (error || params.splits == 1) return error;
  Total<T> all{1, size, out};
  all.sums = params.sums, all.splits = params.splits;
  return total(launch, all);
}

// The product of two features may leave float16's range where the sum does not: there the elements
// are TF32, which has as many digits.
template <class T>
cudaError_t sum_outer(const Launch& launch, const Outer<T>& params) {
  const auto run = [&](auto chosen) {
    using Product = typename decltype(chosen)::Type;
    return params.I <= 4 ? run_outer<Product, 4>(launch, params)
                         : run_outer<Product, 8>(launch, params);
  };
  if constexpr (std::is_same_v<T, double>) {
    return run(Chosen<PlainProduct<double, 64, 32>>());
  } else if constexpr (std::is_same_v<T, BFloat16>) {
    return run(Chosen<TensorCoreProduct<BFloat16, 128, 64>>());
  } else {
    if constexpr (std::is_same_v<T, float>) {
      if (!launch.tf32) return run(Chosen<PlainProduct<float, 128, 64>>());
    }
    return run(Chosen<TensorCoreProduct<float, 128, 64>>());
  }
}

inline bool is_narrow(int64_t B, int64_t n1, int64_t n2, int64_t m) {
  return m <= kNarrow && B * n1 * n2 * m > kLittleWork;
}

// ---- quadratic ----

template <class T>
cudaError_t quadratic_forward(const Launch& launch, int64_t B, int n, int m, const T* x, const T* W,
                              const T* bias, T* y) {
  if (n == 0 || B * m == 0) {
    Total<T> none{B, m, y};
    none.bias = bias;
    return total(launch, none);
  }
  return with_product<T>(launch, B, [&](auto chosen) {
    using Product = typename decltype(chosen)::Type;
    const bool narrow = is_narrow(B, n, n, m);
    const int block = narrow ? Product::kCols : Product::kDepth;
    const bool packs = n > block || (narrow && m > 1);
    const Packed<T> weight =
        packs ? pack(launch, W, n, m, narrow, block) : Packed<T>{W, narrow ? n : m};
    if (weight.error) return weight.error;
    Slices<T> slices{};
    slices.B = B, slices.v = x, slices.stride_v = n, slices.w = weight.W;
    slices.block = block;
    if (narrow) {
      slices.A = m, slices.D = n, slices.C = n, slices.t = x;
      slices.stride_a = n * weight.pitch, slices.stride_line = weight.pitch,
      slices.depth_major = true;
      slices.part = packs ? Part::kDepthUpToColumn : Part::kAll;
      return dot_slices<Product>(launch, slices, bias, y);
    }
    slices.A = n, slices.D = n, slices.C = m, slices.s = x, slices.bias = bias, slices.out = y;
    slices.stride_a = n * weight.pitch, slices.stride_line = weight.pitch,
    slices.depth_major = true;
    slices.part = packs ? Part::kDepthFromSlice : Part::kAll;
    return sum_slices<Product>(launch, slices);
  });
}

template <class T>
cudaError_t quadratic_grad_x(const Launch& launch, int64_t B, int n, int m, const T* grad,
                             const T* x, const T* W, T* grad_x) {
  if (m == 0 || B * n == 0) return total(launch, Total<T>{B, n, grad_x});
  return with_product<T>(launch, B, [&](auto chosen) {
    using Product = typename decltype(chosen)::Type;
    const bool narrow = is_narrow(B, n, n, m);
    const int block = narrow ? 0 : Product::kCols;
    const bool packs = narrow || n > block;
    const Packed<T> weight =
        packs ? pack(launch, W, n, m, narrow, block) : Packed<T>{W, narrow ? n : m};
    if (weight.error) return weight.error;
    Slices<T> slices{};
    slices.B = B, slices.w = weight.W, slices.C = n;
    slices.stride_a = n * weight.pitch, slices.stride_line = weight.pitch,
    slices.depth_major = false;
    if (narrow) {
      slices.A = m, slices.D = n, slices.s = grad, slices.v = x, slices.out = grad_x;
      slices.stride_v = n;
      return sum_slices<Product>(launch, slices);
    }
    slices.A = n, slices.D = m, slices.v = grad, slices.stride_v = m, slices.s = x, slices.t = x;
    slices.part = packs ? Part::kSliceUpToColumn : Part::kAll;
    if (const auto error = run_slices<Product>(launch, slices)) return error;
    Total<T> both{B, n, grad_x, slices.sums, slices.splits, slices.dots, slots_of<Product>(slices)};
    if (packs) both.block = block, both.slots_per_block = Product::kColumnWarps;
    return total(launch, both);
  });
}

template <class T>
cudaError_t quadratic_grad_weight(const Launch& launch, int64_t B, int n, int m, const T* grad,
                                  const T* x, T* grad_W) {
  const int64_t size = int64_t(n) * n * m;
  if (B == 0 || size == 0) return total(launch, Total<T>{1, size, grad_W});
  Outer<T> outer{};
  outer.B = B, outer.out = grad_W;
  if (m > kNarrow) {
    outer.I = n, outer.J = n, outer.K = m, outer.p = x, outer.q = x, outer.r = grad;
    outer.stride_i = int64_t(n) * m, outer.stride_j = m, outer.stride_k = 1;
    outer.symmetric = true;
  } else {  // pairs (k, j), third slot i: no tile has a side of m
    outer.I = m, outer.J = n, outer.K = n, outer.p = grad, outer.q = x, outer.r = x;
    outer.stride_i = 1, outer.stride_j = m, outer.stride_k = int64_t(n) * m;
  }
  return sum_outer(launch, outer);
}

// ---- bilinear ----

template <class T>
cudaError_t bilinear_forward(const Launch& launch, int64_t B, int n1, int n2, int m, const T* x1,
                             const T* x2, const T* W, const T* bias, T* y) {
  if (n1 == 0 || n2 == 0 || B * m == 0) {
    Total<T> none{B, m, y};
    none.bias = bias;
    return total(launch, none);
  }
  return with_product<T>(launch, B, [&](auto chosen) {
    using Product = typename decltype(chosen)::Type;
    Slices<T> slices{};
    slices.B = B, slices.w = W;
    if (is_narrow(B, n1, n2, m)) {
      slices.A = m, slices.D = n1, slices.C = n2, slices.v = x1, slices.stride_v = n1,
      slices.t = x2;
      slices.stride_a = int64_t(n1) * n2, slices.stride_line = n2, slices.depth_major = true;
      return dot_slices<Product>(launch, slices, bias, y);
    }
    slices.A = n1, slices.D = n2, slices.C = m, slices.s = x1, slices.v = x2, slices.stride_v = n2;
    slices.bias = bias, slices.out = y;
    slices.stride_a = n2, slices.stride_line = int64_t(n1) * n2, slices.depth_major = false;
    return sum_slices<Product>(launch, slices);
  });
}

template <class T>
cudaError_t bilinear_grad_inputs(const Launch& launch, int64_t B, int n1, int n2, int m,
                                 const T* grad, const T* x1, const T* x2, const T* W, T* grad_x1,
                                 T* grad_x2) {
  if (m == 0 || B == 0 || n1 == 0 || n2 == 0) {
    const auto error = total(launch, Total<T>{B, n1, grad_x1});
    return error ? error : total(launch, Total<T>{B, n2, grad_x2});
  }
  return with_product<T>(launch, B, [&](auto chosen) {
    using Product = typename decltype(chosen)::Type;
    Slices<T> slices{};
    slices.B = B, slices.w = W, slices.stride_a = int64_t(n1) * n2;
    if (is_narrow(B, n1, n2, m)) {
      slices.A = m, slices.s = grad;
      slices.D = n2, slices.C = n1, slices.v = x2, slices.stride_v = n2;
      slices.out = grad_x1;
      slices.stride_line = n2, slices.depth_major = false;
      if (const auto error = sum_slices<Product>(launch, slices)) return error;
      slices.D = n1, slices.C = n2, slices.v = x1, slices.stride_v = n1;
      slices.out = grad_x2;
      slices.stride_line = n2, slices.depth_major = true;
      return sum_slices<Product>(launch, slices);
    }
    slices.A = n1, slices.D = m, slices.C = n2, slices.v = grad, slices.stride_v = m;
    slices.s = x1, slices.t = x2;
    slices.stride_a = n2, slices.stride_line = int64_t(n1) * n2, slices.depth_major = true;
    if (const auto error = run_slices<Product>(launch, slices)) return error;
    Total<T> first{B, n1, grad_x1}, second{B, n2, grad_x2};
    first.dots = slices.dots, first.slots = slots_of<Product>(slices);
    second.sums = slices.sums, second.splits = slices.splits;
    const auto error = total(launch, first);
    return error ? error : total(launch, second);
  });
}

template <class T>
cudaError_t bilinear_grad_weight(const Launch& launch, int64_t B, int n1, int n2, int m,
                                 const T* grad, const T* x1, const T* x2, T* grad_W) {
  const int64_t size = int64_t(m) * n1 * n2;
  if (B == 0 || size == 0) return total(launch, Total<T>{1, size, grad_W});
  Outer<T> outer{};
  outer.B = B, outer.out = grad_W;
  if (m > kNarrow) {
    outer.I = n1, outer.J = n2, outer.K = m, outer.p = x1, outer.q = x2, outer.r = grad;
    outer.stride_i = n2, outer.stride_j = 1, outer.stride_k = int64_t(n1) * n2;
  } else {  // pairs (k, j), third slot i
    outer.I = m, outer.J = n2, outer.K = n1, outer.p = grad, outer.q = x2, outer.r = x1;
    outer.stride_i = int64_t(n1) * n2, outer.stride_j = 1, outer.stride_k = n2;
  }
  return sum_outer(launch, outer);
}

}  // namespace blockops::device
