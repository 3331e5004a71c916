// What the glue and the CUDA kernels of center know of each other: the arguments, how the work is
// dealt out to blocks, and the functions that plan and launch, which center.cu instantiates for
// every dtype.
#pragma once
#include "core/numbers.h"

namespace blockops::device::center {

// y = x - mean, of contiguous (O, R, K, S) without a size 0; the mean runs over R and S.
template <class T>
struct Center {
  const T* x;
  T* y;
  int64_t O, R, K, S;
};

struct Chip {
  int processors;        // how many blocks of the largest kind run at once
  int64_t shared_bytes;  // that such a block can have: at least 96 for each of its threads
  int threads = 1024;    // that it has: a power of two from 32 on
};

enum class Schedule { kRows, kLines, kColumns };  // plan_center says which is for what

// How x is cut for kLines and kColumns. A line is what has sums of its own: the elements under one
// mean, or a strip of neighbouring columns. Its R rows are seen as vectors, row after row; each of
// `members` blocks has a share of them, and `groups` lines are under way at once.
struct Cut {
  int shift;  // elements of x before the first vector
  int64_t R, S;
  int64_t lines;
  int64_t across;   // of the lines: how many lie side by side
  int64_t pitch;    // elements from one of these to the next: S, or the columns of a strip
  int64_t stride;   // elements from one row to the next: K S
  int64_t per_row;  // vectors; where R = 1 a line's ends may make it one less
  int lanes;        // per_row of strips, a power of two that the last strip may fall short of; or 1
  int members;
  int64_t groups;
  int64_t share;  // vectors
  int held;       // how many vectors of a thread stay in shared memory
  int stages;     // 2 where one share is fetched while another is worked on
  // From one vector of a thread to its next the place in the row changes by column_step, and the
  // offset by offset_step and, where that leads into another row, by turn.
  int64_t column_step, offset_step, turn;
};

struct Plan {
  Schedule schedule;
  bool wide;        // vectors of 16 bytes; else of one element
  int threads = 0;  // of a block
  int team = 0;     // of these: for a row, with kRows
  int64_t blocks = 0;
  int64_t shared_bytes = 0;
  int64_t workspace_bytes = 0;  // for partial sums
  Cut cut{};
};

template <class T>
Plan plan_center(const Center<T>& given, const Chip& chip);

// partial: plan.workspace_bytes.
template <class T>
cudaError_t launch_center(const Center<T>& given, const Plan& plan, double* partial,
                          cudaStream_t stream);

}  // namespace blockops::device::center
