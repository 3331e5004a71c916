// What every op's autograd needs: typed calls through the dispatcher, by namespace, so that one
// backward formula serves each set of kernels; the rule of autocast; and the gradient of a bias.
#pragma once
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/sum.h>

#include <numeric>
#include <optional>
#include <string>

namespace blockops {

// The namespaces of torch.ops under which the schemas stand: that of the compiled kernels, and that
// of the Triton kernels, which blockops/_triton.py registers from Python.
struct Native {
  static constexpr const char* name = "blockops";
};
struct Triton {
  static constexpr const char* name = "blockops_triton";
};

// The dispatcher's handle of Namespace::op, for calls of C++ type Signature.
template <class Signature, class Namespace>
auto typed_op(const char* op) {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow((std::string(Namespace::name) + "::" + op).c_str(), "")
      .template typed<Signature>();
}

// A lower-precision op under autocast: called again with all its tensors in the autocast dtype.
template <c10::DeviceType device, class Op, class... Tensors>
at::Tensor in_autocast_dtype(const Op& op, const Tensors&... tensors) {
  const c10::impl::ExcludeDispatchKeyGuard guard(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto dtype = at::autocast::get_autocast_dtype(device);
  return op(at::autocast::cached_cast(dtype, tensors, device)...);
}

// The sum of grad (*, m) over its leading dimensions.
inline at::Tensor bias_gradient(const at::Tensor& grad) {
  if (grad.dim() == 1) return grad;
  c10::SmallVector<int64_t, 5> leading(grad.dim() - 1);
  std::iota(leading.begin(), leading.end(), 0);
  if (grad.sym_size(-1) != 1) return at::sum(grad, leading);
  // ATen sums to a single element in as many parts as there are threads, so that its bits change
  // with the number of threads; to two elements it does not. The second column costs no memory.
  c10::SymDimVector two_columns(grad.sym_sizes().begin(), grad.sym_sizes().end());
  two_columns.back() = 2;
  return at::sum(grad.expand_symint(two_columns), leading).narrow(0, 0, 1);
}

}  // namespace blockops
