// The kernels of center for every dtype.
#include "center/center.cuh"

namespace blockops::device::center {

#define BLOCKOPS_INSTANTIATE(T)                             \
  template Plan plan_center(const Center<T>&, const Chip&); \
  template cudaError_t launch_center(const Center<T>&, const Plan&, double*, cudaStream_t);
BLOCKOPS_INSTANTIATE(double)
BLOCKOPS_INSTANTIATE(float)
BLOCKOPS_INSTANTIATE(BFloat16)
BLOCKOPS_INSTANTIATE(Half)
#undef BLOCKOPS_INSTANTIATE

}  // namespace blockops::device::center
