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

// TORCH_CHECK, TORCH_CHECK_VALUE and the like as `check`, with the words of a failure in code of
// their own: what runs in every call of a small layer is best short.
#define BLOCKOPS_CHECK(check, condition, ...)                                 \
  do {                                                                        \
    if (C10_UNLIKELY(!(condition)))                                           \
      [&]() __attribute__((noinline, cold)) { check(false, __VA_ARGS__); }(); \
  } while (false)

// How a check reads sizes: in a kernel as numbers; in a Meta kernel, where torch.compile may have
// symbols in their place, as SymInts, each of which costs calls into PyTorch.
struct Numbers {
  static int64_t size(const Tensor& tensor, int64_t axis) { return tensor.size(axis); }
  static at::IntArrayRef sizes(const Tensor& tensor) { return tensor.sizes(); }
};
struct Symbols {
  static c10::SymInt size(const Tensor& tensor, int64_t axis) { return tensor.sym_size(axis); }
  static c10::SymIntArrayRef sizes(const Tensor& tensor) { return tensor.sym_sizes(); }
};

inline std::string sizes_text(c10::SymIntArrayRef sizes) {
  std::ostringstream text;
  text << "(";
  for (size_t axis = 0; axis < sizes.size(); ++axis) text << (axis ? ", " : "") << sizes[axis];
  text << ")";
  return text.str();
}

inline void check_floating(const char* op, const char* name, const Tensor& x) {
  const auto dtype = x.scalar_type();
  BLOCKOPS_CHECK(
      TORCH_CHECK_TYPE,
      dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf,
      op, ": ", name, " must be float64, float32, bfloat16 or float16, got ", dtype_name(x));
}

// The first argument of an op on vectors: a floating tensor of at least one dimension.
inline void check_vector_input(const char* op, const char* name, const Tensor& x) {
  check_floating(op, name, x);
  BLOCKOPS_CHECK(TORCH_CHECK_VALUE, x.dim() > 0, op, ": ", name,
                 " must have at least one dimension, got ()");
}

// Any further argument: the dtype and the device of the first.
inline void check_like(const char* op, const char* first_name, const Tensor& first,
                       const char* name, const Tensor& other) {
  BLOCKOPS_CHECK(TORCH_CHECK, other.device() == first.device(), op, ": ", name, " must be on ",
                 first_name, "'s device ", first.device(), ", got ", other.device());
  BLOCKOPS_CHECK(TORCH_CHECK_TYPE, other.scalar_type() == first.scalar_type(), op, ": ", name,
                 " must have ", first_name, "'s dtype ", dtype_name(first), ", got ",
                 dtype_name(other));
}

// m is weight.size(axis).
template <class Sizes, class Size>
void check_bias(const char* op, const OptionalTensor& bias, const Size& m, int64_t axis) {
  if (!bias) return;
  BLOCKOPS_CHECK(TORCH_CHECK_VALUE, bias->dim() == 1 && Sizes::size(*bias, 0) == m, op,
                 ": bias must be (m) with m = weight.size(", axis, ") = ", m, ", got ",
                 sizes_text(bias->sym_sizes()));
}

// The sizes of a tensor's rows, (*) of (*, n).
template <class Sizes = Symbols>
auto leading_sizes(const Tensor& x) {
  return Sizes::sizes(x).slice(0, x.dim() - 1);
}

// grad (*, m) of a gradient op, where x (*, n) gives the leading sizes.
template <class Sizes = Numbers>
void check_grad(const char* op, const char* x_name, const Tensor& x, const Tensor& grad) {
  check_like(op, x_name, x, "grad", grad);
  BLOCKOPS_CHECK(TORCH_CHECK_VALUE,
                 grad.dim() == x.dim() && leading_sizes<Sizes>(grad) == leading_sizes<Sizes>(x), op,
                 ": grad must be (*, m) with the leading sizes of ", x_name,
                 ", * = ", sizes_text(leading_sizes(x)), ", got ", sizes_text(grad.sym_sizes()));
}

template <class Sizes = Numbers>
void check_grad_of(const char* op, const char* x_name, const Tensor& x, const Tensor& grad,
                   const Tensor& weight, int64_t axis) {
  check_grad<Sizes>(op, x_name, x, grad);
  BLOCKOPS_CHECK(TORCH_CHECK_VALUE, Sizes::size(grad, -1) == Sizes::size(weight, axis), op,
                 ": grad must be (*, m) with m = weight.size(", axis,
                 ") = ", Sizes::size(weight, axis), ", got ", sizes_text(grad.sym_sizes()));
}

// x's leading sizes followed by one new last size.
inline c10::SymDimVector with_last_size(const Tensor& x, const c10::SymInt& last) {
  c10::SymDimVector sizes(x.sym_sizes().begin(), x.sym_sizes().end());
  sizes.back() = last;
  return sizes;
}

}  // namespace blockops
