// quadratic and bilinear on CUDA: checks, the current device and stream, and the memory that the
// launch functions of bilinear.cu work on.
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "bilinear/bilinear_launch.h"
#include "bilinear/checks.h"
#include "core/cuda.h"

namespace blockops {
namespace {

using namespace cuda;

// Features and outputs count in 32 bits on the device; rows, and all offsets, in 64.
int size_of(const char* op, const Tensor& tensor, int64_t axis) {
  const int64_t size = tensor.size(axis);
  TORCH_CHECK_VALUE(size <= INT32_MAX, op, ": CUDA takes features of at most 2^31 - 1, got ", size);
  return static_cast<int>(size);
}

// Launches on the current stream of a tensor's device; scratch memory is held until the call ends,
// when the stream's own later work may have it.
class OnDeviceOf {
 public:
  OnDeviceOf(const char* op, const Tensor& tensor) : op_(op), guard_(tensor.device()) {
    launch_.stream = stream();
    launch_.processors = multiprocessors();
    launch_.tf32 = tensor.scalar_type() == at::kFloat && allows_tf32();
    launch_.allocate = [this, like = tensor](int64_t bytes) {
      return held_.emplace_back(workspace(bytes, like)).mutable_data_ptr();
    };
  }

  // body(launch, T()) returns a launch's error.
  template <class Body>
  void run(at::ScalarType dtype, const Body& body) {
    for_type(dtype, [&](auto zero) { check_launch(op_, body(launch_, zero)); });
  }

