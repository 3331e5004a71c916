// What the CUDA glue shares: tensors as the kernels' types, the current stream, errors by name.
#pragma once
#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <optional>

#include "core/numbers.h"

namespace blockops::cuda {

// Kernels read contiguous memory: the tensor itself where it is that already.
inline at::Tensor operand(const at::Tensor& tensor) { return tensor.contiguous(); }
inline at::Tensor operand(const std::optional<at::Tensor>& tensor) {
  return tensor ? tensor->contiguous() : at::Tensor();
}

template <class T>
const T* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<const T*>(tensor.const_data_ptr()) : nullptr;
}
template <class T>
T* mutable_pointer(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.mutable_data_ptr()) : nullptr;
}

// B: the product of x's leading sizes.
inline int64_t rows_of(const at::Tensor& x) {
  int64_t rows = 1;
  for (int64_t axis = 0; axis + 1 < x.dim(); ++axis) rows *= x.size(axis);
  return rows;
}

// Scratch memory of the caching allocator, which the current stream may use at once.
inline at::Tensor workspace(int64_t bytes, const at::Tensor& like) {
  return at::empty({bytes}, like.options().dtype(at::kByte));
}

inline cudaStream_t stream() { return c10::cuda::getCurrentCUDAStream(); }

inline void check_launch(const char* op, cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, op,
              ": CUDA could not start the kernel: ", cudaGetErrorString(error));
}

// Of the current device.
inline int multiprocessors() {
  int count = 0;
  C10_CUDA_CHECK(
      cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, c10::cuda::current_device()));
  return count;
}

// Whether PyTorch's own switch lets matrix products of float32 round their operands to TF32.
inline bool allows_tf32() {
  return at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) ==
         at::Float32Precision::TF32;
}

// Calls body(T()) with the kernels' type of a floating dtype.
template <class Body>
void for_type(at::ScalarType dtype, const Body& body) {
  switch (dtype) {
    case at::kDouble:
      return body(double());
    case at::kFloat:
      return body(float());
    case at::kBFloat16:
      return body(device::BFloat16());
    default:  // the checks let no fourth one through
      return body(device::Half());
  }
}

}  // namespace blockops::cuda
