// linear_relu of little work in plain loops: there the overhead of ATen's products is most of the
// cost. Vectors run along the outputs k in the forward pass, or where rows are few or long along
// the features i, as they do in the backward pass.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "core/lanes.h"
#include "core/simd.h"
#include "core/transpose.h"

namespace blockops::cpu {

constexpr int64_t kDepth = 64;       // terms of a sum that are added in one go
constexpr int64_t kDirectRows = 64;  // the most that there may be

// y (B, m) = relu(x (B, n) W (m, n)^T + bias), W transposed block by block. NaN stays.
template <class T, class Registers>
BLOCKOPS_SIMD_CLONES void forward_along_outputs(int64_t B, int64_t n, int64_t m, const T* x,
                                                const T* W, const T* bias, T* y) {
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

// The same with W read as it lies, several rows at once, of which each sum is in the lanes of a
// vector; these are then added up across. n is at least a vector's width.
template <class T>
BLOCKOPS_SIMD_CLONES void forward_along_features(int64_t B, int64_t n, int64_t m, const T* x,
                                                 const T* W, const T* bias, T* y) {
  using Vector = typename Lanes<T, NarrowRegisters>::Vector;
  constexpr int width = Lanes<T, NarrowRegisters>::width;
  constexpr auto indices = std::make_index_sequence<width>();
  // The last vector of a row ends where the row ends; its lanes that the one before has are made
  // zero.
  const int64_t end = n - width, whole = (n - 1) / width * width;
  decltype(Vector() < Vector()) is_new;
  for (int lane = 0; lane < width; ++lane) is_new[lane] = end + lane >= whole ? -1 : 0;
  for (int64_t begin_k = 0; begin_k < m; begin_k += width) {
    const int64_t cols = std::min<int64_t>(width, m - begin_k);
    Vector start = {};
    if (bias) load(start, bias + begin_k, cols);
    const T* rows[width];
    for (int r = 0; r < width; ++r) rows[r] = W + std::min(begin_k + r, m - 1) * n;
    for (int64_t b = 0; b < B; ++b) {
      const T* const in = x + b * n;
      Vector sums[width] = {}, term, row;
      for (int64_t i = 0; i < whole; i += width) {
        std::memcpy(&term, in + i, sizeof(Vector));
        for (int r = 0; r < width; ++r) {
          std::memcpy(&row, rows[r] + i, sizeof(Vector));
          sums[r] += term * row;
        }
      }
      std::memcpy(&term, in + end, sizeof(Vector));
      term = is_new ? term : Vector{};
      for (int r = 0; r < width; ++r) {
        std::memcpy(&row, rows[r] + end, sizeof(Vector));
        sums[r] += term * (is_new ? row : Vector{});
      }
#pragma GCC unroll 3
      for (int half = width / 2; half > 0; half /= 2) {
#pragma GCC unroll 4
        for (int r = 0; r < half; ++r) {
          Vector low, high;
          interleave<0, T>(sums[r], sums[r + half], low, indices);
          interleave<width / 2, T>(sums[r], sums[r + half], high, indices);
          sums[r] = low + high;
        }
      }
      const Vector z = start + sums[0];
      store(z <= T(0) ? Vector{} : z, y + b * m + begin_k, cols);
    }
  }
}

constexpr int64_t kFewRows = 3;

// For few rows or long ones adding up across is less work than a transposition; past kDepth vectors
// a sum would have more terms in one level than is accurate.
template <class T, class Registers>
void direct_forward(int64_t B, int64_t n, int64_t m, const T* x, const T* W, const T* bias, T* y) {
  constexpr int64_t width = Lanes<T, NarrowRegisters>::width;
  if ((B <= kFewRows || n >= kDepth) && n >= width && n <= kDepth * width)
    forward_along_features(B, n, m, x, W, bias, y);
  else
    forward_along_outputs<T, Registers>(B, n, m, x, W, bias, y);
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

// How many of `depth` vectors, a row of n from one to the next, end within `room` elements.
inline int64_t whole_vectors(int64_t room, int64_t width, int64_t n, int64_t depth) {
  return std::clamp<int64_t>((room - width + n) / n, 0, depth);
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
  rows[0] = Vector{};  // for sums over no row
  if (B == 0) std::fill_n(masked[0], kDepth, T(0));
  if (grad_x) std::fill_n(grad_x, B * n, T(0));
  for (int64_t begin_k = 0; begin_k < m; begin_k += kDepth) {
    const int64_t depth = std::min(kDepth, m - begin_k);
    mask_block(B, m, depth, grad + begin_k, y + begin_k, masked, sums);
    if (grad_bias) std::copy_n(sums, depth, grad_bias + begin_k);
    for (int64_t i = (n - 1) / width * width; grad_W && n > 0 && i >= 0; i -= width) {
      for (int64_t b = 0; b < B; ++b) load(rows[b], x + b * n + i, (B - b) * n - i);
      T* const out = grad_W + begin_k * n + i;
      const int64_t room = (m - begin_k) * n - i;
      const int64_t whole = whole_vectors(room, width, n, depth);
      for (int64_t k = 0; k < whole; ++k) {
        Vector sum = masked[0][k] * rows[0];
        for (int64_t b = 1; b < B; ++b) sum += masked[b][k] * rows[b];
        std::memcpy(out + k * n, &sum, sizeof(Vector));
      }
      for (int64_t k = whole; k < depth; ++k) {
        Vector sum = masked[0][k] * rows[0];
        for (int64_t b = 1; b < B; ++b) sum += masked[b][k] * rows[b];
        store(sum, out + k * n, room - k * n);
      }
    }
    for (int64_t i = 0; grad_x && i < n; i += width) {
      const T* const in = W + begin_k * n + i;
      const int64_t room = (m - begin_k) * n - i;
      const int64_t whole = whole_vectors(room, width, n, depth);
      for (int64_t b = 0; b < B; ++b) {
        Vector even = {}, odd = {}, row;
        for (int64_t k = 0; k < whole; ++k) {
          std::memcpy(&row, in + k * n, sizeof(Vector));
          (k % 2 ? odd : even) += masked[b][k] * row;
        }
        for (int64_t k = whole; k < depth; ++k) {
          load(row, in + k * n, room - k * n);
          (k % 2 ? odd : even) += masked[b][k] * row;
        }
        add_to(grad_x + b * n + i, even + odd, std::min(width, n - i));
      }
    }
  }
}

}  // namespace blockops::cpu
