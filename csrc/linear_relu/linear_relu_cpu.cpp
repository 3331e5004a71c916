// linear_relu on the CPU: ATen's matrix products, with what stands around them done in place and in
// one pass: ReLU where the product lies, mask and bias gradient together. Little work goes to the
// plain loops of linear_relu_direct.h.
//
// float16 is computed in float32, on float32 copies of the arguments, as ATen's product in float16
// is slow on most CPUs; bfloat16 goes to ATen's product, which keeps its sums in float32.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/mm_cpu_dispatch.h>
#include <torch/library.h>

#include <array>
#include <tuple>

#include "core/column_sums.h"
#include "core/cpu.h"
#include "core/simd.h"
#include "linear_relu/checks.h"
#include "linear_relu/linear_relu_direct.h"

namespace blockops {
namespace {

using namespace cpu;

constexpr std::array<int64_t, 1> kNothing = {0};  // the size of a gradient that is not wanted
constexpr int64_t kDirectWork = 1 << 17;          // multiply-adds
constexpr int64_t kDirectWeight = 1 << 14;  // elements, all of which the plain loops transpose

// Whether the plain loops win.
bool is_direct(int64_t B, int64_t n, int64_t m) {
  return B <= kDirectRows && n * m <= kDirectWeight && B * n * m <= kDirectWork;
}

// NaN stays.
template <class T>
BLOCKOPS_SIMD_CLONES void relu(T* y, int64_t size) {
  for (int64_t i = 0; i < size; ++i) y[i] = y[i] <= T(0) ? T(0) : y[i];
}

// grad_z = grad, and 0 where y <= 0.
template <class T>
BLOCKOPS_SIMD_CLONES void mask(const T* grad, const T* y, int64_t size, T* grad_z) {
  for (int64_t i = 0; i < size; ++i) {
    const T value = grad[i];  // read in any case: a read that depends is not vectorized
    grad_z[i] = y[i] <= T(0) ? T(0) : value;
  }
}

// grad_z (B, m), and unless it is null grad_bias (m), the sum of its rows.
template <class T>
void mask_and_sum(int64_t B, int64_t m, const T* grad, const T* y, T* grad_z, T* grad_bias) {
  const int64_t part_rows = std::max<int64_t>(16, (1 << 15) / std::max<int64_t>(m, 1));
  const int64_t parts = std::max<int64_t>(1, ceil_div(B, part_rows));  // one of no rows too
  const Buffer<double> sums(grad_bias ? parts * m : 0);
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = part * part_rows * m;
      const int64_t rows = std::min(part_rows, B - part * part_rows);
      mask(grad + begin, y + begin, rows * m, grad_z + begin);
      if (!grad_bias) continue;
      double* const own = sums.get() + part * m;
      std::fill_n(own, m, 0.0);
      add_columns(grad_z + begin, rows, m, m, own);
    }
  });
  if (!grad_bias) return;
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t k = 0; k < m; ++k) sums.get()[k] += sums.get()[part * m + k];
  for (int64_t k = 0; k < m; ++k) grad_bias[k] = static_cast<T>(sums.get()[k]);
}

// ---- the registered kernels ----

at::ScalarType compute_dtype(const Tensor& x, bool direct) {
  const bool as_it_is = x.scalar_type() == at::kBFloat16 && !direct;
  return as_it_is ? at::kBFloat16 : at::toOpMathType(x.scalar_type());
}

// Contiguous (*, size) as (B, size).
Tensor as_matrix(const Tensor& tensor) {
  return tensor.dim() == 2 ? tensor : tensor.view({rows_of(tensor), tensor.size(-1)});
}

// y = relu(x W^T + bias) by ATen's product.
void product_forward(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& y) {
  Tensor rows = as_matrix(y);
  if (bias.defined()) {
    at::cpu::addmm_out(rows, bias, as_matrix(x), weight.t());
  } else {
    at::cpu::mm_out(rows, as_matrix(x), weight.t());
  }
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, y.scalar_type(), "linear_relu", [&] {
    auto* const data = y.mutable_data_ptr<scalar_t>();
    at::parallel_for(0, y.numel(), 1 << 15,
                     [&](int64_t first, int64_t last) { relu(data + first, last - first); });
  });
}

