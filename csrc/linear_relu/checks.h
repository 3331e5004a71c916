// The shape rules of linear_relu, asked by the kernels of every device and by Meta.
#pragma once
#include "core/checks.h"

namespace blockops {

inline void check_linear_relu(const char* op, const Tensor& x, const Tensor& weight,
                              const OptionalTensor& bias = {}) {
  check_vector_input(op, "x", x);
  check_like(op, "x", x, "weight", weight);
  if (bias) check_like(op, "x", x, "bias", *bias);
  const auto n = x.sym_size(-1);
  TORCH_CHECK_VALUE(weight.dim() == 2 && weight.sym_size(1) == n, op,
                    ": weight must be (m, n) with n = x.size(-1) = ", n, ", got ",
                    sizes_text(weight.sym_sizes()));
  check_bias(op, bias, weight.sym_size(0), 0);
}

// y is what the forward pass returned for x and weight, grad the gradient of it.
inline void check_linear_relu_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                       const Tensor& y) {
  const char* const op = "linear_relu_backward";
  check_linear_relu(op, x, weight);
  check_grad_of(op, "x", x, grad, weight, 0);
  check_like(op, "x", x, "y", y);
  TORCH_CHECK_VALUE(y.sym_sizes() == grad.sym_sizes(), op, ": y must have the sizes of grad, ",
                    sizes_text(grad.sym_sizes()), ", got ", sizes_text(y.sym_sizes()));
}

}  // namespace blockops
