// The third and the pair pass of trilinear_cpu.h for few rows of the batch, which would not fill
// vectors, nor pay for copies of the weight: rows stay as they lie, (batch, features), the
// elementwise loops run along the second feature v, and the products are ATen's.
#pragma once
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm_cpu_dispatch.h>

#include <cstring>

#include "bilinear/trilinear_cpu.h"

namespace blockops::cpu {

// Whether rows of the batch are so few.
inline bool is_few(int64_t batch) { return batch < 32 || 5 * batch < 4 * round_up(batch, 16); }

// out = a b, or out += a b: ATen's matrix product, straight to its CPU kernel. In a parallel region
// it runs on the calling thread.
template <class T>
void multiply(Matrix<const T> a, Matrix<const T> b, Matrix<T> out, bool accumulate) {
  const auto view = [](auto matrix) {
    return at::from_blob(const_cast<T*>(matrix.data), {matrix.rows, matrix.cols},
                         {matrix.row_stride, matrix.col_stride},
                         at::TensorOptions(c10::CppTypeToScalarType<T>::value));
  };
  auto result = view(out);
  if (accumulate) {
    at::cpu::addmm_(result, view(a), view(b));
  } else {
    at::cpu::mm_out(result, view(a), view(b));
  }
}

// sum_s x_s y_s, by vectors.
template <class T>
inline T dot(const T* x, const T* y, int64_t count) {
  typedef T Vector __attribute__((vector_size(32)));
  constexpr int64_t width = sizeof(Vector) / sizeof(T);
  Vector sums = {};
  int64_t s = 0;
  for (; s + width <= count; s += width) {
    Vector x_s, y_s;
    std::memcpy(&x_s, x + s, sizeof(Vector));
    std::memcpy(&y_s, y + s, sizeof(Vector));
    sums += x_s * y_s;
  }
  T total = 0;
  for (; s < count; ++s) total += x[s] * y[s];
  for (int64_t i = 0; i < width; ++i) total += sums[i];
  return total;
}

// sums[s] += x[s] factor
template <class T>
inline void add_scaled(const T* x, T factor, int64_t count, T* __restrict sums) {
  for (int64_t s = 0; s < count; ++s) sums[s] += x[s] * factor;
}

// grad_a_ru += A_rp b_rv and grad_b_rv += A_rp a_ru for A (batch, end - begin). With grad_a =
// grad_b the two may fall on the same element, one after the other.
template <class T>
BLOCKOPS_SIMD_CLONES void contract_rows(const Pairs& pairs, int64_t begin, int64_t end,
                                        int64_t batch, const T* A, const T* a, const T* b,
                                        T* grad_a, T* grad_b) {
  for (Run run(pairs, begin, end); run.valid(); run.advance())
    for (int64_t r = 0; r < batch; ++r) {
      const int64_t at_u = r * pairs.n1 + run.u, at_v = r * pairs.n2 + run.v;
      const T* const A_v = A + r * (end - begin) + run.offset;
      add_scaled(A_v, a[at_u], run.count, grad_b + at_v);
      grad_a[at_u] += dot(A_v, b + at_v, run.count);
    }
}

// out (batch, features) = the sum of the parts, in order, + bias (features) or null.
template <class T>
void store_parts(T* sums, int64_t parts, int64_t batch, int64_t features, const T* bias, T* out) {
  const int64_t size = batch * features;
  for (int64_t part = 1; part < parts; ++part) add_to(sums + part * size, size, sums);
  for (int64_t r = 0; bias && r < batch; ++r)
    for (int64_t f = 0; f < features; ++f) sums[r * features + f] += bias[f];
  std::copy(sums, sums + size, out);
}

// Pairs of a tile: more than where the batch is long, as there is less else to keep in the cache.
inline int64_t few_tile(const Cut& cut) {
  const int64_t most = std::clamp<int64_t>(3 * kTileSize / cut.n3, kDepth, 6 * kTile);
  return stretch(cut.chunk_pairs, most, 16);
}

// third_pass for few rows.
template <class T>
void few_third_pass(const Weight<T>& weight, int64_t batch, const T* a, const T* b, const T* bias,
                    T* c) {
  const auto& pairs = weight.pairs;
  const int64_t n3 = weight.n3;
  const Tiles<T> tiles(weight, batch, /*copied=*/false);
  const Cut cut(batch, pairs.size(), n3, n3, max_parts<T>(batch * n3));
  const int64_t tile = few_tile(cut);
  const Buffer<T> sums(cut.chunks * batch * n3);
  const int64_t products_size = batch * tile;
  for_each_task<T>(
      cut, products_size + tiles.scratch_size(tile, n3), [&](const Task& task, T* scratch) {
        const Matrix<T> out{sums.get() + task.chunk * batch * n3, batch, n3, n3, 1};
        for (int64_t p = task.begin; p < task.end; p += tile) {
          const int64_t end = std::min(task.end, p + tile);
          khatri_rao_rows<T>(pairs, p, end, batch, a, b, {scratch, end - p});
          multiply<T>({scratch, batch, end - p, end - p, 1},
                      tiles.tile(p, end, 0, n3, scratch + products_size), out, p > task.begin);
        }
      });
  store_parts(sums.get(), cut.chunks, batch, n3, bias, c);
}

// pair_pass for few rows.
template <class T>
void few_pair_pass(const Weight<T>& weight, int64_t batch, const T* a, const T* b, const T* c,
                   T* grad_a, T* grad_b) {
  const auto& pairs = weight.pairs;
  const int64_t n3 = weight.n3, n1 = pairs.n1, n2 = pairs.upper ? 0 : pairs.n2;
  const bool crowded = weight.third_stride * sizeof(T) % 4096 == 0;
  const Tiles<T> tiles(weight, batch, /*copied=*/crowded);
  const Cut cut(batch, pairs.size(), n3, n3, max_parts<T>(batch * (n1 + n2)));
  const int64_t tile = few_tile(cut);
  const Buffer<T> sums_a(cut.chunks * batch * n1), sums_b(cut.chunks * batch * n2);
  const int64_t products_size = batch * tile;
  for_each_task<T>(cut, products_size + tiles.scratch_size(tile, n3),
                   [&](const Task& task, T* scratch) {
                     T* const to_a = sums_a.get() + task.chunk * batch * n1;
                     T* const to_b = pairs.upper ? to_a : sums_b.get() + task.chunk * batch * n2;
                     std::fill_n(to_a, batch * n1, T(0));
                     std::fill_n(to_b, batch * pairs.n2, T(0));
                     for (int64_t p = task.begin; p < task.end; p += tile) {
                       const int64_t end = std::min(task.end, p + tile);
                       multiply<T>({c, batch, n3, n3, 1},
                                   tiles.tile(p, end, 0, n3, scratch + products_size).transposed(),
                                   {scratch, batch, end - p, end - p, 1}, false);
                       contract_rows(pairs, p, end, batch, scratch, a, b, to_a, to_b);
                     }
                   });
  store_parts<T>(sums_a.get(), cut.chunks, batch, n1, nullptr, grad_a);
  if (!pairs.upper) store_parts<T>(sums_b.get(), cut.chunks, batch, n2, nullptr, grad_b);
}

}  // namespace blockops::cpu
