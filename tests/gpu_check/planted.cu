// One bug for each tool of compute-sanitizer to find, where it works.
//
//   planted memcheck | racecheck | initcheck | synccheck
#include <cstdio>
#include <cstring>

#include "core/device.h"

namespace blockops::planted {

constexpr int kThreads = 64;

__global__ void writes_past_the_end(float* out) { out[kThreads + threadIdx.x] = 1; }

__global__ void lacks_a_barrier(float* out) {
  BLOCKOPS_SHARED(shared);
  float* const values = reinterpret_cast<float*>(shared);
  values[threadIdx.x] = out[threadIdx.x];
  out[threadIdx.x] = values[(threadIdx.x + 32) % kThreads];
}

__global__ void reads_what_nobody_wrote(float* out) { out[threadIdx.x] += 1; }

__global__ void is_not_in_its_mask(float*) { __syncwarp(0x0000ffff); }

}  // namespace blockops::planted

int main(int, char** arguments) {
  using namespace blockops::planted;
  const char* const tool = arguments[1];
  auto* const kernel = !std::strcmp(tool, "memcheck")    ? writes_past_the_end
                       : !std::strcmp(tool, "racecheck") ? lacks_a_barrier
                       : !std::strcmp(tool, "initcheck") ? reads_what_nobody_wrote
                                                         : is_not_in_its_mask;
  float* out = nullptr;
  cudaError_t error = cudaMalloc(&out, kThreads * sizeof(float));
  if (!error) {
    error = blockops::device::launch(kernel, dim3(1), dim3(kThreads), kThreads * sizeof(float),
                                     cudaStream_t(), out);
  }
  if (!error) error = cudaDeviceSynchronize();
  std::printf("CUDA error %d\n", int(error));
  return 0;
}
