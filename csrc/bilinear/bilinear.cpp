// quadratic and bilinear: schemas, Meta kernels, autograd, autocast. The kernels proper are in
// bilinear_cpu.cpp.
//
// Both are faces of one trilinear form, T = sum_b W_kij x1_bi x2_bj g_bk. Its derivatives are the
// same form with the operands in other places, so the ops below are closed under differentiation:
// where a graph of the backward pass is wanted, it is composed of them, to any order.
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/library.h>

#include <tuple>

#include "bilinear/checks.h"
#include "core/autograd.h"
#include "core/node.h"
#include "core/python.h"

namespace blockops {
namespace {

using TwoTensors = std::tuple<Tensor, Tensor>;

void define_schemas(torch::Library& library) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  library.def("quadratic(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor", tags);
  library.def("quadratic_grad_x(Tensor grad, Tensor x, Tensor weight) -> Tensor", tags);
  library.def("quadratic_grad_weight(Tensor grad, Tensor x) -> Tensor", tags);
  library.def("bilinear(Tensor x1, Tensor x2, Tensor weight, Tensor? bias=None) -> Tensor", tags);
  library.def(
      "bilinear_grad_inputs(Tensor grad, Tensor x1, Tensor x2, Tensor weight)"
      " -> (Tensor, Tensor)",
      tags);
  library.def("bilinear_grad_weight(Tensor grad, Tensor x1, Tensor x2) -> Tensor", tags);
}

// ---- Meta: the checks, and the shape of the result ----

Tensor quadratic_meta(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_quadratic<Symbols>("quadratic", x, weight, bias);
  return at::empty_symint(with_last_size(x, weight.sym_size(2)), x.options());
}

Tensor quadratic_grad_x_meta(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  check_quadratic<Symbols>("quadratic_grad_x", x, weight);
  check_grad_of<Symbols>("quadratic_grad_x", "x", x, grad, weight, 2);
  return at::empty_symint(x.sym_sizes(), x.options());
}

Tensor quadratic_grad_weight_meta(const Tensor& grad, const Tensor& x) {
  check_vector_input("quadratic_grad_weight", "x", x);
  check_grad<Symbols>("quadratic_grad_weight", "x", x, grad);
  return at::empty_symint({x.sym_size(-1), x.sym_size(-1), grad.sym_size(-1)}, x.options());
}

Tensor bilinear_meta(const Tensor& x1, const Tensor& x2, const Tensor& weight,
                     const OptionalTensor& bias) {
  check_bilinear<Symbols>("bilinear", x1, x2, weight, bias);
  return at::empty_symint(with_last_size(x1, weight.sym_size(0)), x1.options());
}

TwoTensors bilinear_grad_inputs_meta(const Tensor& grad, const Tensor& x1, const Tensor& x2,
                                     const Tensor& weight) {
  check_bilinear<Symbols>("bilinear_grad_inputs", x1, x2, weight);
  check_grad_of<Symbols>("bilinear_grad_inputs", "x1", x1, grad, weight, 0);
  return {at::empty_symint(x1.sym_sizes(), x1.options()),
          at::empty_symint(x2.sym_sizes(), x2.options())};
}

Tensor bilinear_grad_weight_meta(const Tensor& grad, const Tensor& x1, const Tensor& x2) {
  check_inputs<Symbols>("bilinear_grad_weight", x1, x2);
  check_grad<Symbols>("bilinear_grad_weight", "x1", x1, grad);
  return at::empty_symint({grad.sym_size(-1), x1.sym_size(-1), x2.sym_size(-1)}, x1.options());
}

// ---- calls through the dispatcher, one per op ----

template <class N>
Tensor quadratic(const Tensor& x, const Tensor& weight, const OptionalTensor& bias = {}) {
  static auto op =
      typed_op<Tensor(const Tensor&, const Tensor&, const OptionalTensor&), N>("quadratic");
  return op.call(x, weight, bias);
}

template <class N>
Tensor quadratic_grad_weight(const Tensor& grad, const Tensor& x) {
  static auto op = typed_op<Tensor(const Tensor&, const Tensor&), N>("quadratic_grad_weight");
  return op.call(grad, x);
}

template <class N>
Tensor bilinear(const Tensor& x1, const Tensor& x2, const Tensor& weight,
                const OptionalTensor& bias = {}) {
  static auto op =
      typed_op<Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&), N>(
          "bilinear");
  return op.call(x1, x2, weight, bias);
}

