// The third and the pair pass of trilinear_cpu.h for few rows of the batch, which would not fill
// vectors: rows stay as they lie, (batch, features), and vectors run along the second feature v in
// the elementwise loops, along the thirds t or the pairs in the products.
#pragma once
#include <cstring>

#include "bilinear/trilinear_cpu.h"

namespace blockops::cpu {

// Whether rows of the batch are so few. For the pair pass of symmetric pairs, whose tiles must be
// transposed here, they are where they would fill vectors poorly.
inline bool is_few(int64_t batch) { return batch <= 64; }
inline bool is_few_symmetric(int64_t batch) {
  return batch < 32 || 5 * batch < 4 * round_up(batch, 16);
}

constexpr int64_t kInPlace = 8;  // rows of the batch that a product reads the weight once for

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
                                        int64_t batch, Rows<const T> A, const T* a, const T* b,
                                        T* grad_a, T* grad_b) {
  for (Run run(pairs, begin, end); run.valid(); run.advance())
    for (int64_t r = 0; r < batch; ++r) {
      const int64_t at_u = r * pairs.n1 + run.u, at_v = r * pairs.n2 + run.v;
      const T* const A_v = A[r] + run.offset;
      add_scaled(A_v, a[at_u], run.count, grad_b + at_v);
      grad_a[at_u] += dot(A_v, b + at_v, run.count);
    }
}

// out (batch, features) = the sum of the parts, in order, + bias (features) or null.
template <class T>
void store_parts(T* sums, int64_t parts, int64_t batch, int64_t features, const T* bias, T* out) {
  const int64_t size = batch * features;
  add_parts(sums, parts, size, size);
  for (int64_t r = 0; bias && r < batch; ++r)
    for (int64_t f = 0; f < features; ++f) sums[r * features + f] += bias[f];
  std::copy(sums, sums + size, out);
}

// third_pass for few rows and symmetric pairs.
template <class T>
void few_third_pass(const Weight<T>& weight, int64_t batch, const T* a, const T* bias, T* c) {
  const auto& pairs = weight.pairs;
  const int64_t n3 = weight.n3;
  const Cut cut(batch, pairs.size(), n3, kTaskThirds, max_parts<T>(batch * n3));
  const Buffer<T> sums(cut.chunks * batch * n3);
  const int64_t stride = padded(cut.thirds), products_size = batch * kDepth;
  for_each_task<T>(cut, products_size + kDepth * stride, [&](const Task& task, T* scratch) {
    const Rows<T> products{scratch, kDepth}, tile{scratch + products_size, stride};
    const Rows<T> out{sums.get() + task.chunk * batch * n3 + task.third, n3};
    clear_padding(tile, kDepth, task.thirds);
    Ahead ahead;
    for (int64_t p = task.begin; p < task.end; p += kDepth) {
      const int64_t end = std::min(task.end, p + kDepth);
      khatri_rao_rows<T>(pairs, p, end, batch, a, a, products);
      pack_symmetric(weight, p, end, task.third, task.thirds, tile);
      list_rows(weight, end, std::min(end + kDepth, pairs.size()), task.third, task.thirds, ahead);
      ahead.spread(batch * (end - p) * task.thirds);
      product<T>({products.data, batch, end - p, kDepth, 1}, tile, task.thirds, out, p > task.begin,
                 &ahead);
    }
  });
  store_parts(sums.get(), cut.chunks, batch, n3, bias, c);
}

