// Sums of the columns of a matrix, in double whatever the dtype: no order of addition then matters
// to float32's accuracy, and float16 does not overflow.
#pragma once
#include <cstdint>
#include <type_traits>

#include "core/simd.h"

namespace blockops::cpu {

// What the elements of a result are computed in.
template <class T>
using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;

constexpr int64_t kNarrow = 64;    // columns: fewer are taken several rows at a time,
constexpr int64_t kWidened = 128;  // so that at most so many are added at once

// Four rows at once, far apart: the processor fetches ahead within a page, so that one of them
// waits at each new page, not all.
template <class T>
inline void add_wide_columns(const T* x, int64_t rows, int64_t stride, int64_t cols, double* sums) {
  using R = Real<T>;
  const int64_t quarter = rows / 4;
  for (int64_t r = 0; r < quarter; ++r) {
    const T *a = x + r * stride, *b = a + quarter * stride, *c = b + quarter * stride;
    const T* const d = c + quarter * stride;
    for (int64_t i = 0; i < cols; ++i) {
      const double ab = static_cast<double>(static_cast<R>(a[i])) + static_cast<R>(b[i]);
      const double cd = static_cast<double>(static_cast<R>(c[i])) + static_cast<R>(d[i]);
      sums[i] += ab + cd;
    }
  }
  for (int64_t r = 4 * quarter; r < rows; ++r)
    for (int64_t i = 0; i < cols; ++i) sums[i] += static_cast<R>(x[r * stride + i]);
}

// sums[c] += sum of column c, for `rows` rows at a distance of `stride`.
template <class T>
BLOCKOPS_SIMD_CLONES void add_columns(const T* x, int64_t rows, int64_t stride, int64_t cols,
                                      double* sums) {
  int64_t done = 0;
  if (cols == 0) return;
  if (cols == stride && cols < kNarrow) {
    const int64_t copies = kWidened / cols, width = copies * cols;
    double wide[kWidened] = {};
    done = rows / copies * copies;
    add_wide_columns(x, rows / copies, width, width, wide);
    for (int64_t i = 0; i < width; ++i) sums[i % cols] += wide[i];
  }
  add_wide_columns(x + done * stride, rows - done, stride, cols, sums);
}

}  // namespace blockops::cpu
