// What the CPU kernels share: tensors as plain pointers, scratch memory, parallel parts with fixed
// bits.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <vector>

#include "core/kept_memory.h"

namespace blockops::cpu {

// Contiguous, of the dtype that is computed in: the tensor itself where it is that already.
inline at::Tensor operand(const at::Tensor& tensor, at::ScalarType dtype) {
  if (tensor.scalar_type() == dtype && tensor.is_contiguous()) return tensor;  // costs no dispatch
  return tensor.to(dtype).contiguous();
}
inline at::Tensor operand(const std::optional<at::Tensor>& tensor, at::ScalarType dtype) {
  return tensor ? operand(*tensor, dtype) : at::Tensor();
}

template <class T>
const T* pointer(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
}

// Memory for a result, of any content; costs no dispatch.
inline at::Tensor result(at::IntArrayRef sizes, at::ScalarType dtype) {
  return at::Tensor(at::detail::empty_generic(
      sizes, &KeptMemory::get(), c10::DispatchKeySet(c10::DispatchKey::CPU), dtype, std::nullopt));
}

// A result computed in a wider dtype, in its own.
inline at::Tensor rounded(at::Tensor result, at::ScalarType dtype) {
  return result.scalar_type() == dtype ? result : result.to(dtype);
}

// B: the product of x's leading sizes.
inline int64_t rows_of(const at::Tensor& x) {
  int64_t rows = 1;
  for (int64_t axis = 0; axis + 1 < x.dim(); ++axis) rows *= x.size(axis);
  return rows;
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
class Buffer {  // scratch: aligned, of any content
 public:
  explicit Buffer(int64_t size) : data_(KeptMemory::get().allocate(size * sizeof(T))) {}
  T* get() const { return static_cast<T*>(data_.get()); }

 private:
  c10::DataPtr data_;
};

// Runs body(part) for every part in [0, count), on `most` threads at most. Each thread takes the
// parts of a range of its own in order, neighbours in memory, and then what others have not begun:
// none waits long for one that has more to do, or that the system holds up.
template <class Body>
void for_each_part(int64_t count, int64_t most, const Body& body) {
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int64_t threads = std::min<int64_t>({count, most, at::get_num_threads()});
  std::vector<Range> ranges(threads);
  for (int64_t i = 0; i < threads; ++i) {
    ranges[i].next = count * i / threads;
    ranges[i].end = count * (i + 1) / threads;
  }
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t) {
    for (int64_t i = 0; i < threads; ++i) {
      Range& range = ranges[(first + i) % threads];
      for (int64_t part; (part = range.next.fetch_add(1, std::memory_order_relaxed)) < range.end;)
        body(part);
    }
  });
}

template <class Body>
void for_each_part(int64_t count, const Body& body) {
  for_each_part(count, INT64_MAX, body);
}

}  // namespace blockops::cpu
