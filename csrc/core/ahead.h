// Memory that is read next, asked for line by line while a product runs (core/product.h): a large
// weight then comes from memory while the piece of it before is multiplied, not between two
// products.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>

namespace blockops::cpu {

class Ahead {
 public:
  // Begins a list of rows of so many bytes; what is left of the last one is dropped.
  void begin(int64_t bytes) {
    bytes_ = bytes;
    count_ = next_ = 0;
    at_ = end_ = nullptr;
  }
  void add(const void* row) {
    if (count_ < kMost) rows_[count_++] = static_cast<const char*>(row);
  }
  // The list is complete, and is asked for in the course of so many multiply-adds.
  void spread(int64_t work) {
    const int64_t lines = count_ * ((bytes_ + kLine - 1) / kLine);
    work_ = std::max(kLeast, work / std::max<int64_t>(1, lines));
  }
  // Asks for the next line, if one is left; returns the multiply-adds until the next call.
  int64_t ask() {
    if (at_ >= end_) {
      if (next_ == count_) return INT64_MAX;
      end_ = rows_[next_] + bytes_;
      at_ = rows_[next_] - reinterpret_cast<uintptr_t>(rows_[next_]) % kLine;
      ++next_;
    }
    __builtin_prefetch(at_, /*write=*/0, /*locality=*/2);
    at_ += kLine;
    return work_;
  }

 private:
  static constexpr int64_t kLine = 64, kMost = 1024;
  static constexpr int64_t kLeast = 768;  // multiply-adds a line: more lines under way at a time
                                          // would keep a product waiting for its own
  std::array<const char*, kMost> rows_;
  const char *at_ = nullptr, *end_ = nullptr;
  int64_t bytes_ = 0, count_ = 0, next_ = 0, work_ = 0;
};

}  // namespace blockops::cpu
