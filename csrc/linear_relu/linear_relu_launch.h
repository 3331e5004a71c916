// What the glue and the CUDA kernels of linear_relu know of each other: the arguments, and the
// functions that launch, which linear_relu.cu instantiates for every dtype. All tensors are
// contiguous.
#pragma once
#include "core/numbers.h"

namespace blockops::device::linear_relu {

// y = relu(x W^T + bias), for little work.
template <class T>
struct Forward {
  int64_t B, n, m;
  const T *x, *weight, *bias;  // (B, n), (m, n), (m) or null
  T* y;                        // (B, m)
};

// The gradients that are not null, for little work: no matrix has more than 2^23 elements.
template <class T>
struct Gradients {
  int B, n, m;
  const T *grad, *y;    // (B, m)
  const T *x, *weight;  // (B, n) for grad_weight, (m, n) for grad_x
  T *grad_x, *grad_weight, *grad_bias;
};

// grad_z and, unless it is null, grad_bias: the sums of its columns.
template <class T>
struct Mask {
  int64_t B, m;
  const T *grad, *y;  // (B, m)
  T* grad_z;          // (B, m)
  T* grad_bias;       // (m)
  double* sums;       // (RowParts(B, m).count, m): scratch for grad_bias
};

// How the sums of columns are cut: into parts of so many rows that the blocks fill a GPU, and are
// not many more, for each part costs a partial sum a column.
struct RowParts {
  int64_t rows = 32, count;
  RowParts(int64_t B, int64_t m) {
    while (ceil_div(B, rows) * ceil_div(m, 128) > 1024 && rows < B) rows *= 2;
    count = ceil_div(B, rows);
  }
};

template <class T>
cudaError_t launch_forward(const Forward<T>& p, cudaStream_t stream);
template <class T>
cudaError_t launch_gradients(const Gradients<T>& p, cudaStream_t stream);
template <class T>
cudaError_t launch_mask(const Mask<T>& p, cudaStream_t stream);

}  // namespace blockops::device::linear_relu