template <class N>
Tensor bilinear_grad_weight(const Tensor& grad, const Tensor& x1, const Tensor& x2) {
  static auto op =
      typed_op<Tensor(const Tensor&, const Tensor&, const Tensor&), N>("bilinear_grad_weight");
  return op.call(grad, x1, x2);
}

// The gradients with respect to the inputs have a fused kernel each. Grad mode during a backward
// pass means that its graph is wanted (create_graph=True): then the same sums are composed of
// differentiable ops.

template <class N>
Tensor quadratic_grad_x(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  if (at::GradMode::is_enabled()) return bilinear<N>(x, grad, weight + weight.transpose(0, 1));
  static auto op =
      typed_op<Tensor(const Tensor&, const Tensor&, const Tensor&), N>("quadratic_grad_x");
  at::AutoDispatchBelowADInplaceOrView guard;  // past the boxed fallback: no graph is wanted
  return op.call(grad, x, weight);
}

template <class N>
TwoTensors bilinear_grad_inputs(const Tensor& grad, const Tensor& x1, const Tensor& x2,
                                const Tensor& weight, bool needs_x1, bool needs_x2) {
  if (!needs_x1 && !needs_x2) return {};
  if (at::GradMode::is_enabled()) {
    return {needs_x1 ? bilinear<N>(x2, grad, weight.permute({1, 2, 0})) : Tensor(),
            needs_x2 ? bilinear<N>(x1, grad, weight.permute({2, 1, 0})) : Tensor()};
  }
  static auto op =
      typed_op<TwoTensors(const Tensor&, const Tensor&, const Tensor&, const Tensor&), N>(
          "bilinear_grad_inputs");
  at::AutoDispatchBelowADInplaceOrView guard;
  return op.call(grad, x1, x2, weight);
}

// ---- autograd ----

template <class N>
struct QuadraticRule {
  static constexpr const char* name = "QuadraticBackward";
  static constexpr size_t inputs = 3, saved = 2;
  static constexpr bool saves_result = false;
  static variable_list backward(const Backward<QuadraticRule>& call) {
    const auto& [x, weight] = call.saved;
    const auto& g = call.grad;
    return {call.wanted[0] ? quadratic_grad_x<N>(g, x, weight) : Tensor(),
            call.wanted[1] ? quadratic_grad_weight<N>(g, x) : Tensor(),
            call.wanted[2] ? bias_gradient(g) : Tensor()};
  }
};

template <class N>
struct QuadraticGradWeightRule {
  static constexpr const char* name = "QuadraticGradWeightBackward";
  static constexpr size_t inputs = 2, saved = 2;
  static constexpr bool saves_result = false;
  static variable_list backward(const Backward<QuadraticGradWeightRule>& call) {
    const auto& [g, x] = call.saved;
    const auto& v = call.grad;
    return {call.wanted[0] ? quadratic<N>(x, v) : Tensor(),
            call.wanted[1] ? quadratic_grad_x<N>(g, x, v) : Tensor()};
  }
};

template <class N>
struct BilinearRule {
  static constexpr const char* name = "BilinearBackward";
  static constexpr size_t inputs = 4, saved = 3;
  static constexpr bool saves_result = false;
  static variable_list backward(const Backward<BilinearRule>& call) {
    const auto& [x1, x2, weight] = call.saved;
    const auto& g = call.grad;
    auto [grad_x1, grad_x2] =
        bilinear_grad_inputs<N>(g, x1, x2, weight, call.wanted[0], call.wanted[1]);
    return {grad_x1, grad_x2, call.wanted[2] ? bilinear_grad_weight<N>(g, x1, x2) : Tensor(),
            call.wanted[3] ? bias_gradient(g) : Tensor()};
  }
};

template <class N>
struct BilinearGradWeightRule {
  static constexpr const char* name = "BilinearGradWeightBackward";
  static constexpr size_t inputs = 3, saved = 3;
  static constexpr bool saves_result = false;
  static variable_list backward(const Backward<BilinearGradWeightRule>& call) {
    const auto& [g, x1, x2] = call.saved;
    const auto& v = call.grad;
    auto [grad_x1, grad_x2] = bilinear_grad_inputs<N>(g, x1, x2, v, call.wanted[1], call.wanted[2]);
    return {call.wanted[0] ? bilinear<N>(x1, x2, v) : Tensor(), grad_x1, grad_x2};
  }
};

