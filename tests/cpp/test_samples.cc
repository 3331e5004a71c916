// Tests of the kernels' tests: sample kernels that are right, the same ones with a bug, and the
// limits of launches. tests/test_kernels_on_cpu.py says what must catch each planted bug.
#include "check.h"
#include "sample_kernels.cuh"

namespace blockops::samples {
namespace {

// ---- the kernels, launched and compared ----

template <class T, Bug bug = kNone>
void test_product(int rows, int columns, int depth) {
  const auto a = check::integers<T>(int64_t{rows} * depth, 1);
  const auto b = check::integers<T>(int64_t{columns} * depth, 2);
  check::Buffer<float> y(int64_t{rows} * columns);
  std::vector<double> reference(y.size());
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      for (int k = 0; k < depth; ++k) {
        reference[i * columns + j] += double{widen(a[i * depth + k])} * widen(b[j * depth + k]);
      }
    }
  }
  const dim3 grid(ceil_div(columns, kTile), ceil_div(rows, kTile));
  check::launched(launch(product_kernel<T, bug>, grid, kThreads, Fragments<T>::bytes, nullptr,
                         y.data(), a.data(), b.data(), rows, columns, depth));
  check::equal("y", y, reference);
}

template <class T>
void test_products() {
  test_product<T>(64, 64, 64);
  test_product<T>(70, 33, 80);
  if (!check::quick) test_product<T>(100, 130, 8);
}

template <class T, Bug bug = kNone>
void test_row_sums(int rows, int columns) {
  const auto x = check::normal<T>(int64_t{rows} * columns, 1);
  check::Buffer<Sum<T>> y(bug == kSharedOutput ? 1 : rows);
  std::vector<double> reference(y.size()), scale(y.size());
  for (int64_t i = 0; i < y.size(); ++i) {
    for (int j = 0; j < columns; ++j) {
      reference[i] += widen(x[i * columns + j]);
      scale[i] += std::abs(widen(x[i * columns + j]));
    }
  }
  check::launched(launch(row_sums_kernel<T, bug>, rows, kThreads, kThreads / 32 * sizeof(Sum<T>),
                         nullptr, y.data(), x.data(), columns));
  if (bug != kSharedOutput)
    check::close("y", y, reference, scale, sizeof(Sum<T>) == 8 ? 1e-14 : 1e-6);
}

template <Bug bug = kNone>
void test_subtract_sum(int64_t size) {
  int blocks = 0;
  check::launched(
      resident_blocks(subtract_sum_kernel<bug>, kThreads, kThreads * sizeof(float), &blocks));
  const auto x = check::integers<float>(size, 1);
  check::Buffer<float> y(size), partial(blocks);
  double sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += x[i];
  std::vector<double> reference(size);
  for (int64_t i = 0; i < size; ++i) reference[i] = x[i] - sum;
  check::launched(launch_cooperative(subtract_sum_kernel<bug>, blocks, kThreads,
                                     kThreads * sizeof(float), nullptr, y.data(), x.data(),
                                     partial.data(), size));
  check::equal("y", y, reference);
}

template <Bug bug = kNone>
void test_reverse(int size, int64_t offset = 0) {
  const auto x = check::normal<float>(size, 1, offset);
  check::Buffer<float> y(size, offset);
  std::vector<double> reference(size);
  for (int i = 0; i < size; ++i) {
    const bool whole = i / 4 * 4 + 4 <= size;
    reference[i] = x[whole ? i / 4 * 4 + 3 - i % 4 : i];
  }
  check::launched(launch(reverse_kernel<bug>, ceil_div(size, 4 * kThreads), kThreads, 0, nullptr,
                         y.data(), x.data(), size));
  check::equal("y", y, reference);
}

