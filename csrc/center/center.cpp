// center: schema, Meta kernel, autograd. The kernel proper is in center_cpu.cpp.
//
// x - mean(x) is linear and self-adjoint: its backward pass is center itself, of the gradient, and
// so is every higher derivative. Nothing is saved but the axes.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "center/checks.h"
#include "core/autograd.h"
#include "core/python.h"

namespace blockops {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::Function;
using torch::autograd::variable_list;

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
struct CenterFunction : Function<CenterFunction<N>> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x, at::OptionalIntArrayRef dim) {
    at::AutoDispatchBelowADInplaceOrView guard;
    if (dim) ctx->saved_data["dim"] = dim->vec();
    return center<N>(x, dim);
  }
  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->saved_data.find("dim");
    if (saved == ctx->saved_data.end()) return {center<N>(grads[0], {}), Tensor()};
    return {center<N>(grads[0], saved->second.toIntVector()), Tensor()};
  }
};

template <class N>
Tensor center_autograd(const Tensor& x, at::OptionalIntArrayRef dim) {
  if (needs_graph(x)) return CenterFunction<N>::apply(x, dim);
  at::AutoDispatchBelowADInplaceOrView guard;
  return center<N>(x, dim);
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
