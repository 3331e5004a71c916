// center on CUDA: checks, the device, and memory for what center.cu launches.
#include <torch/library.h>

#include "center/center_launch.h"
#include "center/view.h"
#include "core/cuda.h"

namespace blockops {
namespace {

// Of the current device.
device::center::Chip chip() {
  int shared_bytes = 0;
  cuda::check_launch("center",
                     cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                            c10::cuda::current_device()));
  return {cuda::multiprocessors(), shared_bytes};
}

Tensor center_view_cuda(const View& view, const Tensor& x) {
  const Tensor y = at::empty(x.sizes(), x.options());
  cuda::for_type(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    const device::center::Center<T> center{
        cuda::pointer<T>(x), cuda::mutable_pointer<T>(y), view.O, view.R, view.K, view.S};
    const auto plan = device::center::plan_center(center, chip());
    const Tensor workspace =
        plan.workspace_bytes > 0 ? cuda::workspace(plan.workspace_bytes, x) : Tensor();
    cuda::check_launch("center",
                       device::center::launch_center(
                           center, plan, cuda::mutable_pointer<double>(workspace), cuda::stream()));
  });
  return y;
}

Tensor center_cuda(const Tensor& x, at::OptionalIntArrayRef dim) {
  const c10::cuda::CUDAGuard guard(x.device());
  return center_by_view(x, dim, center_view_cuda);
}

}  // namespace

TORCH_LIBRARY_IMPL(blockops, CUDA, library) { library.impl("center", &center_cuda); }

}  // namespace blockops
