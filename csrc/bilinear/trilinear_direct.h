// The three passes of trilinear_cpu.h as plain loops over contiguous M (n1, n2, n3), for sizes
// where setting up tiles would cost more than the work: textbook layers, single rows.
#pragma once
#include <algorithm>
#include <cstdint>

#include "core/simd.h"

namespace blockops::cpu {

struct DirectForm {
  int64_t batch, n1, n2, n3;
};

// c_t = bias_t + sum_u a_u sum_v M_uvt b_v; each sum on its own, for one long one would round more.
template <class T>
BLOCKOPS_SIMD_CLONES void direct_third_pass(const DirectForm& form, const T* M, const T* a,
                                            const T* b, const T* bias, T* c) {
  constexpr int64_t kStretch = 64;
  const auto [batch, n1, n2, n3] = form;
  for (int64_t r = 0; r < batch; ++r, a += n1, b += n2, c += n3)
    for (int64_t first = 0; first < n3; first += kStretch) {
      const int64_t count = std::min(kStretch, n3 - first);
      for (int64_t t = 0; t < count; ++t) c[first + t] = bias ? bias[first + t] : T(0);
      for (int64_t u = 0; u < n1; ++u) {
        T sum[kStretch] = {};
        const T* row = M + u * n2 * n3 + first;
        for (int64_t v = 0; v < n2; ++v, row += n3)
          for (int64_t t = 0; t < count; ++t) sum[t] += b[v] * row[t];
        for (int64_t t = 0; t < count; ++t) c[first + t] += a[u] * sum[t];
      }
    }
}

// A_uv = sum_t M_uvt c_t; grad_a_u = bias_u + sum_v A_uv b_v; grad_b_v = sum_u A_uv a_u: each
// where it is wanted, else null. grad_a may be grad_b.
template <class T>
BLOCKOPS_SIMD_CLONES void direct_pair_pass(const DirectForm& form, const T* M, const T* a,
                                           const T* b, const T* c, const T* bias, T* grad_a,
                                           T* grad_b) {
  const auto [batch, n1, n2, n3] = form;
  if (grad_b) std::fill(grad_b, grad_b + batch * n2, T(0));
  for (int64_t r = 0; r < batch; ++r, c += n3) {
    T* const to_a = grad_a ? grad_a + r * n1 : nullptr;
    T* const to_b = grad_b ? grad_b + r * n2 : nullptr;
    if (to_a)
      for (int64_t u = 0; u < n1; ++u) to_a[u] = bias ? bias[u] : T(0);
    const T* row = M;
    for (int64_t u = 0; u < n1; ++u)
      for (int64_t v = 0; v < n2; ++v, row += n3) {
        T A = 0;
        for (int64_t t = 0; t < n3; ++t) A += row[t] * c[t];
        if (to_a) to_a[u] += A * b[r * n2 + v];
        if (to_b) to_b[v] += A * a[r * n1 + u];
      }
  }
}

// M_uvt = sum_b a_bu b_bv c_bt
template <class T>
BLOCKOPS_SIMD_CLONES void direct_matrix_pass(const DirectForm& form, const T* a, const T* b,
                                             const T* c, T* M) {
  const auto [batch, n1, n2, n3] = form;
  std::fill(M, M + n1 * n2 * n3, T(0));
  for (int64_t r = 0; r < batch; ++r, a += n1, b += n2, c += n3) {
    T* row = M;
    for (int64_t u = 0; u < n1; ++u)
      for (int64_t v = 0; v < n2; ++v, row += n3) {
        const T product = a[u] * b[v];
        for (int64_t t = 0; t < n3; ++t) row[t] += product * c[t];
      }
  }
}

}  // namespace blockops::cpu
