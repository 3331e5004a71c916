// The launch functions of the bilinear family's CUDA kernels, for the glue. Memory is contiguous;
// sizes are those of the ops, with B rows. T is float, double, BFloat16 or Half.
#pragma once
#include <functional>

#include "core/numbers.h"

namespace blockops::device {

struct Launch {
  cudaStream_t stream;
  int processors;  // of the device: how many blocks it takes to keep it busy
  bool tf32;       // whether float32 may be rounded to TF32
  std::function<void*(int64_t bytes)>
      allocate;  // scratch memory, which lives until the call is over
};

// x (B, n), W (n, n, m), bias (m) or null, y (B, m)
template <class T>
cudaError_t quadratic_forward(const Launch& launch, int64_t B, int n, int m, const T* x, const T* W,
                              const T* bias, T* y);
template <class T>
cudaError_t quadratic_grad_x(const Launch& launch, int64_t B, int n, int m, const T* grad,
                             const T* x, const T* W, T* grad_x);
template <class T>
cudaError_t quadratic_grad_weight(const Launch& launch, int64_t B, int n, int m, const T* grad,
                                  const T* x, T* grad_W);

// x1 (B, n1), x2 (B, n2), W (m, n1, n2), bias (m) or null, y (B, m)
template <class T>
cudaError_t bilinear_forward(const Launch& launch, int64_t B, int n1, int n2, int m, const T* x1,
                             const T* x2, const T* W, const T* bias, T* y);
template <class T>
cudaError_t bilinear_grad_inputs(const Launch& launch, int64_t B, int n1, int n2, int m,
                                 const T* grad, const T* x1, const T* x2, const T* W, T* grad_x1,
                                 T* grad_x2);
template <class T>
cudaError_t bilinear_grad_weight(const Launch& launch, int64_t B, int n1, int n2, int m,
                                 const T* grad, const T* x1, const T* x2, T* grad_W);

}  // namespace blockops::device
