// The pieces of trilinear_cpu.h that know no threads and no tensors: the order of the pairs, and
// the elementwise loops over one tile of them.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/simd.h"

namespace blockops::cpu {

// The pairs (u, v) in order: all of n1 x n2, or with `upper` those with u <= v of n1 = n2.
struct Pairs {
  int64_t n1, n2;
  bool upper;

  int64_t size() const { return upper ? n1 * (n1 + 1) / 2 : n1 * n2; }
  int64_t first_v(int64_t u) const { return upper ? u : 0; }
  int64_t row_start(int64_t u) const { return upper ? u * n2 - u * (u - 1) / 2 : u * n2; }
};

// Walks the stretches of pairs (u, v), (u, v + 1), ... of one u in [begin, end); `offset` counts
// pairs from begin.
struct Run {
  const Pairs& pairs;
  int64_t begin, end, offset = 0, u = 0, v = 0, count = 0;

  Run(const Pairs& pairs, int64_t begin, int64_t end) : pairs(pairs), begin(begin), end(end) {
    if (pairs.upper) {
      while (u + 1 < pairs.n1 && pairs.row_start(u + 1) <= begin) ++u;
    } else if (begin < end) {
      u = begin / pairs.n2;
    }
    v = pairs.first_v(u) + begin - pairs.row_start(u);
    count = std::min(pairs.n2 - v, end - begin);
  }
  bool valid() const { return count > 0; }
  void advance() {
    offset += count;
    v = pairs.first_v(++u);
    count = std::min(pairs.n2 - v, end - begin - offset);
  }
};

// Transposed operands, (features, batch): the row of feature f starts at data + f * stride.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t feature) const { return data + feature * stride; }
};

// out[p - begin][r] = a_u[r] b_v[r].
template <class T>
BLOCKOPS_SIMD_CLONES void khatri_rao(const Pairs& pairs, int64_t begin, int64_t end,
                                     Rows<const T> a, Rows<const T> b, int64_t lanes, Rows<T> out) {
  for (Run run(pairs, begin, end); run.valid(); run.advance()) {
    const T* const a_u = a[run.u];
    for (int64_t s = 0; s < run.count; ++s) {
      const T* const b_v = b[run.v + s];
      T* __restrict const row = out[run.offset + s];
      for (int64_t r = 0; r < lanes; ++r) row[r] = a_u[r] * b_v[r];
    }
  }
}

// grad[r] += A_p[r] other[r]
template <class T>
inline void multiply_add(const T* A_p, const T* other, int64_t lanes, T* __restrict grad) {
  for (int64_t r = 0; r < lanes; ++r) grad[r] += A_p[r] * other[r];
}

// grad_a_u[r] += A_p[r] b_v[r] and grad_b_v[r] += A_p[r] a_u[r]. With grad_a = grad_b the two fall
// on the same rows, one after the other.
template <class T>
BLOCKOPS_SIMD_CLONES void contract(const Pairs& pairs, int64_t begin, int64_t end, Rows<const T> A,
                                   Rows<const T> a, Rows<const T> b, int64_t lanes, Rows<T> grad_a,
                                   Rows<T> grad_b) {
  for (Run run(pairs, begin, end); run.valid(); run.advance()) {
    for (int64_t s = 0; s < run.count; ++s) {
      const T* const A_p = A[run.offset + s];
      multiply_add(A_p, b[run.v + s], lanes, grad_a[run.u]);
      multiply_add(A_p, a[run.u], lanes, grad_b[run.v + s]);
    }
  }
}

// The matrix M of a form. Plain: M[p, t] = data[p + t * third_stride]. Symmetric (the pairs are
// `upper`): data is quadratic's weight (n, n, m) and M[(i, j), k] = W_ijk + W_jik, or W_iik: T
// needs only the sum.
template <class T>
struct Weight {
  Pairs pairs;
  int64_t n3;
  const T* data;
  int64_t third_stride;
};

// Rows [begin, end) of M as contiguous rows of n3, M symmetric.
template <class T>
BLOCKOPS_SIMD_CLONES void pack_symmetric(const Weight<T>& weight, int64_t begin, int64_t end,
                                         T* out) {
  const int64_t n = weight.pairs.n1, m = weight.n3;
  for (Run run(weight.pairs, begin, end); run.valid(); run.advance()) {
    const T* upper = weight.data + (run.u * n + run.v) * m;
    const T* lower = weight.data + (run.v * n + run.u) * m;
    T* __restrict row = out + run.offset * m;
    for (int64_t s = 0; s < run.count; ++s, upper += m, lower += n * m, row += m) {
      if (run.v + s == run.u) {
        std::copy(upper, upper + m, row);
      } else {
        for (int64_t k = 0; k < m; ++k) row[k] = upper[k] + lower[k];
      }
    }
  }
}

// The way back: rows [begin, end) of M, contiguous, to both halves of grad (n, n, m).
template <class T>
BLOCKOPS_SIMD_CLONES void unpack_symmetric(const Pairs& pairs, int64_t m, const T* rows,
                                           int64_t begin, int64_t end, T* grad) {
  const int64_t n = pairs.n1;
  for (Run run(pairs, begin, end); run.valid(); run.advance()) {
    const T* row = rows + run.offset * m;
    T* upper = grad + (run.u * n + run.v) * m;
    T* lower = grad + (run.v * n + run.u) * m;
    for (int64_t s = 0; s < run.count; ++s, row += m, upper += m, lower += n * m)
      for (int64_t k = 0; k < m; ++k) upper[k] = lower[k] = row[k];
  }
}

// sums[i] += the further parts, part_stride apart, in order.
template <class T>
BLOCKOPS_SIMD_CLONES void add_parts(T* sums, int64_t parts, int64_t part_stride, int64_t count) {
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < count; ++i) sums[i] += sums[part * part_stride + i];
}

template <class T>
BLOCKOPS_SIMD_CLONES void add_constant(T* sums, T constant, int64_t count) {
  for (int64_t i = 0; i < count; ++i) sums[i] += constant;
}

}  // namespace blockops::cpu
