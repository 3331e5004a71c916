// CUDA for g++, as far as the kernels use it, where nvcc is not the compiler: the names that
// core/device.h brings for nvcc, the language's own names, and models of the instructions that
// core/device.h wraps. README.md says what is checked on the way.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <driver_types.h>
#include <math.h>
#include <vector_functions.h>

#include <algorithm>
#include <type_traits>

#include "grid_on_cpu.h"

// CUDA's headers make __global__, __device__ and __host__ nothing for g++.
#undef __forceinline__
#define __forceinline__ inline
#define __launch_bounds__(...)
#undef __shared__  // would be a thread's own; kernels use

#define BLOCKOPS_SHARED(name) \
  unsigned char* const name = ::blockops::device::cpu::current->block->shared

// ---- the language ----

constexpr int warpSize = 32;

inline void __syncthreads(
    blockops::device::cpu::Where where = blockops::device::cpu::Where::here()) {
  using namespace blockops::device::cpu;
  meet_all(current->block->barrier, current->block->live, {"__syncthreads", where});
}

// The only meeting of lanes that orders what they read and write in memory.
inline void __syncwarp(unsigned mask = ~0u,
                       blockops::device::cpu::Where where = blockops::device::cpu::Where::here()) {
  char none;
  blockops::device::cpu::meet_lanes<true>(mask, {"__syncwarp", where}, none, [](char* const*) {});
}

inline void __threadfence() {}
inline void __threadfence_block() {}

namespace blockops::device::cpu {

// Each lane of `mask` reads the value of lane `source`; of a lane that is not in the mask, NaN.
template <class T>
T shuffle(unsigned mask, T value, int source, const Instruction& instruction) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8);
  struct Lane {
    T value, result;
    int source;
  };
  Lane lane{value, value, source};
  meet_lanes<false>(mask, instruction, lane, [&](Lane* const* lanes) {
    for (int i = 0; i < 32; ++i) {
      if (!(mask >> i & 1)) continue;
      if (mask >> lanes[i]->source & 1) {
        lanes[i]->result = lanes[lanes[i]->source]->value;
      } else {
        std::memset(static_cast<void*>(&lanes[i]->result), 0xff, sizeof(T));
      }
    }
  });
  return lane.result;
}

// The lane to read from: `source`, or this one where `source` leaves the segment of `width` lanes.
inline int in_segment(int source, int width) {
  const bool inside = source >= 0 && source / width == current->lane / width;
  return inside ? source : current->lane;
}

inline unsigned vote(unsigned mask, bool yes, const Instruction& instruction) {
  struct Lane {
    bool yes;
    unsigned result;
  };
  Lane lane{yes, 0};
  meet_lanes<false>(mask, instruction, lane, [&](Lane* const* lanes) {
    unsigned votes = 0;
    for (int i = 0; i < 32; ++i) {
      if (mask >> i & 1 && lanes[i]->yes) votes |= 1u << i;
    }
    for (int i = 0; i < 32; ++i) {
      if (mask >> i & 1) lanes[i]->result = votes;
    }
  });
  return lane.result;
}

template <class To, class From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace blockops::device::cpu

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              blockops::device::cpu::Where where = blockops::device::cpu::Where::here()) {
  using namespace blockops::device::cpu;
  const int first = current->lane / width * width;
  return shuffle(mask, value, first + (source & (width - 1)), {"__shfl_sync", where});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32,
                  blockops::device::cpu::Where where = blockops::device::cpu::Where::here()) {
  using namespace blockops::device::cpu;
  return shuffle(mask, value, in_segment(current->lane ^ flip, width), {"__shfl_xor_sync", where});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   blockops::device::cpu::Where where = blockops::device::cpu::Where::here()) {
  using namespace blockops::device::cpu;
  const int source = in_segment(current->lane + static_cast<int>(delta), width);
  return shuffle(mask, value, source, {"__shfl_down_sync", where});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 blockops::device::cpu::Where where = blockops::device::cpu::Where::here()) {
  using namespace blockops::device::cpu;
  const int source = in_segment(current->lane - static_cast<int>(delta), width);
  return shuffle(mask, value, source, {"__shfl_up_sync", where});
}

inline unsigned __ballot_sync(
    unsigned mask, int yes,
    blockops::device::cpu::Where where = blockops::device::cpu::Where::here()) {
  return blockops::device::cpu::vote(mask, yes, {"__ballot_sync", where});
}
inline int __any_sync(unsigned mask, int yes,
                      blockops::device::cpu::Where where = blockops::device::cpu::Where::here()) {
  return blockops::device::cpu::vote(mask, yes, {"__any_sync", where}) != 0;
}
inline int __all_sync(unsigned mask, int yes,
                      blockops::device::cpu::Where where = blockops::device::cpu::Where::here()) {
  return blockops::device::cpu::vote(mask, yes, {"__all_sync", where}) == mask;
}

template <class T>
T __ldg(const T* address) {
  return *address;
}

// As CUDA's: of two floating numbers the one that is not NaN.
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return fmin(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}

