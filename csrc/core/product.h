// A matrix product in registers, for operands that lie in the cache already: blocks of a kernel's
// own loops. Each tile of the result is summed in registers over the whole depth, so keep that to
// a few hundred; nothing is packed, so choose strides that do not crowd a cache's sets.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/ahead.h"
#include "core/simd.h"

namespace blockops::cpu {

template <class T>
struct Matrix {  // a strided view
  T* data;
  int64_t rows, cols, row_stride, col_stride;
  Matrix some_rows(int64_t first, int64_t count) const {
    return {data + first * row_stride, count, cols, row_stride, col_stride};
  }
  Matrix transposed() const { return {data, cols, rows, col_stride, row_stride}; }
};

// A matrix with contiguous rows: row i starts at data + i * stride.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t row) const { return data + row * stride; }
  operator Rows<const T>() const { return {data, stride}; }
};

constexpr int kTileVectors = 3;  // of a row of a tile
template <class Registers>
constexpr int kTileRows = Registers::sums / kTileVectors;

// to (+)= sums: all of them, or the first `count`.
template <class T, class Vector>
[[gnu::always_inline]] inline void store_vector(const Vector& sums, bool accumulate, T* to,
                                                int64_t count = sizeof(Vector) / sizeof(T)) {
  Vector all = {};
  if (accumulate) std::memcpy(&all, to, count * sizeof(T));
  all += sums;
  std::memcpy(to, &all, count * sizeof(T));
}

// One tile: out (rows, cols) (+)= a b, with `ahead` or null, where `cols` fill `vectors` registers,
// the last in part.
template <class T, class Registers, int rows, int vectors>
BLOCKOPS_SIMD_CLONES void product_tile(const Matrix<const T>& a, Rows<const T> b, int64_t cols,
                                       Rows<T> out, bool accumulate, Ahead* ahead) {
  typedef T Vector __attribute__((vector_size(Registers::bytes)));
  constexpr int64_t width = Registers::bytes / sizeof(T);
  const int64_t depth = a.cols, a_row = a.row_stride, a_col = a.col_stride;
  const T* a_d = a.data;
  const T* b_d = b.data;
  for (int u = 0; u < rows; ++u)  // asked for now, they are there when the sums are done
    for (int v = 0; v < vectors; ++v) __builtin_prefetch(out[u] + v * width, /*write=*/1);
  Vector total[rows][vectors] = {};
  const auto add_products = [&]() __attribute__((always_inline)) {
    Vector b_v[vectors];
    for (int v = 0; v < vectors; ++v) std::memcpy(&b_v[v], b_d + v * width, sizeof(Vector));
    for (int u = 0; u < rows; ++u)
      for (int v = 0; v < vectors; ++v) total[u][v] += a_d[u * a_row] * b_v[v];
    a_d += a_col;
    b_d += b.stride;
  };
  for (int64_t d = 0; d < depth;) {
    const int64_t steps = ahead ? ahead->ask() / (rows * vectors * width) : depth;
    for (const int64_t end = d + std::min(steps, depth - d); d < end; ++d) add_products();
  }
  const int64_t last = cols - (vectors - 1) * width;  // columns of the last register
  if (last >= width) {
#pragma GCC unroll 24  // or the sums would be kept in memory
    for (int i = 0; i < rows * vectors; ++i)
      store_vector(total[i / vectors][i % vectors], accumulate,
                   out[i / vectors] + i % vectors * width);
  } else {
#pragma GCC unroll 24
    for (int i = 0; i < rows * vectors; ++i)
      store_vector(total[i / vectors][i % vectors], accumulate,
                   out[i / vectors] + i % vectors * width,
                   i % vectors + 1 < vectors ? width : last);
  }
}

// The tiles of some columns, `vectors` registers wide: of most rows, and of half as many, two and
// one for what is left.
template <class T, class Registers, int vectors>
void product_columns(Matrix<const T> a, Rows<const T> b, int64_t cols, Rows<T> out, bool accumulate,
                     Ahead* ahead) {
  const auto step = [&](auto rows) {
    product_tile<T, Registers, rows, vectors>(a, b, cols, out, accumulate, ahead);
    a.data += rows * a.row_stride;
    out.data += rows * out.stride;
    a.rows -= rows;
  };
  constexpr int most = kTileRows<Registers>;
  while (a.rows >= most) step(std::integral_constant<int, most>());
  if (a.rows >= most / 2) step(std::integral_constant<int, most / 2>());
  if (a.rows >= 2) step(std::integral_constant<int, 2>());
  if (a.rows >= 1) step(std::integral_constant<int, 1>());
}

template <class T, class Registers>
void product(const Matrix<const T>& a, Rows<const T> b, int64_t cols, Rows<T> out, bool accumulate,
             Ahead* ahead) {
  constexpr int64_t width = Registers::bytes / sizeof(T), most = kTileVectors * width;
  for (int64_t c = 0; c < cols; c += most) {
    const Rows<const T> b_c{b.data + c, b.stride};
    const Rows<T> out_c{out.data + c, out.stride};
    const int64_t left = cols - c;
    if (left > 2 * width) {
      product_columns<T, Registers, 3>(a, b_c, left, out_c, accumulate, ahead);
    } else if (left > width) {
      product_columns<T, Registers, 2>(a, b_c, left, out_c, accumulate, ahead);
    } else {
      product_columns<T, Registers, 1>(a, b_c, left, out_c, accumulate, ahead);
    }
  }
}

// out (a.rows, cols) = a b, or += a b. The rows of b are read in whole vectors of at most 64 bytes,
// past `cols` if need be; where they are read often they should begin at multiples of 64 bytes.
// ahead: what to ask for meanwhile, or null.
template <class T>
void product(const Matrix<const T>& a, Rows<const T> b, int64_t cols, Rows<T> out, bool accumulate,
             Ahead* ahead = nullptr) {
  with_registers(
      [&](auto registers) { product<T, decltype(registers)>(a, b, cols, out, accumulate, ahead); });
}

}  // namespace blockops::cpu
