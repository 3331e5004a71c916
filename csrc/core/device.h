// What kernels take from CUDA beyond the language itself: launches, dynamic shared memory,
// asynchronous copies, tensor cores. Two compilers read kernels: nvcc for the GPU, and g++ for the
// tests in tests/cpp, whose cuda_on_cpu.h brings the same names and runs each CUDA thread as a
// fiber. Kernels use nothing else of PTX, and no cooperative groups.
#pragma once
#include "core/runtime.h"

#ifdef __CUDACC__
#include <cooperative_groups.h>

// Dynamic shared memory as unsigned char* name.
#define BLOCKOPS_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

namespace blockops::device {

// A parameter that takes no part in deducing a template's types.
template <class T>
struct SameType {
  using Type = T;
};
template <class T>
using Same = typename SameType<T>::Type;

// More dynamic shared memory than this must be asked for, once a kernel and device.
constexpr size_t kSharedWithoutAsking = 48 << 10;

template <class... Params>
cudaError_t allow_shared(void (*kernel)(Params...), size_t shared_bytes) {
  if (shared_bytes <= kSharedWithoutAsking) return cudaSuccess;
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                              cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shared_bytes));
}

// Launches kernel(params...); returns the launch's error.
template <class... Params>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   cudaStream_t stream, Same<Params>... params) {
  if (const auto error = allow_shared(kernel, shared_bytes)) return error;
  void* arguments[] = {&params...};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments,
                          shared_bytes, stream);
}

// The same, with all blocks on the chip at once, so that grid_sync() can be called.
template <class... Params>
cudaError_t launch_cooperative(void (*kernel)(Params...), dim3 grid, dim3 block,
                               size_t shared_bytes, cudaStream_t stream, Same<Params>... params) {
  if (const auto error = allow_shared(kernel, shared_bytes)) return error;
  void* arguments[] = {&params...};
  return cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments,
                                     shared_bytes, stream);
}

// How many blocks of the kernel the current device holds at once.
template <class... Params>
cudaError_t resident_blocks(void (*kernel)(Params...), int threads, size_t shared_bytes,
                            int* blocks) {
  if (const auto error = allow_shared(kernel, shared_bytes)) return error;
  int device = 0, processors = 0, per_processor = 0;
  if (const auto error = cudaGetDevice(&device)) return error;
  if (const auto error =
          cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device))
    return error;
  const auto error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      &per_processor, reinterpret_cast<const void*>(kernel), threads, shared_bytes);
  *blocks = processors * per_processor;
  return error;
}

__device__ __forceinline__ void grid_sync() { cooperative_groups::this_grid().sync(); }

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes from global to shared memory without passing a register, both ends aligned to 16
// bytes: the first `valid` of them, and zeros for the others.
__device__ __forceinline__ void copy_async_16(void* to_shared, const void* from, int valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to_shared)),
               "l"(from), "r"(valid)
               : "memory");
}
__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `pending` of this thread's committed groups are under way.
template <int pending>
__device__ __forceinline__ void copy_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// Four 8x8 matrices of 16-bit elements; lane 8 q + r names row r of matrix q.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
}

// d (16, 8) += a (16, k) b (k, 8) by one warp on a tensor core, d in float32. What each lane holds
// of them: PTX ISA, "Matrix Fragments for mma.m16n8k16" (and k8).
#define BLOCKOPS_MMA(name, instruction)                                               \
  __device__ __forceinline__ void name(float (&d)[4], const uint32_t (&a)[4],         \
                                       const uint32_t (&b)[2]) {                      \
    asm volatile(instruction " {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"    \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
  }
BLOCKOPS_MMA(mma_bf16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32")
BLOCKOPS_MMA(mma_f16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32")
BLOCKOPS_MMA(mma_tf32, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")
#undef BLOCKOPS_MMA

// x rounded to the nearest TF32 number, as the bits that mma_tf32 takes.
__device__ __forceinline__ uint32_t round_to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
}

}  // namespace blockops::device
#endif