// bilinear's forward pass for few rows: y_k = (x1 W_k) x2 + bias_k, W as it lies.
template <class T>
void few_forward(int64_t batch, int64_t n1, int64_t n2, int64_t m, const T* x1, const T* x2,
                 const T* W, const T* bias, T* y) {
  const int64_t tasks = std::clamp<int64_t>(batch * n1 * n2 * m / kTaskWork, 1, kTasks);
  const int64_t outputs = ceil_div(m, tasks);
  const T* const W_end = W + m * n1 * n2;
  const int64_t width = stretch(n2, kThirds, 16), stride = padded(width);
  for_each_part(ceil_div(m, outputs), [&](int64_t part) {
    const Buffer<T> scratch((batch + kDepth) * stride);
    const Rows<T> products{scratch.get(), stride}, tile{products[batch], stride};
    clear_padding(tile, kDepth, std::min(width, n2));
    Ahead ahead;
    for (int64_t k = part * outputs; k < std::min(m, (part + 1) * outputs); ++k) {
      ahead.begin(n1 * n2 * sizeof(T));
      if (k + 1 < m) ahead.add(W + (k + 1) * n1 * n2);
      ahead.spread(batch * n1 * n2);
      for (int64_t r = 0; r < batch; ++r) y[r * m + k] = bias ? bias[k] : T(0);
      for (int64_t j = 0; j < n2; j += width) {
        const int64_t cols = std::min(width, n2 - j);
        for (int64_t i = 0; i < n1; i += kDepth) {
          const int64_t depth = std::min(kDepth, n1 - i);
          const T* const from = W + (k * n1 + i) * n2 + j;
          const bool in_place = batch <= kInPlace && W_end - from >= depth * n2 + 16;
          if (!in_place) copy_tile(from, n2, depth, cols, tile);
          product<T>({x1 + i, batch, depth, n1, 1},
                     in_place ? Rows<const T>{from, n2} : Rows<const T>(tile), cols, products,
                     i > 0, &ahead);
        }
        for (int64_t r = 0; r < batch; ++r) y[r * m + k] += dot(products[r], x2 + r * n2 + j, cols);
      }
    }
  });
}

// pair_pass for few rows.
template <class T>
void few_pair_pass(const Weight<T>& weight, int64_t batch, const T* a, const T* b, const T* c,
                   T* grad_a, T* grad_b) {
  const auto& pairs = weight.pairs;
  const int64_t n3 = weight.n3, n1 = pairs.n1, n2 = pairs.upper ? 0 : pairs.n2;
  const Cut cut(batch, pairs.size(), n3, n3, max_parts<T>(batch * (n1 + n2)));
  const Buffer<T> sums_a(cut.chunks * batch * n1), sums_b(cut.chunks * batch * n2);
  const int64_t width = stretch(cut.chunk_pairs, kThirds, 16), stride = padded(width);
  const int64_t packed_size = pairs.upper ? kDepth * width : 0;
  for_each_task<T>(cut, (batch + kDepth) * stride + packed_size, [&](const Task& task, T* scratch) {
    T* const to_a = sums_a.get() + task.chunk * batch * n1;
    T* const to_b = pairs.upper ? to_a : sums_b.get() + task.chunk * batch * n2;
    std::fill_n(to_a, batch * n1, T(0));
    std::fill_n(to_b, batch * pairs.n2, T(0));
    const Rows<T> A{scratch, stride}, tile{A[batch], stride};
    T* const packed = tile[kDepth];
    clear_padding(tile, kDepth, std::min(width, task.end - task.begin));
    Ahead ahead;
    for (int64_t p = task.begin; p < task.end; p += width) {
      const int64_t end = std::min(task.end, p + width);
      for (int64_t t = 0; t < n3; t += kDepth) {
        const int64_t depth = std::min(kDepth, n3 - t);
        if (pairs.upper) {
          pack_symmetric(weight, p, end, t, depth, {packed, depth});
          transpose(packed, depth, end - p, depth, tile.data, stride);
        } else {
          copy_tile(weight.data + t * weight.third_stride + p, weight.third_stride, depth, end - p,
                    tile);
        }
        if (t + depth < n3) {
          list_rows(weight, p, end, t + depth, std::min(kDepth, n3 - t - depth), ahead);
        } else {
          list_rows(weight, end, std::min(end + width, pairs.size()), 0, std::min(kDepth, n3),
                    ahead);
        }
        ahead.spread(batch * (end - p) * depth);
        product<T>({c + t, batch, depth, n3, 1}, tile, end - p, A, t > 0, &ahead);
      }
      contract_rows<T>(pairs, p, end, batch, A, a, b, to_a, to_b);
    }
  });
  store_parts<T>(sums_a.get(), cut.chunks, batch, n1, nullptr, grad_a);
  if (!pairs.upper) store_parts<T>(sums_b.get(), cut.chunks, batch, n2, nullptr, grad_b);
}

}  // namespace blockops::cpu
