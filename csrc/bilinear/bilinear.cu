#include "bilinear/bilinear.cuh"

namespace blockops::device {

#define BLOCKOPS_INSTANTIATE(T)                                                                    \
  template cudaError_t quadratic_forward(const Launch&, int64_t, int, int, const T*, const T*,     \
                                         const T*, T*);                                            \
  template cudaError_t quadratic_grad_x(const Launch&, int64_t, int, int, const T*, const T*,      \
                                        const T*, T*);                                             \
  template cudaError_t quadratic_grad_weight(const Launch&, int64_t, int, int, const T*, const T*, \
                                             T*);                                                  \
  template cudaError_t bilinear_forward(const Launch&, int64_t, int, int, int, const T*, const T*, \
                                        const T*, const T*, T*);                                   \
  template cudaError_t bilinear_grad_inputs(const Launch&, int64_t, int, int, int, const T*,       \
                                            const T*, const T*, const T*, T*, T*);                 \
  template cudaError_t bilinear_grad_weight(const Launch&, int64_t, int, int, int, const T*,       \
                                            const T*, const T*, T*);
BLOCKOPS_INSTANTIATE(float)
BLOCKOPS_INSTANTIATE(double)
BLOCKOPS_INSTANTIATE(BFloat16)
BLOCKOPS_INSTANTIATE(Half)

}  // namespace blockops::device
