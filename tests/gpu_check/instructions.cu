// What the instructions that core/device.h wraps make of the bits in a file. nvcc compiles this for
// the hardware, and g++ for the models of tests/cpp/cuda_on_cpu.h.
//
//   instructions SAMPLES RESULTS    hardware.py has the same two structs
#include <cstdio>
#include <vector>

#include "core/device.h"

namespace blockops::device {

struct Product {
  uint32_t a[32][4], b[32][2];
};
struct Sample {
  uint32_t matrices[128];  // four 8x8 matrices of 16-bit elements, by rows
  uint32_t rows[32];       // which of their rows each lane names
  uint32_t x[32];
  float d[32][4];
  Product bf16, f16, tf32;
};
struct Result {
  uint32_t plain[32][4], transposed[32][4], rounded[32];
  float bf16[32][4], f16[32][4], tf32[32][4];
};

using Multiply = void (*)(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]);

__device__ __forceinline__ void copy(float (&to)[4], const float (&from)[4]) {
  for (int i = 0; i < 4; ++i) to[i] = from[i];
}

__global__ void instructions_kernel(const Sample* samples, Result* results) {
  BLOCKOPS_SHARED(shared);
  const Sample& sample = samples[blockIdx.x];
  Result& result = results[blockIdx.x];
  const int lane = threadIdx.x;
  for (int i = lane; i < 128; i += 32) {
    reinterpret_cast<uint32_t*>(shared)[i] = sample.matrices[i];
  }
  __syncwarp();
  const void* const row = shared + 16 * sample.rows[lane];
  load_matrices(result.plain[lane], row);
  load_matrices_transposed(result.transposed[lane], row);
  float x;
  memcpy(&x, &sample.x[lane], sizeof x);
  result.rounded[lane] = round_to_tf32(x);
  copy(result.bf16[lane], sample.d[lane]);
  copy(result.f16[lane], sample.d[lane]);
  copy(result.tf32[lane], sample.d[lane]);
  mma_bf16(result.bf16[lane], sample.bf16.a[lane], sample.bf16.b[lane]);
  mma_f16(result.f16[lane], sample.f16.a[lane], sample.f16.b[lane]);
  mma_tf32(result.tf32[lane], sample.tf32.a[lane], sample.tf32.b[lane]);
}

#ifdef __CUDACC__
template <class T>
cudaError_t on_device(T** memory, const std::vector<T>& values) {
  const size_t bytes = values.size() * sizeof(T);
  if (const auto error = cudaMalloc(memory, bytes)) return error;
  return cudaMemcpy(*memory, values.data(), bytes, cudaMemcpyHostToDevice);
}

cudaError_t run(const std::vector<Sample>& samples, std::vector<Result>& results) {
  Sample* from = nullptr;
  Result* to = nullptr;
  if (const auto error = on_device(&from, samples)) return error;
  if (const auto error = on_device(&to, results)) return error;
  if (const auto error = launch(instructions_kernel, dim3(unsigned(samples.size())), dim3(32), 512,
                                cudaStream_t(), from, to))
    return error;
  return cudaMemcpy(results.data(), to, results.size() * sizeof(Result), cudaMemcpyDeviceToHost);
}
#else
cudaError_t run(const std::vector<Sample>& samples, std::vector<Result>& results) {
  return launch(instructions_kernel, dim3(unsigned(samples.size())), dim3(32), 512, cudaStream_t(),
                samples.data(), results.data());
}
#endif

}  // namespace blockops::device

int main(int, char** arguments) {
  using namespace blockops::device;
  std::vector<Sample> samples;
  Sample sample;
  if (FILE* const file = std::fopen(arguments[1], "rb")) {
    while (std::fread(&sample, sizeof sample, 1, file) == 1) samples.push_back(sample);
    std::fclose(file);
  }
  std::vector<Result> results(samples.size());
  if (const auto error = run(samples, results)) {
    std::printf("CUDA error %d\n", int(error));
    return 1;
  }
  FILE* const file = std::fopen(arguments[2], "wb");
  const size_t written = std::fwrite(results.data(), sizeof(Result), results.size(), file);
  return std::fclose(file) == 0 && written == samples.size() ? 0 : 1;
}
