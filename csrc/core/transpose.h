// Transposition of a strided matrix through registers, square by square.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "core/simd.h"

namespace blockops {

// a_0 b_0 a_1 b_1 ..., of the elements from `first` on, for as many as a vector holds.
template <int first, class T, class Vector, size_t... i>
[[gnu::always_inline]] inline void interleave(const Vector& a, const Vector& b, Vector& out,
                                              std::index_sequence<i...>) {
  constexpr int size = sizeof...(i);
#ifdef __clang__
  out = __builtin_shufflevector(a, b, (first + i / 2 + i % 2 * size)...);
#else
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Index Indices __attribute__((vector_size(sizeof(Vector))));
  out = __builtin_shuffle(a, b, Indices{Index(first + i / 2 + i % 2 * size)...});
#endif
}

// The same for a square of size x size. Each round interleaves its first rows with its last; after
// as many rounds as the size has powers of two, rows are columns.
template <class T, int size>
[[gnu::always_inline]] inline void transpose_square(const T* in, int64_t in_stride, T* out,
                                                    int64_t out_stride) {
  typedef T Vector __attribute__((vector_size(size * sizeof(T))));
  constexpr auto indices = std::make_index_sequence<size>();
  constexpr int half = size / 2;
  Vector rows[size], next[size];
  for (int i = 0; i < size; ++i) std::memcpy(&rows[i], in + i * in_stride, sizeof(Vector));
#pragma GCC unroll 3
  for (int round = 1; round < size; round *= 2) {
#pragma GCC unroll 4
    for (int i = 0; i < half; ++i) {
      interleave<0, T>(rows[i], rows[i + half], next[2 * i], indices);
      interleave<half, T>(rows[i], rows[i + half], next[2 * i + 1], indices);
    }
    for (int i = 0; i < size; ++i) rows[i] = next[i];
  }
  for (int i = 0; i < size; ++i) std::memcpy(out + i * out_stride, &rows[i], sizeof(Vector));
}

// The same where both sides are at least `size`: the last squares overlap those before.
template <class T, int size>
[[gnu::always_inline]] inline void transpose_squares(const T* in, int64_t in_stride, int64_t rows,
                                                     int64_t cols, T* out, int64_t out_stride) {
  for (int64_t r = 0; r < rows; r += size) {
    const int64_t row = std::min(r, rows - size);
    for (int64_t c = 0; c < cols; c += size) {
      const int64_t col = std::min(c, cols - size);
      transpose_square<T, size>(in + row * in_stride + col, in_stride, out + col * out_stride + row,
                                out_stride);
    }
  }
}

// out[c * out_stride + r] = in[r * in_stride + c], for r < rows and c < cols.
template <class T>
BLOCKOPS_SIMD_CLONES void transpose(const T* in, int64_t in_stride, int64_t rows, int64_t cols,
                                    T* out, int64_t out_stride) {
  constexpr int size = 32 / sizeof(T);
  if (std::min(rows, cols) >= size) {
    transpose_squares<T, size>(in, in_stride, rows, cols, out, out_stride);
  } else if (std::min(rows, cols) >= size / 2) {
    transpose_squares<T, size / 2>(in, in_stride, rows, cols, out, out_stride);
  } else {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c) out[c * out_stride + r] = in[r * in_stride + c];
  }
}

}  // namespace blockops