template <Bug bug = kNone>
void test_reverse_lanes() {
  const auto x = check::normal<float>(kThreads, 1);
  check::Buffer<float> y(kThreads);
  std::vector<double> reference(kThreads);
  for (int i = 0; i < kThreads; ++i) reference[i] = x[i ^ 31];
  check::launched(launch(reverse_lanes_kernel<bug>, 1, kThreads, kThreads * sizeof(float), nullptr,
                         y.data(), x.data()));
  check::equal("y", y, reference);
}

}  // namespace

BLOCKOPS_TEST(product_bfloat16) { test_products<BFloat16>(); }
BLOCKOPS_TEST(product_float16) { test_products<Half>(); }
BLOCKOPS_TEST(product_tf32) { test_products<float>(); }
BLOCKOPS_TEST(row_sums) {
  test_row_sums<float>(5, 300);
  test_row_sums<double>(5, 300);
  test_row_sums<BFloat16>(5, 1);
}
BLOCKOPS_TEST(subtract_sum) { test_subtract_sum(3000); }
BLOCKOPS_TEST(reverse) {
  for (const int size : {1, 4, 1030}) test_reverse(size);
}
BLOCKOPS_TEST(reverse_lanes) { test_reverse_lanes(); }

// ---- instructions ----

// y[way][lane] of the shuffles of each lane's number, as T, in segments of `width` lanes.
template <class T>
__global__ void shuffle_kernel(T* y, int width) {
  const int lane = threadIdx.x;
  const T value = narrow<T>(static_cast<Sum<T>>(lane));
  y[lane] = __shfl_sync(~0u, value, 3, width);
  y[32 + lane] = __shfl_xor_sync(~0u, value, 5, width);
  y[64 + lane] = __shfl_down_sync(~0u, value, 6, width);
  y[96 + lane] = __shfl_up_sync(~0u, value, 7, width);
}

template <class T>
void test_shuffles() {
  for (const int width : {2, 4, 8, 16, 32}) {
    check::Buffer<T> y(4 * 32);
    check::launched(launch(shuffle_kernel<T>, 1, 32, 0, nullptr, y.data(), width));
    std::vector<double> reference(y.size());
    for (int lane = 0; lane < 32; ++lane) {
      const int place = lane % width, first = lane - place;
      reference[lane] = first + 3 % width;
      reference[32 + lane] = (place ^ 5) < width ? first + (place ^ 5) : lane;
      reference[64 + lane] = place + 6 < width ? lane + 6 : lane;
      reference[96 + lane] = place >= 7 ? lane - 7 : lane;
    }
    check::equal("shuffles", y, reference);
  }
}

BLOCKOPS_TEST(shuffles) {
  test_shuffles<float>();
  test_shuffles<double>();
  test_shuffles<BFloat16>();
}

// Even lanes and odd lanes apart.
__global__ void vote_kernel(unsigned* y) {
  const unsigned mask = threadIdx.x % 2 ? 0xaaaaaaaau : 0x55555555u;
  y[threadIdx.x] = __ballot_sync(mask, threadIdx.x < 7);
  y[32 + threadIdx.x] = __any_sync(mask, threadIdx.x == 2) + 2 * __all_sync(mask, threadIdx.x % 2);
}

BLOCKOPS_TEST(votes) {
  check::Buffer<unsigned> y(64);
  check::launched(launch(vote_kernel, 1, 32, 0, nullptr, y.data()));
  for (int lane = 0; lane < 32; ++lane) {
    check::that(y[lane] == (lane % 2 ? 0x2a : 0x55), "a wrong ballot");
    check::that(y[32 + lane] == (lane % 2 ? 2 : 1), "a wrong vote");
  }
}

// y[lane][q] = what load_matrices_transposed gives of four matrices of the numbers 0, 1, 2, ...
__global__ void transpose_kernel(uint32_t (*y)[4]) {
  BLOCKOPS_SHARED(shared);
  auto* elements = reinterpret_cast<uint16_t*>(shared);
  for (int i = threadIdx.x; i < 256; i += 32) elements[i] = i;
  __syncwarp();
  load_matrices_transposed(y[threadIdx.x], elements + 8 * threadIdx.x);
}

