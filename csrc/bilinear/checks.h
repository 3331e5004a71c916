// The shape rules of the bilinear family, asked by the kernels of every device and by Meta.
#pragma once
#include "core/checks.h"

namespace blockops {

inline void check_quadratic(const char* op, const Tensor& x, const Tensor& weight,
                            const OptionalTensor& bias = {}) {
  check_vector_input(op, "x", x);
  check_like(op, "x", x, "weight", weight);
  if (bias) check_like(op, "x", x, "bias", *bias);
  const auto n = x.sym_size(-1);
  TORCH_CHECK_VALUE(weight.dim() == 3 && weight.sym_size(0) == n && weight.sym_size(1) == n, op,
                    ": weight must be (n, n, m) with n = x.size(-1) = ", n, ", got ",
                    sizes_text(weight.sym_sizes()));
  check_bias(op, bias, weight.sym_size(2), 2);
}

// x1 and x2 as vectors of the same rows.
inline void check_inputs(const char* op, const Tensor& x1, const Tensor& x2) {
  check_vector_input(op, "x1", x1);
  check_vector_input(op, "x2", x2);
  check_like(op, "x1", x1, "x2", x2);
  const auto leading = x1.sym_sizes().slice(0, x1.dim() - 1);
  TORCH_CHECK_VALUE(leading == x2.sym_sizes().slice(0, x2.dim() - 1), op,
                    ": x2 must be (*, n2) with the leading sizes of x1, * = ", sizes_text(leading),
                    ", got ", sizes_text(x2.sym_sizes()));
}

inline void check_bilinear(const char* op, const Tensor& x1, const Tensor& x2, const Tensor& weight,
                           const OptionalTensor& bias = {}) {
  check_inputs(op, x1, x2);
  check_like(op, "x1", x1, "weight", weight);
  if (bias) check_like(op, "x1", x1, "bias", *bias);
  const auto n1 = x1.sym_size(-1);
  const auto n2 = x2.sym_size(-1);
  TORCH_CHECK_VALUE(weight.dim() == 3 && weight.sym_size(1) == n1 && weight.sym_size(2) == n2, op,
                    ": weight must be (m, n1, n2) with n1 = x1.size(-1) = ", n1,
                    " and n2 = x2.size(-1) = ", n2, ", got ", sizes_text(weight.sym_sizes()));
  check_bias(op, bias, weight.sym_size(0), 0);
}

}  // namespace blockops
