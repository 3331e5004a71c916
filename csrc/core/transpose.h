// Transposition of a strided matrix through registers, four by four.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/simd.h"

// Elements i, j, k, l of the eight that two vectors of four hold.
#if defined(__clang__) || __GNUC__ >= 12
#define BLOCKOPS_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define BLOCKOPS_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, Indices{i, j, k, l})
#endif

namespace blockops {

// out[c * out_stride + r] = in[r * in_stride + c], for r < rows and c < cols.
template <class T>
BLOCKOPS_SIMD_CLONES void transpose(const T* in, int64_t in_stride, int64_t rows, int64_t cols,
                                    T* out, int64_t out_stride) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Index Indices [[maybe_unused]] __attribute__((vector_size(4 * sizeof(T))));
  const int64_t whole_rows = rows / 4 * 4, whole_cols = cols / 4 * 4;
  for (int64_t r = 0; r < whole_rows; r += 4) {
    for (int64_t c = 0; c < whole_cols; c += 4) {
      const T* const from = in + r * in_stride + c;
      Four row0, row1, row2, row3;
      std::memcpy(&row0, from, sizeof(Four));
      std::memcpy(&row1, from + in_stride, sizeof(Four));
      std::memcpy(&row2, from + 2 * in_stride, sizeof(Four));
      std::memcpy(&row3, from + 3 * in_stride, sizeof(Four));
      const Four low01 = BLOCKOPS_SHUFFLE(row0, row1, 0, 4, 1, 5);
      const Four high01 = BLOCKOPS_SHUFFLE(row0, row1, 2, 6, 3, 7);
      const Four low23 = BLOCKOPS_SHUFFLE(row2, row3, 0, 4, 1, 5);
      const Four high23 = BLOCKOPS_SHUFFLE(row2, row3, 2, 6, 3, 7);
      const Four columns[4] = {BLOCKOPS_SHUFFLE(low01, low23, 0, 1, 4, 5),
                               BLOCKOPS_SHUFFLE(low01, low23, 2, 3, 6, 7),
                               BLOCKOPS_SHUFFLE(high01, high23, 0, 1, 4, 5),
                               BLOCKOPS_SHUFFLE(high01, high23, 2, 3, 6, 7)};
      for (int i = 0; i < 4; ++i)
        std::memcpy(out + (c + i) * out_stride + r, &columns[i], sizeof(Four));
    }
    for (int64_t c = whole_cols; c < cols; ++c)
      for (int64_t i = r; i < r + 4; ++i) out[c * out_stride + i] = in[i * in_stride + c];
  }
  for (int64_t r = whole_rows; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) out[c * out_stride + r] = in[r * in_stride + c];
}

}  // namespace blockops