BLOCKOPS_TEST(transposed_matrices) {
  uint32_t y[32][4];
  check::launched(launch(transpose_kernel, 1, 32, 512, nullptr, y));
  for (uint32_t lane = 0; lane < 32; ++lane) {
    for (uint32_t q = 0; q < 4; ++q) {
      const uint32_t first = 64 * q + lane % 4 * 2 * 8 + lane / 4, second = first + 8;
      check::that(y[lane][q] == (first | second << 16), "a wrong element");
    }
  }
}

BLOCKOPS_TEST(rounding_to_tf32) {
  const auto rounded = [](float x) { return __uint_as_float(round_to_tf32(x)); };
  const float step = 1.0f / 1024, infinity = INFINITY;
  check::that(rounded(1 + step / 2) == 1 + step && rounded(-1 - step / 2) == -1 - step,
              "ties must go away from zero");
  check::that(rounded(1 + step * 0.499f) == 1 && rounded(1 + step * 0.75f) == 1 + step,
              "must round to the nearest");
  check::that(rounded(infinity) == infinity && rounded(-infinity) == -infinity, "must keep Inf");
  check::that(std::isnan(rounded(__uint_as_float(0x7f800001))), "must keep NaN");
}

BLOCKOPS_TEST(minimum_and_maximum) {
  check::that(max(NAN, 1.0f) == 1 && min(1.0, double{NAN}) == 1, "must drop NaN as CUDA does");
  check::that(max(-1, 1u) == 0xffffffffu && min(int64_t{-3}, 2) == -3, "a wrong common type");
}

// ---- limits and reports ----

__global__ void empty_kernel() {}
__global__ void copy_kernel(const float* from, int to, int valid, bool wait) {
  BLOCKOPS_SHARED(shared);
  copy_async_16(shared + to, from, valid);
  if (wait) {
    copy_async_commit();
    copy_async_wait<0>();
  }
}
__global__ void load_kernel(int step) {
  BLOCKOPS_SHARED(shared);
  uint32_t out[4];
  load_matrices(out, shared + step * static_cast<int>(threadIdx.x));
}
__global__ void grid_sync_kernel() { grid_sync(); }
__global__ void two_barriers_kernel() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void two_votes_kernel() {
  if (threadIdx.x < 16) {
    __any_sync(~0u, 0);
  } else {
    __any_sync(~0u, 0);
  }
}
__global__ void ended_lane_kernel() {
  if (threadIdx.x > 0) __syncwarp();
}

BLOCKOPS_TEST(limits_of_a_launch) {
  const auto error = [](dim3 grid, dim3 block, size_t shared_bytes) {
    return launch(empty_kernel, grid, block, shared_bytes, nullptr);
  };
  check::launched(error(1, dim3(16, 1, 64), 232448));
  check::launched(error(dim3(1, 1, 100), 1, 0));
  for (const dim3 grid : {dim3(0), dim3(1, 0), dim3(1u << 31), dim3(1, 65536), dim3(1, 1, 65536)}) {
    check::that(error(grid, 32, 0) == cudaErrorInvalidConfiguration, "took a wrong grid");
  }
  for (const dim3 block : {dim3(0), dim3(1025), dim3(32, 33), dim3(1, 1, 65)}) {
    check::that(error(1, block, 0) == cudaErrorInvalidConfiguration, "took a wrong block");
  }
  check::that(error(1, 32, 232449) == cudaErrorInvalidConfiguration, "took too much memory");
  int blocks = 0;
  check::launched(resident_blocks(empty_kernel, 32, 0, &blocks));
  check::launched(launch_cooperative(empty_kernel, blocks, 32, 0, nullptr));
  check::that(launch_cooperative(empty_kernel, blocks + 1, 32, 0, nullptr) ==
                  cudaErrorCooperativeLaunchTooLarge,
              "took a grid larger than the chip");
}

