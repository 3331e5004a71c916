// linear_relu of little work in plain loops: there the overhead of ATen's products is most of the
// cost. Vectors run along the outputs k in the forward pass and along the features i in the
// backward pass.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/lanes.h"
#include "core/simd.h"
#include "core/transpose.h"

namespace blockops::cpu {

constexpr int64_t kDepth = 64;       // terms of a sum that are added in one go
constexpr int64_t kDirectRows = 64;  // the most that there may be

// y (B, m) = relu(x (B, n) W (m, n)^T + bias). NaN stays.
template <class T, class Registers>
BLOCKOPS_SIMD_CLONES void direct_forward(int64_t B, int64_t n, int64_t m, const T* x, const T* W,
                                         const T* bias, T* y) {
  using Vector = typename Lanes<T, Registers>::Vector;
  constexpr int64_t width = Lanes<T, Registers>::width;
  // Of W^T. Lanes past the last output stay zero: numbers like 1e-40, which memory may hold, would
  // take many times as long to multiply.
  Vector block[kDepth] = {};
  for (int64_t begin_k = 0; begin_k < m; begin_k += width) {
    const int64_t cols = std::min(width, m - begin_k);
    Vector start = {};
    if (bias) load(start, bias + begin_k, cols);
    for (int64_t b = 0; b < B; ++b) store(start, y + b * m + begin_k, cols);
    for (int64_t begin_i = 0; begin_i < n; begin_i += kDepth) {
      const int64_t depth = std::min(kDepth, n - begin_i);
      transpose(W + begin_k * n + begin_i, n, cols, depth, reinterpret_cast<T*>(block), width);
      for (int64_t b = 0; b < B; ++b) {
        const T* const row = x + b * n + begin_i;
        Vector even = {}, odd = {};
        for (int64_t i = 0; i + 1 < depth; i += 2) {
          even += row[i] * block[i];
          odd += row[i + 1] * block[i + 1];
        }
        if (depth % 2) even += row[depth - 1] * block[depth - 1];
        add_to(y + b * m + begin_k, even + odd, cols);
      }
    }
  }
  for (int64_t i = 0; i < B * m; ++i) y[i] = y[i] <= 0 ? T(0) : y[i];
}

// masked (B, depth) = grad_z: grad, and 0 where y <= 0, of `depth` columns; their sums to `sums`.
template <class T>
[[gnu::always_inline]] inline void mask_block(int64_t B, int64_t m, int64_t depth, const T* grad,
                                              const T* y, T (*masked)[kDepth], T* sums) {
  std::fill_n(sums, depth, T(0));
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t k = 0; k < depth; ++k) {
      const T value = grad[b * m + k];  // a read that depends would not be vectorized
      masked[b][k] = y[b * m + k] <= 0 ? T(0) : value;
    }
    for (int64_t k = 0; k < depth; ++k) sums[k] += masked[b][k];
  }
}

// The gradients that are not null, all of them sums over grad_z. Where n is no multiple of the
// width, vectors reach over the end of a row and into the next: what they read there lands in lanes
// that nobody reads, and what they write there is written again, right, as that row comes later.
template <class T, class Registers>
BLOCKOPS_SIMD_CLONES void direct_backward(int64_t B, int64_t n, int64_t m, const T* grad,
                                          const T* x, const T* W, const T* y, T* grad_x, T* grad_W,
                                          T* grad_bias) {
  using Vector = typename Lanes<T, Registers>::Vector;
  constexpr int64_t width = Lanes<T, Registers>::width;
  T masked[kDirectRows][kDepth], sums[kDepth];
  Vector rows[kDirectRows];
  if (grad_x) std::fill_n(grad_x, B * n, T(0));
  for (int64_t begin_k = 0; begin_k < m; begin_k += kDepth) {
    const int64_t depth = std::min(kDepth, m - begin_k);
    mask_block(B, m, depth, grad + begin_k, y + begin_k, masked, sums);
    if (grad_bias) std::copy_n(sums, depth, grad_bias + begin_k);
    for (int64_t i = (n - 1) / width * width; grad_W && n > 0 && i >= 0; i -= width) {
      for (int64_t b = 0; b < B; ++b) load(rows[b], x + b * n + i, (B - b) * n - i);
      for (int64_t k = 0; k < depth; ++k) {
        Vector sum = {};
        for (int64_t b = 0; b < B; ++b) sum += masked[b][k] * rows[b];
        const int64_t at = (begin_k + k) * n + i;
        store(sum, grad_W + at, m * n - at);
      }
    }
    for (int64_t i = 0; grad_x && i < n; i += width) {
      for (int64_t b = 0; b < B; ++b) {
        Vector even = {}, odd = {}, row;
        for (int64_t k = 0; k < depth; ++k) {
          const int64_t at = (begin_k + k) * n + i;
          load(row, W + at, m * n - at);
          (k % 2 ? odd : even) += masked[b][k] * row;
        }
        add_to(grad_x + b * n + i, even + odd, std::min(width, n - i));
      }
    }
  }
}

}  // namespace blockops::cpu
