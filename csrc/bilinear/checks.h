// The shape rules of the bilinear family, asked by the kernels of every device and by Meta.
#pragma once
#include "core/checks.h"

namespace blockops {

template <class Sizes = Numbers>
void check_quadratic(const char* op, const Tensor& x, const Tensor& weight,
                     const OptionalTensor& bias = {}) {
  check_vector_input(op, "x", x);
  check_like(op, "x", x, "weight", weight);
  if (bias) check_like(op, "x", x, "bias", *bias);
  const auto n = Sizes::size(x, -1);
  BLOCKOPS_CHECK(TORCH_CHECK_VALUE,
                 weight.dim() == 3 && Sizes::size(weight, 0) == n && Sizes::size(weight, 1) == n,
                 op, ": weight must be (n, n, m) with n = x.size(-1) = ", n, ", got ",
                 sizes_text(weight.sym_sizes()));
  check_bias<Sizes>(op, bias, Sizes::size(weight, 2), 2);
}

// x1 and x2 as vectors of the same rows.
template <class Sizes = Numbers>
void check_inputs(const char* op, const Tensor& x1, const Tensor& x2) {
  check_vector_input(op, "x1", x1);
  check_vector_input(op, "x2", x2);
  check_like(op, "x1", x1, "x2", x2);
  BLOCKOPS_CHECK(TORCH_CHECK_VALUE, leading_sizes<Sizes>(x1) == leading_sizes<Sizes>(x2), op,
                 ": x2 must be (*, n2) with the leading sizes of x1, * = ",
                 sizes_text(leading_sizes(x1)), ", got ", sizes_text(x2.sym_sizes()));
}

template <class Sizes = Numbers>
void check_bilinear(const char* op, const Tensor& x1, const Tensor& x2, const Tensor& weight,
                    const OptionalTensor& bias = {}) {
  check_inputs<Sizes>(op, x1, x2);
  check_like(op, "x1", x1, "weight", weight);
  if (bias) check_like(op, "x1", x1, "bias", *bias);
  const auto n1 = Sizes::size(x1, -1);
  const auto n2 = Sizes::size(x2, -1);
  BLOCKOPS_CHECK(TORCH_CHECK_VALUE,
                 weight.dim() == 3 && Sizes::size(weight, 1) == n1 && Sizes::size(weight, 2) == n2,
                 op, ": weight must be (m, n1, n2) with n1 = x1.size(-1) = ", n1,
                 " and n2 = x2.size(-1) = ", n2, ", got ", sizes_text(weight.sym_sizes()));
  check_bias<Sizes>(op, bias, Sizes::size(weight, 0), 0);
}

}  // namespace blockops
