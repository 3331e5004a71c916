// Argument checks shared by every op's glue: what was expected, what came, which argument.
// blockops/_checks.py says the same words for the reference formulas.
#pragma once
#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>
#include <c10/util/Exception.h>

#include <optional>
#include <sstream>
#include <string>

namespace blockops {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline std::string dtype_name(const Tensor& tensor) {
  return std::string(c10::getDtypeNames(tensor.scalar_type()).first);
}

inline std::string sizes_text(c10::SymIntArrayRef sizes) {
  std::ostringstream text;
  text << "(";
  for (size_t axis = 0; axis < sizes.size(); ++axis) text << (axis ? ", " : "") << sizes[axis];
  text << ")";
  return text.str();
}

inline void check_floating(const char* op, const char* name, const Tensor& x) {
  const auto dtype = x.scalar_type();
  TORCH_CHECK_TYPE(
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      op, ": ", name, " must be float64, float32, bfloat16 or float16, got ", dtype_name(x));
}

// The first argument of an op on vectors: a floating tensor of at least one dimension.
inline void check_vector_input(const char* op, const char* name, const Tensor& x) {
  check_floating(op, name, x);
  TORCH_CHECK_VALUE(x.dim() > 0, op, ": ", name, " must have at least one dimension, got ()");
}

// Any further argument: the dtype and the device of the first.
inline void check_like(const char* op, const char* first_name, const Tensor& first,
                       const char* name, const Tensor& other) {
  TORCH_CHECK(other.device() == first.device(), op, ": ", name, " must be on ", first_name,
              "'s device ", first.device(), ", got ", other.device());
  TORCH_CHECK_TYPE(other.scalar_type() == first.scalar_type(), op, ": ", name, " must have ",
                   first_name, "'s dtype ", dtype_name(first), ", got ", dtype_name(other));
}

inline void check_bias(const char* op, const OptionalTensor& bias, const c10::SymInt& m,
                       int64_t axis) {
  if (!bias) return;
  TORCH_CHECK_VALUE(bias->dim() == 1 && bias->sym_size(0) == m, op,
                    ": bias must be (m) with m = weight.size(", axis, ") = ", m, ", got ",
                    sizes_text(bias->sym_sizes()));
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

// x's leading sizes followed by one new last size.
inline c10::SymDimVector with_last_size(const Tensor& x, const c10::SymInt& last) {
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = last;
  return sizes;
}

}  // namespace blockops
