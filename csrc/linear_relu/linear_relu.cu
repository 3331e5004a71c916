// The kernels of linear_relu for every dtype.
#include "linear_relu/linear_relu.cuh"

namespace blockops::device::linear_relu {

#define BLOCKOPS_INSTANTIATE(T)                                             \
  template cudaError_t launch_forward(const Forward<T>&, cudaStream_t);     \
  template cudaError_t launch_gradients(const Gradients<T>&, cudaStream_t); \
  template cudaError_t launch_mask(const Mask<T>&, cudaStream_t);
BLOCKOPS_INSTANTIATE(double)
BLOCKOPS_INSTANTIATE(float)
BLOCKOPS_INSTANTIATE(BFloat16)
BLOCKOPS_INSTANTIATE(Half)
#undef BLOCKOPS_INSTANTIATE

}  // namespace blockops::device::linear_relu