// The wanted gradients by ATen's products.
void product_backward(const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& y,
                      std::array<bool, 3> wanted, const Tensor& grad_x, Tensor& grad_weight,
                      const Tensor& grad_bias) {
  const int64_t B = rows_of(y), m = y.size(-1);
  const Tensor grad_z = result({B, m}, y.scalar_type());
  AT_DISPATCH_FLOATING_TYPES_AND(at::kBFloat16, y.scalar_type(), "linear_relu_backward", [&] {
    mask_and_sum(B, m, pointer<scalar_t>(grad), pointer<scalar_t>(y),
                 grad_z.mutable_data_ptr<scalar_t>(),
                 wanted[2] ? grad_bias.mutable_data_ptr<scalar_t>() : nullptr);
  });
  if (wanted[0]) {
    Tensor rows = as_matrix(grad_x);
    at::cpu::mm_out(rows, grad_z, weight);
  }
  if (wanted[1]) at::cpu::mm_out(grad_weight, grad_z.t(), as_matrix(x));
}

Tensor linear_relu_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_linear_relu(x, weight, bias);
  const int64_t B = rows_of(x), n = x.size(-1), m = weight.size(0);
  const bool direct = is_direct(B, n, m);
  const auto dtype = compute_dtype(x, direct);
  at::DimVector sizes(x.sizes());
  sizes.back() = m;
  const Tensor x_in = operand(x, dtype), weight_in = operand(weight, dtype);
  const Tensor bias_in = operand(bias, dtype);
  const Tensor y = result(sizes, dtype);
  if (direct) {
    AT_DISPATCH_FLOATING_TYPES(dtype, "linear_relu", [&] {
      with_registers([&](auto registers) {
        direct_forward<scalar_t, decltype(registers)>(
            B, n, m, pointer<scalar_t>(x_in), pointer<scalar_t>(weight_in),
            pointer<scalar_t>(bias_in), y.mutable_data_ptr<scalar_t>());
      });
    });
  } else {
    product_forward(x_in, weight_in, bias_in, y);
  }
  return rounded(y, x.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> linear_relu_backward_cpu(const Tensor& grad,
                                                            const OptionalTensor& x,
                                                            const OptionalTensor& weight,
                                                            const Tensor& y,
                                                            std::array<bool, 3> wanted) {
  check_linear_relu_backward(grad, x, weight, y, wanted);
  const int64_t B = rows_of(grad), m = grad.size(-1);
  const int64_t n = wanted[0] ? weight->size(1) : wanted[1] ? x->size(-1) : 0;
  const bool direct = is_direct(B, n, m);
  const auto dtype = compute_dtype(grad, direct);
  const Tensor grad_in = operand(grad, dtype), y_in = operand(y, dtype);
  const Tensor x_in = wanted[1] ? operand(*x, dtype) : Tensor();
  const Tensor weight_in = wanted[0] ? operand(*weight, dtype) : Tensor();
  const auto made = [&](bool is_wanted, at::IntArrayRef sizes) {
    return result(is_wanted ? sizes : at::IntArrayRef(kNothing), dtype);
  };
  at::DimVector sizes(grad.sizes());
  sizes.back() = n;
  const Tensor grad_x = made(wanted[0], sizes), grad_bias = made(wanted[2], {m});
  Tensor grad_weight = made(wanted[1], {m, n});
  if (direct) {
    AT_DISPATCH_FLOATING_TYPES(dtype, "linear_relu_backward", [&] {
      const auto out = [](bool is_wanted, const Tensor& tensor) {
        return is_wanted ? tensor.mutable_data_ptr<scalar_t>() : nullptr;
      };
      with_registers([&](auto registers) {
        direct_backward<scalar_t, decltype(registers)>(
            B, n, m, pointer<scalar_t>(grad_in), pointer<scalar_t>(x_in),
            pointer<scalar_t>(weight_in), pointer<scalar_t>(y_in), out(wanted[0], grad_x),
            out(wanted[1], grad_weight), out(wanted[2], grad_bias));
      });
    });
  } else {
    product_backward(grad_in, x_in, weight_in, y_in, wanted, grad_x, grad_weight, grad_bias);
  }
  const auto type = grad.scalar_type();
  return {rounded(grad_x, type), rounded(grad_weight, type), rounded(grad_bias, type)};
}

}  // namespace

TORCH_LIBRARY_IMPL(blockops, CPU, library) {
  library.impl("linear_relu", &linear_relu_cpu);
  library.impl("linear_relu_backward", &linear_relu_backward_cpu);
}

}  // namespace blockops
