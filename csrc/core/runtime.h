// CUDA's element types, streams and errors: what the glue needs to call launch functions, and what
// kernels and device.h begin from. The one file that knows where they come from: CUDA's headers,
// read by nvcc and by the glue's compiler, or tests/cpp/cuda_on_cpu.h, which stands in for them and
// for device.h where g++ compiles the kernels themselves. Only those tests have it on their path.
#pragma once
#include <cstddef>
#include <cstdint>

#if !defined(__CUDACC__) && __has_include("cuda_on_cpu.h")
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#endif
