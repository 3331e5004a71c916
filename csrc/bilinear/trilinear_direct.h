// The three passes of trilinear_cpu.h as plain loops over contiguous M (n1, n2, n3), for sizes
// where setting up tiles would cost more than the work: textbook layers, single rows. Vectors run
// along t. Those over the end of a row reach into the next: what they read there lands in lanes
// that nobody reads, and what they write there is written again, right, as that row comes later.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

#include "core/lanes.h"
#include "core/simd.h"

namespace blockops::cpu {

constexpr int64_t kDirectRows = 64;  // of the batch, at most
constexpr int64_t kDirectTerms =
    192;  // of a sum that are added in one go: long ones would round more

struct DirectForm {
  int64_t batch, n1, n2, n3;
  int64_t size() const { return n1 * n2 * n3; }
};

// total += the sum of `count` vectors of M, `stride` apart, each times its factor.
template <class T, class Vector>
[[gnu::always_inline]] inline void add_sum(const T* M, int64_t available, int64_t stride,
                                           const T* factors, int64_t count, Vector& total) {
  for (int64_t begin = 0, at = 0; begin < count; begin += kDirectTerms) {
    Vector sum = {}, row;
    const int64_t end = std::min(count, begin + kDirectTerms);
    for (int64_t i = begin; i < end; ++i, at += stride) {
      load(row, M + at, available - at);
      sum += factors[i] * row;
    }
    total += sum;
  }
}

// c_t = bias_t + sum_u a_u sum_v M_uvt b_v
template <class T, class Registers>
BLOCKOPS_SIMD_CLONES void direct_third(const DirectForm& form, const T* M, const T* a, const T* b,
                                       const T* bias, T* c) {
  using Vector = typename Lanes<T, Registers>::Vector;
  constexpr int64_t width = Lanes<T, Registers>::width;
  const auto [batch, n1, n2, n3] = form;
  for (int64_t r = 0; r < batch; ++r, a += n1, b += n2)
    for (int64_t first = 0; first < n3; first += width) {
      Vector total = {};
      if (bias) load(total, bias + first, n3 - first);
      for (int64_t u = 0; form.size() > 0 && u < n1; ++u) {
        const int64_t at = u * n2 * n3 + first;
        Vector sum = {};
        add_sum(M + at, form.size() - at, n3, b, n2, sum);
        total += a[u] * sum;
      }
      store(total, c + r * n3 + first, (batch - r) * n3 - first);
    }
}

template <class T, class Vector>
[[gnu::always_inline]] inline T sum_of_lanes(const Vector& vector) {
  if constexpr (sizeof(Vector) == sizeof(T)) {
    return vector[0];
  } else {
    typedef T Half __attribute__((vector_size(sizeof(Vector) / 2)));
    Half halves[2];
    std::memcpy(halves, &vector, sizeof(vector));
    return sum_of_lanes<T, Half>(halves[0] + halves[1]);
  }
}

// grad_p += sum_t c_t sum_q M_pqt other_q, where M_pqt lies at p * stride_p + q * stride_q + t.
template <class T, class Registers>
BLOCKOPS_SIMD_CLONES void direct_gradient(const DirectForm& form, const T* M, int64_t count_p,
                                          int64_t stride_p, int64_t count_q, int64_t stride_q,
                                          const T* other, const T* c, T* grad) {
  using Vector = typename Lanes<T, Registers>::Vector;
  using Mask = decltype(Vector{} == Vector{});
  constexpr int64_t width = Lanes<T, Registers>::width;
  const int64_t n3 = form.n3;
  for (int64_t r = 0; r < form.batch; ++r, other += count_q, grad += count_p)
    for (int64_t first = 0; first < n3; first += width) {
      Vector thirds;
      load(thirds, c + r * n3 + first, (form.batch - r) * n3 - first);
      Mask in_row;
      for (int64_t lane = 0; lane < width; ++lane) in_row[lane] = first + lane < n3 ? -1 : 0;
      for (int64_t p = 0; p < count_p; ++p) {
        const int64_t at = p * stride_p + first;
        Vector sum = {};
        add_sum(M + at, form.size() - at, stride_q, other, count_q, sum);
        const Mask of_row = reinterpret_cast<Mask>(sum * thirds) & in_row;
        grad[p] += sum_of_lanes<T>(reinterpret_cast<Vector>(of_row));
      }
    }
}

// M_uvt = sum_b a_bu b_bv c_bt
template <class T, class Registers>
BLOCKOPS_SIMD_CLONES void direct_matrix(const DirectForm& form, const T* a, const T* b, const T* c,
                                        T* M) {
  using Vector = typename Lanes<T, Registers>::Vector;
  constexpr int64_t width = Lanes<T, Registers>::width;
  const auto [batch, n1, n2, n3] = form;
  if (form.size() == 0) return;  // the batch may then have any number of rows
  Vector thirds[kDirectRows], scaled[kDirectRows];
  for (int64_t first = (n3 - 1) / width * width; first >= 0; first -= width) {
    for (int64_t r = 0; r < batch; ++r)
      load(thirds[r], c + r * n3 + first, (batch - r) * n3 - first);
    for (int64_t u = 0, at = first; u < n1; ++u) {
      for (int64_t r = 0; r < batch; ++r) scaled[r] = a[r * n1 + u] * thirds[r];
      for (int64_t v = 0; v < n2; ++v, at += n3) {
        Vector sum = {};
        for (int64_t r = 0; r < batch; ++r) sum += b[r * n2 + v] * scaled[r];
        store(sum, M + at, form.size() - at);
      }
    }
  }
}

// Calls body with registers that a row of n3 does not leave almost empty.
template <class T, class Body>
void with_registers_for(int64_t n3, const Body& body) {
  if (n3 * sizeof(T) <= SmallRegisters::bytes) return body(SmallRegisters());
  if (n3 * sizeof(T) <= NarrowRegisters::bytes) return body(NarrowRegisters());
  with_registers(body);
}

template <class T>
void direct_third_pass(const DirectForm& form, const T* M, const T* a, const T* b, const T* bias,
                       T* c) {
  with_registers_for<T>(form.n3, [&](auto registers) {
    direct_third<T, decltype(registers)>(form, M, a, b, bias, c);
  });
}

// A_uv = sum_t M_uvt c_t; grad_a_u = bias_u + sum_v A_uv b_v; grad_b_v = sum_u A_uv a_u: each
// where it is wanted, else null, and then b or a is not read. grad_a may be grad_b.
template <class T>
void direct_pair_pass(const DirectForm& form, const T* M, const T* a, const T* b, const T* c,
                      const T* bias, T* grad_a, T* grad_b) {
  const auto [batch, n1, n2, n3] = form;
  if (grad_b) std::fill_n(grad_b, batch * n2, T(0));
  for (int64_t r = 0; grad_a && r < batch; ++r)
    for (int64_t u = 0; u < n1; ++u) grad_a[r * n1 + u] = bias ? bias[u] : T(0);
  if (form.size() == 0) return;  // an infinity times an empty sum would be NaN
  with_registers_for<T>(n3, [&](auto registers) {
    constexpr auto gradient = direct_gradient<T, decltype(registers)>;
    if (grad_a) gradient(form, M, form.n1, form.n2 * form.n3, form.n2, form.n3, b, c, grad_a);
    if (grad_b) gradient(form, M, form.n2, form.n3, form.n1, form.n2 * form.n3, a, c, grad_b);
  });
}

template <class T>
void direct_matrix_pass(const DirectForm& form, const T* a, const T* b, const T* c, T* M) {
  with_registers_for<T>(
      form.n3, [&](auto registers) { direct_matrix<T, decltype(registers)>(form, a, b, c, M); });
}

}  // namespace blockops::cpu
