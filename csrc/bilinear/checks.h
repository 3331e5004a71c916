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

// grad (*, m) of a gradient op, where x (*, n) gives the leading sizes.
inline void check_grad(const char* op, const char* x_name, const Tensor& x, const Tensor& grad) {
  check_like(op, x_name, x, "grad", grad);
  const auto leading = x.sym_sizes().slice(0, x.dim() - 1);
  TORCH_CHECK_VALUE(grad.dim() == x.dim() && grad.sym_sizes().slice(0, x.dim() - 1) == leading, op,
                    ": grad must be (*, m) with the leading sizes of ", x_name,
                    ", * = ", sizes_text(leading), ", got ", sizes_text(grad.sym_sizes()));
}

inline void check_grad_of(const char* op, const char* x_name, const Tensor& x, const Tensor& grad,
                          const Tensor& weight, int64_t axis) {
  check_grad(op, x_name, x, grad);
  TORCH_CHECK_VALUE(grad.sym_size(-1) == weight.sym_size(axis), op,
                    ": grad must be (*, m) with m = weight.size(", axis,
                    ") = ", weight.sym_size(axis), ", got ", sizes_text(grad.sym_sizes()));
}

}  // namespace blockops
