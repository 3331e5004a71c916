// linear_relu: schemas, Meta kernels, autograd, autocast. The kernels proper are in
// linear_relu_cpu.cpp.
//
// y = relu(z) with z = x W^T + bias. grad_z is grad where y > 0, and NaN in y lets grad through, as
// torch.relu does. Backward keeps y, x where the weight learns, and the weight where x wants a
// gradient: what it does not keep may change, as with torch.nn.Linear.
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/threshold_backward.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <array>
#include <tuple>

#include "core/autograd.h"
#include "core/node.h"
#include "core/python.h"
#include "linear_relu/checks.h"

namespace blockops {
namespace {

using ThreeTensors = std::tuple<Tensor, Tensor, Tensor>;
using ThreeBools = std::array<bool, 3>;

void define_schemas(torch::Library& library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  library.def("linear_relu(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor", tags);
  // The gradients of x, weight and bias; of size 0 where they are not wanted.
  library.def(
      "linear_relu_backward(Tensor grad, Tensor? x, Tensor? weight, Tensor y,"
      " bool[3] wanted=[True, True, True]) -> (Tensor, Tensor, Tensor)",
      tags);
}

// ---- Meta: the checks, and the shape of the result ----

Tensor linear_relu_meta(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_linear_relu<Symbols>(x, weight, bias);
  return at::empty_symint(with_last_size(x, weight.sym_size(0)), x.options());
}

ThreeTensors linear_relu_backward_meta(const Tensor& grad, const OptionalTensor& x,
                                       const OptionalTensor& weight, const Tensor& y,
                                       ThreeBools wanted) {
  check_linear_relu_backward<Symbols>(grad, x, weight, y, wanted);
  const auto m = grad.sym_size(-1);
  const auto nothing = [&] { return at::empty({0}, grad.options()); };
  return {
      wanted[0] ? at::empty_symint(with_last_size(grad, weight->sym_size(1)), grad.options())
                : nothing(),
      wanted[1] ? at::empty_symint({m, x->sym_size(-1)}, grad.options()) : nothing(),
      wanted[2] ? at::empty_symint({m}, grad.options()) : nothing(),
  };
}

// ---- calls through the dispatcher, one per op ----

template <class N>
Tensor linear_relu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  static auto op =
      typed_op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&), N>("linear_relu");
  return op.call(x, weight, bias);
}

template <class N>
ThreeTensors linear_relu_backward(const Tensor& grad, const OptionalTensor& x,
                                  const OptionalTensor& weight, const Tensor& y,
                                  ThreeBools wanted) {
  static auto op = typed_op<ThreeTensors(const Tensor&, const OptionalTensor&,
                                         const OptionalTensor&, const Tensor&, ThreeBools),
                            N>("linear_relu_backward");
  return op.call(grad, x, weight, y, wanted);
}

// ---- autograd ----

OptionalTensor given(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : OptionalTensor();
}

Tensor as_matrix(const Tensor& tensor) {
  return tensor.dim() == 1 ? tensor.unsqueeze(0) : tensor.flatten(0, -2);
}

// Grad mode during a backward pass means that its graph is wanted (create_graph=True): the
// gradients composed of differentiable ops. The mask is constant wherever it has a derivative.
variable_list composed_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                const Tensor& y, ThreeBools wanted) {
  const Tensor grad_z = at::threshold_backward(grad, y, 0);
  return {wanted[0] ? at::matmul(grad_z, weight) : Tensor(),
          wanted[1] ? at::matmul(as_matrix(grad_z).t(), as_matrix(x)) : Tensor(),
          wanted[2] ? bias_gradient(grad_z) : Tensor()};
}

template <class N>
struct LinearReluRule {
  static constexpr const char* name = "LinearReluBackward";
  static constexpr size_t inputs = 3, saved = 3;
  static constexpr bool saves_result = true;
  static variable_list backward(const Backward<LinearReluRule>& call) {
    const auto& [x, weight, y] = call.saved;
    if (at::GradMode::is_enabled()) return composed_backward(call.grad, x, weight, y, call.wanted);
    at::AutoDispatchBelowADInplaceOrView guard;  // past the boxed fallback: no graph is wanted
    auto [grad_x, grad_weight, grad_bias] =
        linear_relu_backward<N>(call.grad, given(x), given(weight), y, call.wanted);
    return {call.wanted[0] ? std::move(grad_x) : Tensor(),
            call.wanted[1] ? std::move(grad_weight) : Tensor(),
            call.wanted[2] ? std::move(grad_bias) : Tensor()};
  }
};

template <class N>
Tensor linear_relu_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  return recorded<LinearReluRule<N>>(
      [&] { return linear_relu<N>(x, weight, bias); },
      {{weight.requires_grad() ? &x : nullptr, x.requires_grad() ? &weight : nullptr}}, x, weight,
      bias);
}

// ---- autocast: a lower-precision op, as torch's linear is ----

template <class N, c10::DeviceType device>
Tensor linear_relu_autocast(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  return in_autocast_dtype<device>(linear_relu<N>, x, weight, bias);
}

void register_meta(torch::Library& library) {
  library.impl("linear_relu", &linear_relu_meta);
  library.impl("linear_relu_backward", &linear_relu_backward_meta);
}

template <class N>
void register_autograd(torch::Library& library) {
  library.impl("linear_relu", &linear_relu_autograd<N>);
  // The fused kernel never stands in a graph that is differentiated: without this a direct call
  // would have silently wrong second derivatives.
  library.impl("linear_relu_backward", torch::autograd::autogradNotImplementedFallback());
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(blockops, library) { define_schemas(library); }
TORCH_LIBRARY_IMPL(blockops, Meta, library) { register_meta(library); }
TORCH_LIBRARY_IMPL(blockops, Autograd, library) { register_autograd<Native>(library); }
TORCH_LIBRARY_IMPL(blockops, AutocastCPU, library) {
  library.impl("linear_relu", &linear_relu_autocast<Native, c10::DeviceType::CPU>);
}
TORCH_LIBRARY_IMPL(blockops, AutocastCUDA, library) {
  library.impl("linear_relu", &linear_relu_autocast<Native, c10::DeviceType::CUDA>);
}

TORCH_LIBRARY_FRAGMENT(blockops_triton, library) { define_schemas(library); }
TORCH_LIBRARY_IMPL(blockops_triton, Meta, library) { register_meta(library); }
TORCH_LIBRARY_IMPL(blockops_triton, Autograd, library) { register_autograd<Triton>(library); }
TORCH_LIBRARY_IMPL(blockops_triton, AutocastCUDA, library) {
  library.impl("linear_relu", &linear_relu_autocast<Triton, c10::DeviceType::CUDA>);
}

BLOCKOPS_PYTHON_FUNCTION(linear_relu, Tensor(const Tensor&, const Tensor&, const OptionalTensor&))

}  // namespace blockops