BLOCKOPS_TEST(reports) {
  const check::Buffer<float> x(8);
  const auto copy = [&](const float* from, int to, int valid, bool wait) {
    launch(copy_kernel, 1, 1, 32, nullptr, from, to, valid, wait);
  };
  copy(x.data(), 16, 16, true);
  check::fails("ends before its asynchronous copies", [&] { copy(x.data(), 0, 16, false); });
  check::fails("source is not aligned", [&] { copy(x.data() + 1, 0, 16, true); });
  check::fails("shared end is not aligned", [&] { copy(x.data(), 4, 16, true); });
  check::fails("not in shared memory", [&] { copy(x.data(), 32, 16, true); });
  check::fails("0 to 16 valid bytes", [&] { copy(x.data(), 0, 17, true); });
  check::fails("row is not aligned", [] { launch(load_kernel, 1, 32, 512, nullptr, 15); });
  check::fails("row is not in shared", [] { launch(load_kernel, 1, 32, 511, nullptr, 16); });
  check::fails("not cooperative", [] { launch(grid_sync_kernel, 1, 32, 0, nullptr); });
  check::fails("while others wait", [] { launch(two_barriers_kernel, 1, 64, 0, nullptr); });
  check::fails("other lanes wait at", [] { launch(two_votes_kernel, 1, 32, 0, nullptr); });
  check::fails("__syncwarp at", [] { launch(ended_lane_kernel, 1, 32, 0, nullptr); });
  check::fails("lanes that have ended", [] { launch(two_votes_kernel, 1, 31, 0, nullptr); });
}

// ---- planted bugs ----

BLOCKOPS_PLANTED(product_without_barrier) { test_product<BFloat16, kNoBarrier>(64, 64, 96); }
BLOCKOPS_PLANTED(product_without_barrier_before_reuse) {
  test_product<BFloat16, kNoBarrierBeforeReuse>(64, 64, 128);
}
BLOCKOPS_PLANTED(product_without_wait) { test_product<BFloat16, kNoWait>(64, 64, 96); }
BLOCKOPS_PLANTED(product_with_swapped_registers) {
  test_product<Half, kSwappedRegisters>(64, 64, 32);
}
BLOCKOPS_PLANTED(product_with_wrong_tail) { test_product<float, kWrongTail>(64, 64, 36); }
BLOCKOPS_PLANTED(product_with_store_beyond) { test_product<BFloat16, kStoreBeyond>(63, 64, 32); }
BLOCKOPS_PLANTED(product_with_misaligned_copy) { test_product<float, kMisalignedCopy>(64, 64, 32); }
BLOCKOPS_PLANTED(row_sums_without_barrier) { test_row_sums<float, kNoBarrier>(5, 300); }
BLOCKOPS_PLANTED(row_sums_with_wrong_mask) { test_row_sums<float, kWrongMask>(5, 300); }
BLOCKOPS_PLANTED(row_sums_with_divergent_barrier) {
  test_row_sums<float, kDivergentBarrier>(5, 300);
}
BLOCKOPS_PLANTED(row_sums_beyond_shared_memory) { test_row_sums<float, kSharedBeyond>(5, 300); }
BLOCKOPS_PLANTED(row_sums_into_one_place) { test_row_sums<float, kSharedOutput>(5, 300); }
BLOCKOPS_PLANTED(subtract_sum_without_grid_sync) { test_subtract_sum<kNoGridSync>(3000); }
BLOCKOPS_PLANTED(subtract_sum_with_missing_block) { test_subtract_sum<kDivergentBarrier>(3000); }
BLOCKOPS_PLANTED(reverse_with_wrong_tail) { test_reverse<kWrongTail>(1030); }
BLOCKOPS_PLANTED(reverse_with_store_beyond) { test_reverse<kStoreBeyond>(1030); }
BLOCKOPS_PLANTED(reverse_misaligned) { test_reverse(64, 1); }
BLOCKOPS_PLANTED(reverse_lanes_without_syncwarp) { test_reverse_lanes<kNoSyncwarp>(); }

}  // namespace blockops::samples
