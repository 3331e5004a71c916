// quadratic and bilinear on the CPU: checks, dtypes and layouts, and the choice of schedule. The
// passes themselves are in trilinear_direct.h (plain loops), trilinear_narrow.h and
// trilinear_outer.h (few outputs, in registers), trilinear_cpu.h and trilinear_matrix.h (tiles, and
// a product in registers) and trilinear_few.h (few rows of the batch).
//
// bfloat16 and float16 are computed in float32, on float32 copies of the arguments.
#include <ATen/Dispatch.h>
#include <ATen/OpMathType.h>
#include <torch/library.h>

#include <tuple>

#include "bilinear/checks.h"
#include "bilinear/trilinear_cpu.h"
#include "bilinear/trilinear_direct.h"
#include "bilinear/trilinear_few.h"
#include "bilinear/trilinear_matrix.h"
#include "bilinear/trilinear_narrow.h"
#include "bilinear/trilinear_outer.h"

namespace blockops {
namespace {

using namespace cpu;

// Whether the plain loops of trilinear_direct.h win, which take all vectors of the weight for every
// row, or there is nothing to do, which only they take.
bool is_direct(const DirectForm& form) {
  const auto [B, n1, n2, n3] = form;
  const int64_t work = B * form.size();
  const int64_t vectors = B * n1 * n2 * std::max<int64_t>(n3, 16);  // work, of whole vectors
  return work == 0 || (B <= 4 && vectors <= 1 << 16) || (B <= kDirectRows && vectors <= 1 << 14);
}

// ---- quadratic: pairs (i, j) with i <= j, third slot k ----

template <class T>
Weight<T> symmetric(const T* W, int64_t n, int64_t m) {
  return {Pairs{n, n, /*upper=*/true}, m, W, 0};
}

template <class T>
void quadratic_forward(int64_t B, int64_t n, int64_t m, const T* x, const T* W, const T* bias,
                       T* y) {
  if (const DirectForm form{B, n, n, m}; is_direct(form)) {
    direct_third_pass<T>(form, W, x, x, bias, y);
  } else if (m <= kNarrow) {
    narrow_third_pass<T>(symmetric(W, n, m), B, x, x, bias, y);
  } else if (is_few(B)) {
    few_third_pass<T>(symmetric(W, n, m), B, x, bias, y);
  } else {
    third_pass<T>(symmetric(W, n, m), B, x, x, bias, y);
  }
}

template <class T>
void quadratic_grad_x(int64_t B, int64_t n, int64_t m, const T* g, const T* x, const T* W,
                      T* grad_x) {
  if (const DirectForm form{B, n, n, m}; is_direct(form)) {
    direct_pair_pass<T>(form, W, x, x, g, nullptr, grad_x, grad_x);
  } else if (m <= kNarrow) {
    narrow_pair_pass<T>(symmetric(W, n, m), B, x, x, g, grad_x, nullptr);
  } else if (is_few_symmetric(B)) {
    few_pair_pass<T>(symmetric(W, n, m), B, x, x, g, grad_x, nullptr);
  } else {
    pair_pass<T>(symmetric(W, n, m), B, x, x, g, grad_x, nullptr);
  }
}

template <class T>
void quadratic_grad_weight(int64_t B, int64_t n, int64_t m, const T* g, const T* x, T* grad_W) {
  if (const DirectForm form{B, n, n, m}; is_direct(form)) {
    direct_matrix_pass<T>(form, x, x, g, grad_W);
  } else if (m <= kNarrow) {
    outer_pass<T>(Pairs{n, n, /*upper=*/true}, m, B, x, x, g, {grad_W, n * m, m, 1});
  } else {
    symmetric_matrix_pass<T>(n, m, B, x, g, grad_W);
  }
}

// ---- bilinear: pairs (i, j), third slot k, of W (m, n1, n2) ----

template <class T>
Weight<T> plain(const T* W, int64_t n1, int64_t n2, int64_t m) {
  return {Pairs{n1, n2, /*upper=*/false}, m, W, n1 * n2};
}

template <class T>
void bilinear_forward(int64_t B, int64_t n1, int64_t n2, int64_t m, const T* x1, const T* x2,
                      const T* W, const T* bias, T* y) {
  // W as it lies: pairs (k, i), third slot j
  if (const DirectForm form{B, m, n1, n2}; is_direct(form)) {
    direct_pair_pass<T>(form, W, nullptr, x1, x2, bias, y, nullptr);
  } else if (m <= kNarrow) {
    narrow_third_pass<T>(plain(W, n1, n2, m), B, x1, x2, bias, y);
  } else if (is_few(B)) {
    few_forward<T>(B, n1, n2, m, x1, x2, W, bias, y);
  } else {
    third_pass<T>(plain(W, n1, n2, m), B, x1, x2, bias, y);
  }
}

template <class T>
void bilinear_grad_inputs(int64_t B, int64_t n1, int64_t n2, int64_t m, const T* g, const T* x1,
                          const T* x2, const T* W, T* grad_x1, T* grad_x2) {
  if (const DirectForm form{B, m, n1, n2}; is_direct(form)) {
    direct_pair_pass<T>(form, W, g, nullptr, x2, nullptr, nullptr, grad_x1);
    direct_third_pass<T>(form, W, g, x1, nullptr, grad_x2);
  } else if (m <= kNarrow) {
    narrow_pair_pass<T>(plain(W, n1, n2, m), B, x1, x2, g, grad_x1, grad_x2);
  } else if (is_few(B)) {
    few_pair_pass<T>(plain(W, n1, n2, m), B, x1, x2, g, grad_x1, grad_x2);
  } else {
    pair_pass<T>(plain(W, n1, n2, m), B, x1, x2, g, grad_x1, grad_x2);
  }
}

template <class T>
void bilinear_grad_weight(int64_t B, int64_t n1, int64_t n2, int64_t m, const T* g, const T* x1,
                          const T* x2, T* grad_W) {
  if (const DirectForm form{B, m, n1, n2}; is_direct(form)) {
    direct_matrix_pass<T>(form, g, x1, x2, grad_W);
  } else if (m <= kNarrow && n2 < kStrip && n2 < n1) {
    outer_pass<T>(Pairs{n2, n1, /*upper=*/false}, m, B, x2, x1, g, {grad_W, 1, n2, n1 * n2});
  } else if (m <= kNarrow) {
    outer_pass<T>(Pairs{n1, n2, /*upper=*/false}, m, B, x1, x2, g, {grad_W, n2, 1, n1 * n2});
  } else {
    matrix_pass<T>(Pairs{n1, n2, /*upper=*/false}, m, B, x1, x2, g, grad_W);
  }
}

// ---- the registered kernels ----

Tensor quadratic_cpu(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  check_quadratic("quadratic", x, weight, bias);
  const auto dtype = at::toOpMathType(x.scalar_type());
  const int64_t n = x.size(-1), m = weight.size(2);
  auto sizes = x.sizes().vec();
  sizes.back() = m;
  const Tensor x_in = operand(x, dtype), weight_in = operand(weight, dtype),
               bias_in = operand(bias, dtype);
  const Tensor y = result(sizes, dtype);
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "quadratic", [&] {
    quadratic_forward<scalar_t>(rows_of(x), n, m, pointer<scalar_t>(x_in),
                                pointer<scalar_t>(weight_in), pointer<scalar_t>(bias_in),
                                y.mutable_data_ptr<scalar_t>());
  });
  return rounded(y, x.scalar_type());
}

Tensor quadratic_grad_x_cpu(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  check_quadratic("quadratic_grad_x", x, weight);
  check_grad_of("quadratic_grad_x", "x", x, grad, weight, 2);
  const auto dtype = at::toOpMathType(x.scalar_type());
  const int64_t n = x.size(-1), m = weight.size(2);
  const Tensor g_in = operand(grad, dtype), x_in = operand(x, dtype),
               weight_in = operand(weight, dtype);
  const Tensor grad_x = result(x.sizes(), dtype);
  AT_DISPATCH_FLOATING_TYPES(grad_x.scalar_type(), "quadratic_grad_x", [&] {
    quadratic_grad_x<scalar_t>(rows_of(x), n, m, pointer<scalar_t>(g_in), pointer<scalar_t>(x_in),
                               pointer<scalar_t>(weight_in), grad_x.mutable_data_ptr<scalar_t>());
  });
  return rounded(grad_x, x.scalar_type());
}

Tensor quadratic_grad_weight_cpu(const Tensor& grad, const Tensor& x) {
  check_vector_input("quadratic_grad_weight", "x", x);
  check_grad("quadratic_grad_weight", "x", x, grad);
  const auto dtype = at::toOpMathType(x.scalar_type());
  const int64_t n = x.size(-1), m = grad.size(-1);
  const Tensor g_in = operand(grad, dtype), x_in = operand(x, dtype);
  const Tensor grad_weight = result({n, n, m}, dtype);
  AT_DISPATCH_FLOATING_TYPES(grad_weight.scalar_type(), "quadratic_grad_weight", [&] {
    quadratic_grad_weight<scalar_t>(rows_of(x), n, m, pointer<scalar_t>(g_in),
                                    pointer<scalar_t>(x_in),
                                    grad_weight.mutable_data_ptr<scalar_t>());
  });
  return rounded(grad_weight, x.scalar_type());
}

Tensor bilinear_cpu(const Tensor& x1, const Tensor& x2, const Tensor& weight,
                    const OptionalTensor& bias) {
  check_bilinear("bilinear", x1, x2, weight, bias);
  const auto dtype = at::toOpMathType(x1.scalar_type());
  const int64_t n1 = x1.size(-1), n2 = x2.size(-1), m = weight.size(0);
  auto sizes = x1.sizes().vec();
  sizes.back() = m;
  const Tensor x1_in = operand(x1, dtype), x2_in = operand(x2, dtype),
               weight_in = operand(weight, dtype);
  const Tensor bias_in = operand(bias, dtype), y = result(sizes, dtype);
  AT_DISPATCH_FLOATING_TYPES(y.scalar_type(), "bilinear", [&] {
    bilinear_forward<scalar_t>(rows_of(x1), n1, n2, m, pointer<scalar_t>(x1_in),
                               pointer<scalar_t>(x2_in), pointer<scalar_t>(weight_in),
                               pointer<scalar_t>(bias_in), y.mutable_data_ptr<scalar_t>());
  });
  return rounded(y, x1.scalar_type());
}

std::tuple<Tensor, Tensor> bilinear_grad_inputs_cpu(const Tensor& grad, const Tensor& x1,
                                                    const Tensor& x2, const Tensor& weight) {
  check_bilinear("bilinear_grad_inputs", x1, x2, weight);
  check_grad_of("bilinear_grad_inputs", "x1", x1, grad, weight, 0);
  const auto dtype = at::toOpMathType(x1.scalar_type());
  const int64_t n1 = x1.size(-1), n2 = x2.size(-1), m = weight.size(0);
  const Tensor g_in = operand(grad, dtype), weight_in = operand(weight, dtype);
  const Tensor x1_in = operand(x1, dtype), x2_in = operand(x2, dtype);
  const Tensor grad_x1 = result(x1.sizes(), dtype), grad_x2 = result(x2.sizes(), dtype);
  AT_DISPATCH_FLOATING_TYPES(grad_x1.scalar_type(), "bilinear_grad_inputs", [&] {
    bilinear_grad_inputs<scalar_t>(
        rows_of(x1), n1, n2, m, pointer<scalar_t>(g_in), pointer<scalar_t>(x1_in),
        pointer<scalar_t>(x2_in), pointer<scalar_t>(weight_in),
        grad_x1.mutable_data_ptr<scalar_t>(), grad_x2.mutable_data_ptr<scalar_t>());
  });
  return {rounded(grad_x1, x1.scalar_type()), rounded(grad_x2, x2.scalar_type())};
}

Tensor bilinear_grad_weight_cpu(const Tensor& grad, const Tensor& x1, const Tensor& x2) {
  check_inputs("bilinear_grad_weight", x1, x2);
  check_grad("bilinear_grad_weight", "x1", x1, grad);
  const auto dtype = at::toOpMathType(x1.scalar_type());
  const int64_t n1 = x1.size(-1), n2 = x2.size(-1), m = grad.size(-1);
  const Tensor g_in = operand(grad, dtype), x1_in = operand(x1, dtype), x2_in = operand(x2, dtype);
  const Tensor grad_weight = result({m, n1, n2}, dtype);
  AT_DISPATCH_FLOATING_TYPES(grad_weight.scalar_type(), "bilinear_grad_weight", [&] {
    bilinear_grad_weight<scalar_t>(rows_of(x1), n1, n2, m, pointer<scalar_t>(g_in),
                                   pointer<scalar_t>(x1_in), pointer<scalar_t>(x2_in),
                                   grad_weight.mutable_data_ptr<scalar_t>());
  });
  return rounded(grad_weight, x1.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(blockops, CPU, library) {
  library.impl("quadratic", &quadratic_cpu);
  library.impl("quadratic_grad_x", &quadratic_grad_x_cpu);
  library.impl("quadratic_grad_weight", &quadratic_grad_weight_cpu);
  library.impl("bilinear", &bilinear_cpu);
  library.impl("bilinear_grad_inputs", &bilinear_grad_inputs_cpu);
  library.impl("bilinear_grad_weight", &bilinear_grad_weight_cpu);
}

}  // namespace blockops
