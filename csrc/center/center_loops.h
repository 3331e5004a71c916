// The loops of center on contiguous memory: sums in double, whatever the dtype, so that no order of
// addition matters to float32's accuracy and float16 does not overflow; then x - mean.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/column_sums.h"
#include "core/past_cache.h"
#include "core/simd.h"

namespace blockops::cpu {

constexpr int64_t kLanes = 32;  // of a sum along memory

// lanes[i % kLanes] += x[i], for i < size, a multiple of kLanes.
template <class T>
inline void add_lanes(const T* x, int64_t size, double* lanes) {
  for (int64_t i = 0; i < size; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += static_cast<Real<T>>(x[i + lane]);
}

template <class T>
inline double sum_along(const T* x, int64_t size) {
  if (size < kLanes) {
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += static_cast<Real<T>>(x[i]);
    return sum;
  }
  double lanes[kLanes] = {};
  constexpr int64_t block = 2 * kLanes;
  const bool is_long = size * int64_t(sizeof(T)) >= kLongRun;
  const int64_t stream = is_long ? size / (kStreams * block) * block : 0;
  for (int64_t i = 0; i < stream; i += block)
    for (int64_t s = 0; s < kStreams; ++s) add_lanes(x + s * stream + i, block, lanes);
  int64_t i = kStreams * stream;
  const int64_t whole = (size - i) / kLanes * kLanes;
  add_lanes(x + i, whole, lanes);
  for (i += whole; i < size; ++i) lanes[size - 1 - i] += static_cast<Real<T>>(x[i]);
  for (int64_t half = kLanes / 2; half > 0; half /= 2)
    for (int64_t lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  return lanes[0];
}

// y = x - mean.
template <class T>
inline void subtract(const T* x, int64_t size, Real<T> mean, T* y, bool past_cache) {
  write(y, size, past_cache,
        [&](int64_t i) { return static_cast<T>(static_cast<Real<T>>(x[i]) - mean); });
}

// sums[r] += sum of row r, for rows of `size` elements that follow each other.
template <class T>
BLOCKOPS_SIMD_CLONES void add_rows(const T* x, int64_t rows, int64_t size, double* sums) {
  for (int64_t r = 0; r < rows; ++r) sums[r] += sum_along(x + r * size, size);
}

// y = x - means[r] in row r.
template <class T>
BLOCKOPS_SIMD_CLONES void subtract_from_rows(const T* x, int64_t rows, int64_t size,
                                             const Real<T>* means, T* y, bool past_cache) {
  for (int64_t r = 0; r < rows; ++r)
    subtract(x + r * size, size, means[r], y + r * size, past_cache);
  finish_past_cache(past_cache);
}

// Both for rows that have a mean each.
template <class T>
BLOCKOPS_SIMD_CLONES void center_rows(const T* x, int64_t rows, int64_t size, T* y,
                                      bool past_cache) {
  for (int64_t r = 0; r < rows; ++r) {
    const auto mean = static_cast<Real<T>>(sum_along(x + r * size, size) / size);
    subtract(x + r * size, size, mean, y + r * size, past_cache);
  }
  finish_past_cache(past_cache);
}

// y = x - means in one row.
template <class T>
inline void subtract_row(const T* x, int64_t size, const Real<T>* means, T* y, bool past_cache) {
  write(y, size, past_cache,
        [&](int64_t i) { return static_cast<T>(static_cast<Real<T>>(x[i]) - means[i]); });
}

// y = x - means[c] in column c.
template <class T>
BLOCKOPS_SIMD_CLONES void subtract_from_columns(const T* x, int64_t rows, int64_t stride,
                                                int64_t cols, const Real<T>* means, T* y,
                                                bool past_cache) {
  Real<T> wide[kWidened];
  if (cols == stride && cols < kNarrow) {  // rows by `copies`, and the rest as a part of such a row
    const int64_t copies = kWidened / cols, width = copies * cols;
    for (int64_t i = 0; i < width; ++i) wide[i] = means[i % cols];
    for (int64_t begin = 0; begin < rows * cols; begin += width) {
      const int64_t size = std::min(width, rows * cols - begin);
      subtract_row(x + begin, size, wide, y + begin, past_cache);
    }
  } else {
    for (int64_t r = 0; r < rows; ++r)
      subtract_row(x + r * stride, cols, means, y + r * stride, past_cache);
  }
  finish_past_cache(past_cache);
}

}  // namespace blockops::cpu
