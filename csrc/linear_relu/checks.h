// The shape rules of linear_relu, asked by the kernels of every device and by Meta.
#pragma once
#include <array>

#include "core/checks.h"

namespace blockops {

template <class Sizes = Numbers>
void check_linear_relu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const char* const op = "linear_relu";
  check_vector_input(op, "x", x);
  check_like(op, "x", x, "weight", weight);
  if (bias) check_like(op, "x", x, "bias", *bias);
  const auto n = Sizes::size(x, -1);
  BLOCKOPS_CHECK(TORCH_CHECK_VALUE, weight.dim() == 2 && Sizes::size(weight, 1) == n, op,
                 ": weight must be (m, n) with n = x.size(-1) = ", n, ", got ",
                 sizes_text(weight.sym_sizes()));
  check_bias<Sizes>(op, bias, Sizes::size(weight, 0), 0);
}

// y (*, m) is what the forward pass returned, grad the gradient of it. Of x and weight only what a
// wanted gradient is made of must be given: weight for that of x, x for that of weight.
template <class Sizes = Numbers>
void check_linear_relu_backward(const Tensor& grad, const OptionalTensor& x,
                                const OptionalTensor& weight, const Tensor& y,
                                const std::array<bool, 3>& wanted) {
  const char* const op = "linear_relu_backward";
  check_vector_input(op, "grad", grad);
  check_like(op, "grad", grad, "y", y);
  BLOCKOPS_CHECK(TORCH_CHECK_VALUE, Sizes::sizes(y) == Sizes::sizes(grad), op,
                 ": y must have the sizes of grad, ", sizes_text(grad.sym_sizes()), ", got ",
                 sizes_text(y.sym_sizes()));
  if (wanted[0]) {
    BLOCKOPS_CHECK(TORCH_CHECK_VALUE, weight, op,
                   ": weight must be given for the gradient of x, got None");
    check_like(op, "grad", grad, "weight", *weight);
    const auto m = Sizes::size(grad, -1);
    BLOCKOPS_CHECK(TORCH_CHECK_VALUE, weight->dim() == 2 && Sizes::size(*weight, 0) == m, op,
                   ": weight must be (m, n) with m = grad.size(-1) = ", m, ", got ",
                   sizes_text(weight->sym_sizes()));
  }
  if (wanted[1]) {
    BLOCKOPS_CHECK(TORCH_CHECK_VALUE, x, op,
                   ": x must be given for the gradient of weight, got None");
    check_like(op, "grad", grad, "x", *x);
    BLOCKOPS_CHECK(TORCH_CHECK_VALUE,
                   x->dim() == grad.dim() && leading_sizes<Sizes>(*x) == leading_sizes<Sizes>(grad),
                   op, ": x must be (*, n) with the leading sizes of grad, * = ",
                   sizes_text(leading_sizes(grad)), ", got ", sizes_text(x->sym_sizes()));
  }
}

}  // namespace blockops