 private:
  const char* op_;
  c10::cuda::CUDAGuard guard_;
  device::Launch launch_;
  std::vector<Tensor> held_;
};

Tensor quadratic_cuda(const Tensor& x, const Tensor& weight, const OptionalTensor& bias) {
  const char* const op = "quadratic";
  check_quadratic(op, x, weight, bias);
  OnDeviceOf device(op, x);
  const Tensor x_in = operand(x), weight_in = operand(weight), bias_in = operand(bias);
  const int n = size_of(op, weight, 0), m = size_of(op, weight, 2);
  at::DimVector sizes(x.sizes());
  sizes.back() = m;
  const Tensor y = at::empty(sizes, x.options());
  device.run(x.scalar_type(), [&](const auto& launch, auto zero) {
    using T = decltype(zero);
    return device::quadratic_forward<T>(launch, rows_of(x), n, m, pointer<T>(x_in),
                                        pointer<T>(weight_in), pointer<T>(bias_in),
                                        mutable_pointer<T>(y));
  });
  return y;
}

Tensor quadratic_grad_x_cuda(const Tensor& grad, const Tensor& x, const Tensor& weight) {
  const char* const op = "quadratic_grad_x";
  check_quadratic(op, x, weight);
  check_grad_of(op, "x", x, grad, weight, 2);
  OnDeviceOf device(op, x);
  const Tensor grad_in = operand(grad), x_in = operand(x), weight_in = operand(weight);
  const int n = size_of(op, weight, 0), m = size_of(op, weight, 2);
  const Tensor grad_x = at::empty(x.sizes(), x.options());
  device.run(x.scalar_type(), [&](const auto& launch, auto zero) {
    using T = decltype(zero);
    return device::quadratic_grad_x<T>(launch, rows_of(x), n, m, pointer<T>(grad_in),
                                       pointer<T>(x_in), pointer<T>(weight_in),
                                       mutable_pointer<T>(grad_x));
  });
  return grad_x;
}

Tensor quadratic_grad_weight_cuda(const Tensor& grad, const Tensor& x) {
  const char* const op = "quadratic_grad_weight";
  check_vector_input(op, "x", x);
  check_grad(op, "x", x, grad);
  OnDeviceOf device(op, x);
  const Tensor grad_in = operand(grad), x_in = operand(x);
  const int n = size_of(op, x, -1), m = size_of(op, grad, -1);
  const Tensor grad_weight = at::empty({n, n, m}, x.options());
  device.run(x.scalar_type(), [&](const auto& launch, auto zero) {
    using T = decltype(zero);
    return device::quadratic_grad_weight<T>(launch, rows_of(x), n, m, pointer<T>(grad_in),
                                            pointer<T>(x_in), mutable_pointer<T>(grad_weight));
  });
  return grad_weight;
}

Tensor bilinear_cuda(const Tensor& x1, const Tensor& x2, const Tensor& weight,
                     const OptionalTensor& bias) {
  const char* const op = "bilinear";
  check_bilinear(op, x1, x2, weight, bias);
  OnDeviceOf device(op, x1);
  const Tensor x1_in = operand(x1), x2_in = operand(x2), weight_in = operand(weight),
               bias_in = operand(bias);
  const int m = size_of(op, weight, 0), n1 = size_of(op, weight, 1), n2 = size_of(op, weight, 2);
  at::DimVector sizes(x1.sizes());
  sizes.back() = m;
  const Tensor y = at::empty(sizes, x1.options());
  device.run(x1.scalar_type(), [&](const auto& launch, auto zero) {
    using T = decltype(zero);
    return device::bilinear_forward<T>(launch, rows_of(x1), n1, n2, m, pointer<T>(x1_in),
                                       pointer<T>(x2_in), pointer<T>(weight_in),
                                       pointer<T>(bias_in), mutable_pointer<T>(y));
  });
  return y;
}

std::tuple<Tensor, Tensor> bilinear_grad_inputs_cuda(const Tensor& grad, const Tensor& x1,
                                                     const Tensor& x2, const Tensor& weight) {
  const char* const op = "bilinear_grad_inputs";
  check_bilinear(op, x1, x2, weight);
  check_grad_of(op, "x1", x1, grad, weight, 0);
  OnDeviceOf device(op, x1);
  const Tensor grad_in = operand(grad), weight_in = operand(weight);
  const Tensor x1_in = operand(x1), x2_in = operand(x2);
  const int m = size_of(op, weight, 0), n1 = size_of(op, weight, 1), n2 = size_of(op, weight, 2);
  const Tensor grad_x1 = at::empty(x1.sizes(), x1.options());
  const Tensor grad_x2 = at::empty(x2.sizes(), x2.options());
  device.run(x1.scalar_type(), [&](const auto& launch, auto zero) {
    using T = decltype(zero);
    return device::bilinear_grad_inputs<T>(
        launch, rows_of(x1), n1, n2, m, pointer<T>(grad_in), pointer<T>(x1_in), pointer<T>(x2_in),
        pointer<T>(weight_in), mutable_pointer<T>(grad_x1), mutable_pointer<T>(grad_x2));
  });
  return {grad_x1, grad_x2};
}

Tensor bilinear_grad_weight_cuda(const Tensor& grad, const Tensor& x1, const Tensor& x2) {
  const char* const op = "bilinear_grad_weight";
  check_inputs(op, x1, x2);
  check_grad(op, "x1", x1, grad);
  OnDeviceOf device(op, x1);
  const Tensor grad_in = operand(grad), x1_in = operand(x1), x2_in = operand(x2);
  const int m = size_of(op, grad, -1), n1 = size_of(op, x1, -1), n2 = size_of(op, x2, -1);
  const Tensor grad_weight = at::empty({m, n1, n2}, x1.options());
  device.run(x1.scalar_type(), [&](const auto& launch, auto zero) {
    using T = decltype(zero);
    return device::bilinear_grad_weight<T>(launch, rows_of(x1), n1, n2, m, pointer<T>(grad_in),
                                           pointer<T>(x1_in), pointer<T>(x2_in),
                                           mutable_pointer<T>(grad_weight));
  });
  return grad_weight;
}

}  // namespace

TORCH_LIBRARY_IMPL(blockops, CUDA, library) {
  library.impl("quadratic", &quadratic_cuda);
  library.impl("quadratic_grad_x", &quadratic_grad_x_cuda);
  library.impl("quadratic_grad_weight", &quadratic_grad_weight_cuda);
  library.impl("bilinear", &bilinear_cuda);
  library.impl("bilinear_grad_inputs", &bilinear_grad_inputs_cuda);
  library.impl("bilinear_grad_weight", &bilinear_grad_weight_cuda);
}

}  // namespace blockops
