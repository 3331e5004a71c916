// The node that an op of one result leaves in the autograd graph, made as PyTorch makes those of
// its own ops. torch::autograd::Function does the same for any function, at 3 us more a training
// step: much of a small layer's.
//
// A rule is an op's derivative:
//   struct Rule {
//     static constexpr const char* name = "...Backward";  // what a result shows as its grad_fn
//     static constexpr size_t inputs = 2;                 // tensors that may want a gradient
//     static constexpr size_t saved = 3;                  // tensors that `backward` is given
//     static constexpr bool saves_result = true;          // whether the last of them is the result
//     static variable_list backward(const Backward<Rule>&);  // a gradient for each input, or none
//   };
#pragma once
#include <ATen/FuncTorchTLS.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <array>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <typeinfo>
#include <utility>
#include <vector>

#include "core/autograd.h"

namespace blockops {

using torch::autograd::variable_list;

// What is kept for the backward pass beside the result: tensors, null for none, and integers.
template <class Rule>
struct Kept {
  std::array<const at::Tensor*, Rule::saved - Rule::saves_result> tensors;
  at::OptionalIntArrayRef ints = {};
};

// What a rule is given in the backward pass.
template <class Rule>
struct Backward {
  at::Tensor grad;                            // of the result
  std::array<at::Tensor, Rule::saved> saved;  // undefined for none; a result is a constant
  std::array<bool, Rule::inputs> wanted;      // whether an input's gradient is
  std::optional<std::vector<int64_t>> ints;
};

template <class Rule>
class OpNode final : public torch::autograd::Node {
 public:
  void keep(const Kept<Rule>& kept) {
    for (size_t i = 0; i < kept.tensors.size(); ++i)
      if (kept.tensors[i]) saved_[i] = {*kept.tensors[i], /*is_output=*/false};
    if (kept.ints) ints_ = kept.ints->vec();
  }
  // As a tensor of its own without a graph: the result itself would hold this node, which holds it.
  // A change of the result is noticed all the same, for the two share their version.
  void keep_result(const at::Tensor& result) {
    saved_.back() = {result.tensor_data(), /*is_output=*/false};
  }

  std::string name() const override { return Rule::name; }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& tensor : saved_) tensor.reset_data();
  }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    Backward<Rule> call = unpacked();
    call.grad = std::move(grads[0]);
    return differentiated(call);
  }

  // For compiled autograd: which graphs are alike, and a call that it records as one step of a
  // graph, with what `unpacked` gives as the step's arguments.
  void compiled_args(torch::autograd::CompiledNodeArgs& args) const override {
    args.collect(std::string(typeid(Rule).name()));
    for (const auto& tensor : saved_) args.collect(tensor, /*is_output=*/false);
    args.collect(ints_);
  }

  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& swap) override {
    using namespace torch::dynamo::autograd;
    for (auto& tensor : saved_) swap.before(tensor);
    const Backward<Rule> call = unpacked();
    PackedArgs packed;
    packed.pack(variable_list(call.saved.begin(), call.saved.end()));
    packed.pack(call.wanted);
    packed.pack(call.ints);
    std::vector<at::TypePtr> types;
    for (const auto& value : packed.vec()) types.push_back(value.type());
    const auto edges =
        IValuePacker<std::vector<std::optional<torch::autograd::InputMetadata>>>::pack(
            get_input_metadata(next_edges()));
    const auto& compiler = getPyCompilerInterface();
    const auto step = compiler->bind_function(swap.get_py_compiler(), typeid(Rule).name(),
                                              &apply_packed, types, /*is_custom_function=*/true,
                                              /*is_traceable=*/false);
    const auto results = compiler->call_function(swap.get_py_compiler(), "apply_functional", step,
                                                 grads, packed.vec(), edges);
    for (auto& tensor : saved_) swap.after(tensor);
    return results;
  }

 private:
  Backward<Rule> unpacked() {
    Backward<Rule> call;
    for (size_t i = 0; i < saved_.size(); ++i) call.saved[i] = saved_[i].unpack();
    for (size_t i = 0; i < Rule::inputs; ++i) call.wanted[i] = task_should_compute_output(i);
    call.ints = ints_;
    return call;
  }

  static variable_list differentiated(const Backward<Rule>& call) {
    return call.grad.defined() ? Rule::backward(call) : variable_list(Rule::inputs);
  }

  static variable_list apply_packed(const variable_list& grads,
                                    const std::vector<c10::IValue>& packed) {
    torch::dynamo::autograd::PackedArgs args(packed);
    Backward<Rule> call;
    call.grad = grads[0];
    const auto saved = args.unpack<variable_list>();
    std::copy(saved.begin(), saved.end(), call.saved.begin());
    call.wanted = args.unpack<std::array<bool, Rule::inputs>>();
    call.ints = args.unpack<std::optional<std::vector<int64_t>>>();
    return differentiated(call);
  }

  std::array<torch::autograd::SavedVariable, Rule::saved> saved_;
  std::optional<std::vector<int64_t>> ints_;
};

// torch 2.11 has shared pointers to nodes, 2.13 intrusive ones.
template <class OwnNode>
auto made_node() {
  using Owner = decltype(torch::autograd::Edge::function);
  if constexpr (std::is_same_v<Owner, std::shared_ptr<torch::autograd::Node>>) {
    return std::shared_ptr<OwnNode>(new OwnNode, [](OwnNode* node) { deleteNode(node); });
  } else {
    return c10::make_intrusive<OwnNode>();
  }
}

inline bool requires_grad(const at::Tensor& tensor) { return tensor.requires_grad(); }
inline bool requires_grad(const std::optional<at::Tensor>& tensor) {
  return tensor && tensor->requires_grad();
}
inline bool has_tangent(const at::Tensor& tensor) { return tensor._fw_grad(0).defined(); }
inline bool has_tangent(const std::optional<at::Tensor>& tensor) {
  return tensor && has_tangent(*tensor);
}

// The result of `forward`, called below autograd; where one of the inputs wants a gradient, with a
// node of the rule behind it that keeps `kept`.
template <class Rule, class Forward, class... Inputs>
at::Tensor recorded(const Forward& forward, const Kept<Rule>& kept, const Inputs&... inputs) {
  static_assert(sizeof...(Inputs) == Rule::inputs);
  const auto below = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return forward();
  };
  // A tangent counts: without a graph the derivative along it would be silently zero.
  const bool tangent = (has_tangent(inputs) || ...);
  if (!tangent && !(at::GradMode::is_enabled() && (requires_grad(inputs) || ...))) return below();
  if (const auto& transforms = at::functorch::functorchTLSAccessor())
    transforms->checkSupportsCppAutogradFunction();  // raises inside torch.func's transforms
  TORCH_CHECK_NOT_IMPLEMENTED(!tangent, Rule::name,
                              ": forward-mode AD is not implemented for the registered ops; the "
                              "functions of blockops serve it");
  auto node = made_node<OpNode<Rule>>();
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  node->keep(kept);
  const at::Tensor result = below();
  torch::autograd::set_history(result, node);
  if constexpr (Rule::saves_result) node->keep_result(result);
  return result;
}

}  // namespace blockops
