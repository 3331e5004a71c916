// The pieces of trilinear_cpu.h that know no threads and no tensors: the order of the pairs, and
// the elementwise loops over one tile of them.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/past_cache.h"
#include "core/product.h"
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
    if (pairs.upper) {  // u, where row_start(u) = begin; a double tells it from its neighbours
      const double side = 2.0 * pairs.n1 + 1;
      u = static_cast<int64_t>((side - std::sqrt(side * side - 8.0 * begin)) / 2);
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

// out[p - begin][r] = a_u[r] b_v[r], with operands (features, batch).
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

// out[r][p - begin] = a_ru b_rv, for rows r of the batch as they lie.
template <class T>
BLOCKOPS_SIMD_CLONES void khatri_rao_rows(const Pairs& pairs, int64_t begin, int64_t end,
                                          int64_t rows, const T* a, const T* b, Rows<T> out) {
  for (Run run(pairs, begin, end); run.valid(); run.advance())
    for (int64_t r = 0; r < rows; ++r) {
      const T a_u = a[r * pairs.n1 + run.u];
      const T* const b_v = b + r * pairs.n2 + run.v;
      T* __restrict const row = out[r] + run.offset;
      for (int64_t s = 0; s < run.count; ++s) row[s] = a_u * b_v[s];
    }
}

// grad_a_u[r] += sum_v A_uv[r] b_v[r] and grad_b_v[r] += A_uv[r] a_u[r], for the pairs of a run and
// `vectors` registers of the batch. grad_a_u may be one of the rows of grad_b.
template <class T, class Registers, int vectors>
[[gnu::always_inline]] inline void contract_run(int64_t count, Rows<const T> A, const T* a_u,
                                                Rows<const T> b, T* grad_a_u, Rows<T> grad_b) {
  typedef T Vector __attribute__((vector_size(Registers::bytes)));
  Vector a_i[vectors], to_a[vectors] = {};
  for (int i = 0; i < vectors; ++i) a_i[i] = reinterpret_cast<const Vector*>(a_u)[i];
  for (int64_t s = 0; s < count; ++s) {
    const auto* const A_s = reinterpret_cast<const Vector*>(A[s]);
    const auto* const b_s = reinterpret_cast<const Vector*>(b[s]);
    auto* const to_b = reinterpret_cast<Vector*>(grad_b[s]);
    for (int i = 0; i < vectors; ++i) {
      to_a[i] += A_s[i] * b_s[i];
      to_b[i] += A_s[i] * a_i[i];
    }
  }
  for (int i = 0; i < vectors; ++i) reinterpret_cast<Vector*>(grad_a_u)[i] += to_a[i];
}

// The same for pairs [begin, end), of which A holds a row each, and whole vectors of `lanes` rows
// of the batch.
template <class T, class Registers>
BLOCKOPS_SIMD_CLONES void contract(const Pairs& pairs, int64_t begin, int64_t end, Rows<const T> A,
                                   Rows<const T> a, Rows<const T> b, int64_t lanes, Rows<T> grad_a,
                                   Rows<T> grad_b) {
  constexpr int64_t width = Registers::bytes / sizeof(T);
  for (Run run(pairs, begin, end); run.valid(); run.advance())
    for (int64_t r = 0; r < lanes;) {
      const Rows<const T> A_r{A[run.offset] + r, A.stride}, b_r{b[run.v] + r, b.stride};
      const Rows<T> to_b{grad_b[run.v] + r, grad_b.stride};
      const T* const a_r = a[run.u] + r;
      T* const to_a = grad_a[run.u] + r;
      if (r + 3 * width <= lanes) {
        contract_run<T, Registers, 3>(run.count, A_r, a_r, b_r, to_a, to_b);
        r += 3 * width;
      } else {
        contract_run<T, Registers, 1>(run.count, A_r, a_r, b_r, to_a, to_b);
        r += width;
      }
    }
}

template <class T>
void contract(const Pairs& pairs, int64_t begin, int64_t end, Rows<const T> A, Rows<const T> a,
              Rows<const T> b, int64_t lanes, Rows<T> grad_a, Rows<T> grad_b) {
  with_registers([&](auto registers) {
    contract<T, decltype(registers)>(pairs, begin, end, A, a, b, lanes, grad_a, grad_b);
  });
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

// Rows [begin, end) of M, symmetric, to `out`: `count` columns from `first` on.
template <class T>
BLOCKOPS_SIMD_CLONES void pack_symmetric(const Weight<T>& weight, int64_t begin, int64_t end,
                                         int64_t first, int64_t count, Rows<T> out) {
  const int64_t n = weight.pairs.n1, m = weight.n3;
  for (Run run(weight.pairs, begin, end); run.valid(); run.advance()) {
    const T* upper = weight.data + (run.u * n + run.v) * m + first;
    const T* lower = weight.data + (run.v * n + run.u) * m + first;
    for (int64_t s = 0; s < run.count; ++s, upper += m, lower += n * m) {
      T* __restrict const row = out[run.offset + s];
      if (run.v + s == run.u) {
        std::copy(upper, upper + count, row);
      } else {
        for (int64_t k = 0; k < count; ++k) row[k] = upper[k] + lower[k];
      }
    }
  }
}

// Lists the memory that rows [begin, end) of M and `count` columns from `first` on come from.
template <class T>
void list_rows(const Weight<T>& weight, int64_t begin, int64_t end, int64_t first, int64_t count,
               Ahead& ahead) {
  if (!weight.pairs.upper) {
    ahead.begin((end - begin) * sizeof(T));
    for (int64_t t = first; t < first + count; ++t)
      ahead.add(weight.data + t * weight.third_stride + begin);
    return;
  }
  ahead.begin(count * sizeof(T));
  const int64_t n = weight.pairs.n1, m = weight.n3;
  for (Run run(weight.pairs, begin, end); run.valid(); run.advance())
    for (int64_t v = run.v; v < run.v + run.count; ++v) {
      ahead.add(weight.data + (run.u * n + v) * m + first);
      if (v > run.u) ahead.add(weight.data + (v * n + run.u) * m + first);
    }
}

// Part of a matrix with rows `stride` apart, to rows of their own.
template <class T>
void copy_tile(const T* from, int64_t stride, int64_t rows, int64_t cols, Rows<T> to) {
  for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * stride, cols, to[r]);
}

template <class T>
inline void write_row(const T* from, int64_t size, T* to, bool past_cache) {
  write(to, size, past_cache, [&](int64_t i) { return from[i]; });
}

// A tile of a result, to rows `stride` apart, past the cache.
template <class T>
BLOCKOPS_SIMD_CLONES void write_tile_past_cache(Rows<const T> from, int64_t rows, int64_t cols,
                                                T* to, int64_t stride) {
  for (int64_t r = 0; r < rows; ++r) write_row(from[r], cols, to + r * stride, true);
  finish_past_cache(true);
}

// pack_symmetric's way back: `count` columns of rows [begin, end) of M to both halves of grad
// (n, n, m).
template <class T>
BLOCKOPS_SIMD_CLONES void unpack_symmetric(const Pairs& pairs, int64_t m, Rows<const T> rows,
                                           int64_t begin, int64_t end, int64_t count, T* grad,
                                           bool past_cache) {
  const int64_t n = pairs.n1;
  for (Run run(pairs, begin, end); run.valid(); run.advance()) {
    T* upper = grad + (run.u * n + run.v) * m;
    T* lower = grad + (run.v * n + run.u) * m;
    for (int64_t s = 0; s < run.count; ++s, upper += m, lower += n * m) {
      const T* const row = rows[run.offset + s];
      write_row(row, count, upper, past_cache);
      write_row(row, count, lower, past_cache);
    }
  }
  finish_past_cache(past_cache);
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