inline unsigned __float_as_uint(float x) { return blockops::device::cpu::bits_as<unsigned>(x); }
inline int __float_as_int(float x) { return blockops::device::cpu::bits_as<int>(x); }
inline float __uint_as_float(unsigned x) { return blockops::device::cpu::bits_as<float>(x); }
inline float __int_as_float(int x) { return blockops::device::cpu::bits_as<float>(x); }
inline long long __double_as_longlong(double x) {
  return blockops::device::cpu::bits_as<long long>(x);
}
inline double __longlong_as_double(long long x) {
  return blockops::device::cpu::bits_as<double>(x);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }

// ---- what core/device.h gives to nvcc ----

namespace blockops::device {

template <class T>
struct SameType {
  using Type = T;
};
template <class T>
using Same = typename SameType<T>::Type;

namespace cpu {

// A stream, and the line that launches on it.
struct Stream {
  Where where;
  Stream(cudaStream_t, const char* file = __builtin_FILE(), int line = __builtin_LINE())
      : where{file, line} {}
};

constexpr size_t kMaxSharedBytes = 227 << 10;

inline bool is_valid(dim3 grid, dim3 block, size_t shared_bytes) {
  const auto within = [](const dim3& shape, unsigned x, unsigned y, unsigned z) {
    return shape.x && shape.y && shape.z && shape.x <= x && shape.y <= y && shape.z <= z;
  };
  return within(grid, 0x7fffffff, 65535, 65535) && within(block, 1024, 1024, 64) &&
         block.x * block.y * block.z <= 1024 && shared_bytes <= kMaxSharedBytes;
}

template <class... Params>
cudaError_t launch(bool cooperative, void (*kernel)(Params...), dim3 grid, dim3 block,
                   size_t shared_bytes, const Where& where, Params... params) {
  if (!is_valid(grid, block, shared_bytes)) return cudaErrorInvalidConfiguration;
  if (cooperative && uint64_t{grid.x} * grid.y * grid.z > static_cast<uint64_t>(chip_blocks)) {
    return cudaErrorCooperativeLaunchTooLarge;
  }
  Launch launch{grid, block, shared_bytes, where, cooperative, [&] { kernel(params...); }};
  run(launch);
  return cudaSuccess;
}

}  // namespace cpu

template <class... Params>
cudaError_t launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
                   cpu::Stream stream, Same<Params>... params) {
  return cpu::launch(false, kernel, grid, block, shared_bytes, stream.where, params...);
}

template <class... Params>
cudaError_t launch_cooperative(void (*kernel)(Params...), dim3 grid, dim3 block,
                               size_t shared_bytes, cpu::Stream stream, Same<Params>... params) {
  return cpu::launch(true, kernel, grid, block, shared_bytes, stream.where, params...);
}

template <class... Params>
cudaError_t resident_blocks(void (*)(Params...), int threads, size_t shared_bytes, int* blocks) {
  if (!cpu::is_valid(dim3(1), dim3(threads), shared_bytes)) return cudaErrorInvalidConfiguration;
  *blocks = cpu::chip_blocks;
  return cudaSuccess;
}

inline void grid_sync(cpu::Where where = cpu::Where::here()) {
  auto& launch = *cpu::launched;
  if (!launch.cooperative) cpu::fail("grid_sync in a launch that is not cooperative");
  const size_t threads = launch.blocks.size() * launch.blocks[0]->threads.size();
  cpu::meet_all(launch.barrier, threads, {"grid_sync", where});
}

namespace cpu {

// The copy may take place at any time between start and wait, so ThreadSanitizer is told of both.
inline void note(const Copy& copy) {
  note_read(copy.from, copy.valid);
  note_write(copy.to, 16);
}

inline void land(Copy& copy) {
  std::memcpy(copy.to, copy.from, copy.valid);
  std::memset(copy.to + copy.valid, 0, 16 - copy.valid);
  copy.landed = true;
}

inline void start_copy(void* to_shared, const void* from, int valid, const Where& where) {
  auto* to = static_cast<unsigned char*>(to_shared);
  Copy copy{to, static_cast<const unsigned char*>(from), valid, current->committed_groups, false};
  {
    Overlooked bookkeeping;
    const auto wrong = [&](const char* what) { fail("copy_async_16 at " + where.text() + what); };
    const unsigned char* shared = current->block->shared;
    if (reinterpret_cast<uintptr_t>(to) % 16) wrong(": the shared end is not aligned to 16 bytes");
    if (reinterpret_cast<uintptr_t>(from) % 16) wrong(": the source is not aligned to 16 bytes");
    if (to < shared || to + 16 > shared + launched->shared_bytes) wrong(": not in shared memory");
    if (valid < 0 || valid > 16) wrong(": wants 0 to 16 valid bytes");
    std::memset(to, 0xff, 16);  // what was there is lost from now on
    if (schedule && launched->random.below(2)) land(copy);
    current->copies.push_back(copy);
  }
  note(copy);
}

inline void commit_copies() { ++current->committed_groups; }

inline void wait_for_copies(int pending) {
  auto& copies = current->copies;
  size_t count = 0;
  while (count < copies.size() && copies[count].group < current->committed_groups - pending) {
    note(copies[count++]);
  }
  Overlooked bookkeeping;
  for (size_t i = 0; i < count; ++i) {
    if (!copies[i].landed) land(copies[i]);
  }
  copies.erase(copies.begin(), copies.begin() + count);
}

}  // namespace cpu

