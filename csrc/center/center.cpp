// center: schema, Meta kernel, autograd. The kernel proper is in center_cpu.cpp.
//
// x - mean(x) is linear and self-adjoint: its backward pass is center itself, of the gradient, and
// so is every higher derivative. Nothing is saved but the axes.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "center/checks.h"
#include "core/autograd.h"
#include "core/node.h"
#include "core/python.h"

namespace blockops {
namespace {

Tensor center_meta(const Tensor& x, at::OptionalIntArrayRef dim) {
  check_center(x, dim);
  return at::empty_symint(x.sym_sizes(), x.options());
}

template <class N>
Tensor center(const Tensor& x, at::OptionalIntArrayRef dim) {
  static auto op = typed_op<Tensor(const Tensor&, at::OptionalIntArrayRef), N>("center");
  return op.call(x, dim);
}

template <class N>
struct CenterRule {
  static constexpr const char* name = "CenterBackward";
  static constexpr size_t inputs = 1, saved = 0;
  static constexpr bool saves_result = false;
  static variable_list backward(const Backward<CenterRule>& call) {
    return {center<N>(call.grad, call.ints ? at::OptionalIntArrayRef(*call.ints) : std::nullopt)};
  }
};

template <class N>
Tensor center_autograd(const Tensor& x, at::OptionalIntArrayRef dim) {
  return recorded<CenterRule<N>>([&] { return center<N>(x, dim); }, {{}, dim}, x);
}

void define_schema(torch::Library& library) {
  library.def("center(Tensor x, int[1]? dim=None) -> Tensor", {at::Tag::pt2_compliant_tag});
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(blockops, library) { define_schema(library); }
TORCH_LIBRARY_IMPL(blockops, Meta, library) { library.impl("center", &center_meta); }
TORCH_LIBRARY_IMPL(blockops, Autograd, library) {
  library.impl("center", &center_autograd<Native>);
}

TORCH_LIBRARY_FRAGMENT(blockops_triton, library) { define_schema(library); }
TORCH_LIBRARY_IMPL(blockops_triton, Meta, library) { library.impl("center", &center_meta); }
TORCH_LIBRARY_IMPL(blockops_triton, Autograd, library) {
  library.impl("center", &center_autograd<Triton>);
}

BLOCKOPS_PYTHON_FUNCTION(center, Tensor(const Tensor&, at::OptionalIntArrayRef))

}  // namespace blockops
