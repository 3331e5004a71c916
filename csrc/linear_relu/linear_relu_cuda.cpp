// linear_relu on CUDA. Little work goes to the kernels of linear_relu.cuh, one launch a pass; else
// ATen's matrix products, which obey PyTorch's TF32 switch, with what stands around them in one
// pass each.
#include <ATen/ops/addmm_cuda_dispatch.h>
#include <ATen/ops/mm_cuda_dispatch.h>
#include <ATen/ops/relu_cuda_dispatch.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "core/cuda.h"
#include "linear_relu/checks.h"
#include "linear_relu/linear_relu_launch.h"

namespace blockops {
namespace {

using namespace cuda;
namespace kernels = device::linear_relu;
using kernels::Forward, kernels::Gradients, kernels::Mask, kernels::RowParts;

// ---- which way is taken: arithmetic for an H200, not yet measured on a GPU ----
//
// The kernels for little work save launches, at 2 us or more each: one of two in the forward pass,
// three of four or five in the backward pass. But they read B n m elements from L2, divided by two
// to four, where the tiles of a product read fewer: kWork float32 elements take about as long as a
// launch. A warp is busy whether n fills its lanes or not: hence kReach.

constexpr int64_t kWork = 1 << 23;
constexpr int64_t kReach = 128;

bool is_little(int64_t B, int64_t n, int64_t m) {
  return std::max<int64_t>(B, 1) * std::max<int64_t>(m, 1) * std::max(n, kReach) <= kWork;
}

// With up to four rows any product waits for the weight from memory, and the kernel reads it once.
// One block adds all the terms of a sum, so that there may not be many.
bool is_direct_forward(int64_t B, int64_t n, int64_t m) {
  return n <= 8192 && (B <= 4 || is_little(B, n, m));
}
bool is_direct_backward(int64_t B, int64_t n, int64_t m) {
  return B <= 512 && m <= 512 && is_little(B, n, m);
}

// ---- forward ----

// (*, size) as (B, size).
Tensor as_matrix(const Tensor& tensor) {
  return tensor.dim() == 2 ? tensor : tensor.reshape({rows_of(tensor), tensor.size(-1)});
}

// The sizes (*, last).
at::DimVector sizes_with(const Tensor& tensor, int64_t last) {
  at::DimVector sizes(tensor.sizes());
  sizes.back() = last;
  return sizes;
}

// ReLU is a pass of its own, as the one inside of cublasLt's products makes 0 of NaN.
Tensor product_forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  Tensor y = bias ? at::cuda::addmm(*bias, as_matrix(x), weight.t())
                  : at::cuda::mm(as_matrix(x), weight.t());
  return at::cuda::relu_(y).view(sizes_with(x, weight.size(0)));
}

Tensor direct_forward(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const Tensor x_in = operand(x), weight_in = operand(weight), bias_in = operand(bias);
  const Tensor y = at::empty(sizes_with(x, weight.size(0)), x.options());
  for_type(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Forward<T> p;
    p.B = rows_of(x), p.n = x.size(-1), p.m = weight.size(0);
    p.x = pointer<T>(x_in), p.weight = pointer<T>(weight_in), p.bias = pointer<T>(bias_in);
    p.y = mutable_pointer<T>(y);
    check_launch("linear_relu", launch_forward(p, stream()));
  });
  return y;
}

Tensor linear_relu_cuda(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_linear_relu(x, weight, bias);
  const c10::cuda::CUDAGuard guard(x.device());
  const bool direct = is_direct_forward(rows_of(x), x.size(-1), weight.size(0));
  return direct ? direct_forward(x, weight, bias) : product_forward(x, weight, bias);
}

// ---- backward ----

// grad_z (B, m), and grad_bias unless it is undefined.
Tensor masked(const Tensor& grad, const Tensor& y, const Tensor& grad_bias) {
  const int64_t B = rows_of(grad), m = grad.size(-1);
  const Tensor grad_in = operand(grad), y_in = operand(y);
  const Tensor grad_z = at::empty({B, m}, grad.options());
  const int64_t partial_sums = grad_bias.defined() ? RowParts(B, m).count * m : 0;
  const Tensor sums = workspace(partial_sums * sizeof(double), grad);
  for_type(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Mask<T> p;
    p.B = B, p.m = m;
    p.grad = pointer<T>(grad_in), p.y = pointer<T>(y_in);
    p.grad_z = mutable_pointer<T>(grad_z), p.grad_bias = mutable_pointer<T>(grad_bias);
    p.sums = mutable_pointer<double>(sums);
    check_launch("linear_relu_backward", launch_mask(p, stream()));
  });
  return grad_z;
}

// Of the gradients those that are defined, of the sizes (B, n, m).
void direct_backward(int n, const Tensor& grad, const Tensor& x, const Tensor& weight,
                     const Tensor& y, const Tensor& grad_x, const Tensor& grad_weight,
                     const Tensor& grad_bias) {
  const Tensor grad_in = operand(grad), y_in = operand(y);
  for_type(grad.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    Gradients<T> p;
    p.B = static_cast<int>(rows_of(grad)), p.n = n, p.m = static_cast<int>(grad.size(-1));
    p.grad = pointer<T>(grad_in), p.y = pointer<T>(y_in);
    p.x = pointer<T>(x), p.weight = pointer<T>(weight);
    p.grad_x = mutable_pointer<T>(grad_x), p.grad_weight = mutable_pointer<T>(grad_weight);
    p.grad_bias = mutable_pointer<T>(grad_bias);
    check_launch("linear_relu_backward", launch_gradients(p, stream()));
  });
}

std::tuple<Tensor, Tensor, Tensor> linear_relu_backward_cuda(const Tensor& grad,
                                                             const OptionalTensor& x,
                                                             const OptionalTensor& weight,
                                                             const Tensor& y,
                                                             std::array<bool, 3> wanted) {
  check_linear_relu_backward(grad, x, weight, y, wanted);
  const c10::cuda::CUDAGuard guard(grad.device());
  const int64_t B = rows_of(grad), m = grad.size(-1);
  const int64_t n = wanted[0] ? weight->size(1) : wanted[1] ? x->size(-1) : 0;
  const auto empty = [&](at::IntArrayRef sizes) { return at::empty(sizes, grad.options()); };
  Tensor grad_x, grad_weight, grad_bias;
  if (wanted[2]) grad_bias = empty({m});
  if (is_direct_backward(B, n, m)) {
    if (wanted[0]) grad_x = empty(sizes_with(grad, n));
    if (wanted[1]) grad_weight = empty({m, n});
    direct_backward(static_cast<int>(n), grad, wanted[1] ? operand(x) : Tensor(),
                    wanted[0] ? operand(weight) : Tensor(), y, grad_x, grad_weight, grad_bias);
  } else {
    const Tensor grad_z = masked(grad, y, grad_bias);
    if (wanted[0]) grad_x = at::cuda::mm(grad_z, *weight).view(sizes_with(grad, n));
    if (wanted[1]) grad_weight = at::cuda::mm(grad_z.t(), as_matrix(*x));
  }
  const auto given = [&](const Tensor& made) { return made.defined() ? made : empty({0}); };
  return {given(grad_x), given(grad_weight), given(grad_bias)};
}

}  // namespace

TORCH_LIBRARY_IMPL(blockops, CUDA, library) {
  library.impl("linear_relu", &linear_relu_cuda);
  library.impl("linear_relu_backward", &linear_relu_backward_cuda);
}

}  // namespace blockops