inline void copy_async_16(void* to_shared, const void* from, int valid,
                          cpu::Where where = cpu::Where::here()) {
  cpu::start_copy(to_shared, from, valid, where);
}
inline void copy_async_commit() { cpu::commit_copies(); }
template <int pending>
void copy_async_wait() {
  cpu::wait_for_copies(pending);
}

namespace cpu {

// The rows that a lane gets its elements from: rows[q][e] for element e of matrix q.
struct MatrixLane {
  const unsigned char* row;
  const unsigned char* rows[4][2];
};

// Each lane reads its own elements, after all lanes have come with their rows.
inline void load_matrices(uint32_t (&out)[4], const void* row, bool transposed,
                          const Instruction& instruction) {
  MatrixLane lane{static_cast<const unsigned char*>(row), {}};
  {
    Overlooked bookkeeping;
    const unsigned char* shared = current->block->shared;
    if (reinterpret_cast<uintptr_t>(row) % 16) {
      fail(instruction.text() + ": the row is not aligned to 16 bytes");
    }
    if (lane.row < shared || lane.row + 16 > shared + launched->shared_bytes) {
      fail(instruction.text() + ": the row is not in shared memory");
    }
  }
  meet_lanes<false>(~0u, instruction, lane, [=](MatrixLane* const* lanes) {
    for (int i = 0; i < 32; ++i) {
      for (int q = 0; q < 4; ++q) {
        for (int e = 0; e < 2; ++e) {
          lanes[i]->rows[q][e] = lanes[8 * q + (transposed ? i % 4 * 2 + e : i / 4)]->row;
        }
      }
    }
  });
  const int mine = current->lane;
  for (int q = 0; q < 4; ++q) {
    uint16_t pair[2];
    for (int e = 0; e < 2; ++e) {
      const int column = transposed ? mine / 4 : mine % 4 * 2 + e;
      std::memcpy(&pair[e], lane.rows[q][e] + 2 * column, 2);
    }
    out[q] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
}

struct ProductLane {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

// d (16, 8) += a (16, 8 n) b (8 n, 8), with n elements in a register; read() takes one out.
template <int n, class Read>
void multiply(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
              const Instruction& instruction, const Read& read) {
  ProductLane mine{d, a, b};
  meet_lanes<false>(~0u, instruction, mine, [&](ProductLane* const* lanes) {
    float left[16][8 * n], right[8 * n][8], sums[16][8] = {};
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4, column = lane % 4;
      for (int e = 0; e < n; ++e) {
        for (int i = 0; i < 4; ++i) {
          left[row + i % 2 * 8][n * (column + i / 2 * 4) + e] = read(lanes[lane]->a[i], e);
        }
        for (int i = 0; i < 2; ++i)
          right[n * (column + i * 4) + e][row] = read(lanes[lane]->b[i], e);
      }
    }
    for (int i = 0; i < 16; ++i) {
      for (int k = 0; k < 8 * n; ++k) {
        for (int j = 0; j < 8; ++j) sums[i][j] += left[i][k] * right[k][j];
      }
    }
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < 4; ++i) {
        lanes[lane]->d[i] += sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
      }
    }
  });
}

}  // namespace cpu

inline void load_matrices(uint32_t (&out)[4], const void* row,
                          cpu::Where where = cpu::Where::here()) {
  cpu::load_matrices(out, row, false, {"load_matrices", where});
}
inline void load_matrices_transposed(uint32_t (&out)[4], const void* row,
                                     cpu::Where where = cpu::Where::here()) {
  cpu::load_matrices(out, row, true, {"load_matrices_transposed", where});
}

inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     cpu::Where where = cpu::Where::here()) {
  cpu::multiply<2>(d, a, b, {"mma_bf16", where}, [](uint32_t pair, int e) {
    return cpu::bits_as<float>(e ? pair & 0xffff0000u : pair << 16);
  });
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                    cpu::Where where = cpu::Where::here()) {
  cpu::multiply<2>(d, a, b, {"mma_f16", where}, [](uint32_t pair, int e) {
    return __half2float(__half_raw{static_cast<unsigned short>(pair >> 16 * e)});
  });
}
// The hardware overlooks the bits that TF32 has not.
inline void mma_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                     cpu::Where where = cpu::Where::here()) {
  cpu::multiply<1>(d, a, b, {"mma_tf32", where},
                   [](uint32_t bits, int) { return cpu::bits_as<float>(bits & ~0x1fffu); });
}

inline uint32_t round_to_tf32(float x) {
  if (isnan(x)) return 0x7fffffff;
  return (cpu::bits_as<uint32_t>(x) + 0x1000) & ~0x1fffu;  // ties away from zero
}

}  // namespace blockops::device