template <class N>
Tensor quadratic_autograd(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  return recorded<QuadraticRule<N>>([&] { return quadratic<N>(x, weight, bias); }, {{&x, &weight}},
                                    x, weight, bias);
}

template <class N>
Tensor quadratic_grad_weight_autograd(const Tensor& grad, const Tensor& x) {
  return recorded<QuadraticGradWeightRule<N>>([&] { return quadratic_grad_weight<N>(grad, x); },
                                              {{&grad, &x}}, grad, x);
}

template <class N>
Tensor bilinear_autograd(const Tensor& x1, const Tensor& x2, const Tensor& weight,
                         const OptionalTensor& bias) {
  return recorded<BilinearRule<N>>([&] { return bilinear<N>(x1, x2, weight, bias); },
                                   {{&x1, &x2, &weight}}, x1, x2, weight, bias);
}

template <class N>
Tensor bilinear_grad_weight_autograd(const Tensor& grad, const Tensor& x1, const Tensor& x2) {
  return recorded<BilinearGradWeightRule<N>>([&] { return bilinear_grad_weight<N>(grad, x1, x2); },
                                             {{&grad, &x1, &x2}}, grad, x1, x2);
}

// ---- autocast: lower-precision ops, as torch's matrix products are ----

template <class N, c10::DeviceType device>
Tensor quadratic_autocast(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  return in_autocast_dtype<device>(quadratic<N>, x, weight, bias);
}

template <class N, c10::DeviceType device>
Tensor bilinear_autocast(const Tensor& x1, const Tensor& x2, const Tensor& weight,
                         const OptionalTensor& bias) {
  return in_autocast_dtype<device>(bilinear<N>, x1, x2, weight, bias);
}

void register_meta(torch::Library& library) {
  library.impl("quadratic", &quadratic_meta);
  library.impl("quadratic_grad_x", &quadratic_grad_x_meta);
  library.impl("quadratic_grad_weight", &quadratic_grad_weight_meta);
  library.impl("bilinear", &bilinear_meta);
  library.impl("bilinear_grad_inputs", &bilinear_grad_inputs_meta);
  library.impl("bilinear_grad_weight", &bilinear_grad_weight_meta);
}

template <class N>
void register_autograd(torch::Library& library) {
  library.impl("quadratic", &quadratic_autograd<N>);
  library.impl("quadratic_grad_weight", &quadratic_grad_weight_autograd<N>);
  library.impl("bilinear", &bilinear_autograd<N>);
  library.impl("bilinear_grad_weight", &bilinear_grad_weight_autograd<N>);
  // The fused kernels never stand in a graph that is differentiated: without this a direct call
  // would have silently wrong second derivatives.
  library.impl("quadratic_grad_x", torch::autograd::autogradNotImplementedFallback());
  library.impl("bilinear_grad_inputs", torch::autograd::autogradNotImplementedFallback());
}

template <class N, c10::DeviceType device>
void register_autocast(torch::Library& library) {
  library.impl("quadratic", &quadratic_autocast<N, device>);
  library.impl("bilinear", &bilinear_autocast<N, device>);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(blockops, library) { define_schemas(library); }
TORCH_LIBRARY_IMPL(blockops, Meta, library) { register_meta(library); }
TORCH_LIBRARY_IMPL(blockops, Autograd, library) { register_autograd<Native>(library); }
TORCH_LIBRARY_IMPL(blockops, AutocastCPU, library) {
  register_autocast<Native, c10::DeviceType::CPU>(library);
}
TORCH_LIBRARY_IMPL(blockops, AutocastCUDA, library) {
  register_autocast<Native, c10::DeviceType::CUDA>(library);
}

TORCH_LIBRARY_FRAGMENT(blockops_triton, library) { define_schemas(library); }
TORCH_LIBRARY_IMPL(blockops_triton, Meta, library) { register_meta(library); }
TORCH_LIBRARY_IMPL(blockops_triton, Autograd, library) { register_autograd<Triton>(library); }
TORCH_LIBRARY_IMPL(blockops_triton, AutocastCUDA, library) {
  register_autocast<Triton, c10::DeviceType::CUDA>(library);
}

BLOCKOPS_PYTHON_FUNCTION(quadratic, Tensor(const Tensor&, const Tensor&, const OptionalTensor&))
BLOCKOPS_PYTHON_FUNCTION(bilinear,
                         Tensor(const Tensor&, const Tensor&, const Tensor&, const OptionalTensor&))

}  // namespace blockops
