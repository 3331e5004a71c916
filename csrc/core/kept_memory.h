// Memory for results and scratch on the CPU. That of large ones, when freed, is kept for the next
// of about its size, for a training step asks for the same sizes again and again, and memory fresh
// from the system costs more than a pass over it: a page fault every few kilobytes, to fill them
// with zeros. Of more than the limit, what was kept longest goes back to the system.
#pragma once
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "core/huge_pages.h"

namespace blockops::cpu {

class KeptMemory final : public c10::Allocator {
 public:
  static KeptMemory& get() {
    static auto* const memory = new KeptMemory;  // never deleted: tensors may outlive any end
    return *memory;
  }

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < kLeast) return small(bytes);
    auto block = std::make_unique<Block>();
    if (!take(bytes, *block)) *block = {fresh(bytes), bytes};
    report(*block, block->size);
    void* const data = block->data;
    return {data, block.release(), &free, c10::Device(c10::kCPU)};
  }

  void copy_data(void* to, const void* from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }

  void set_limit(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    limit_ = bytes;
    drop_all_but(bytes);
  }
  std::pair<size_t, size_t> kept_and_limit() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {kept_, limit_};
  }

 private:
  static constexpr size_t kLeast = 1 << 20;  // bytes; less is malloc's, which keeps it too

  struct Block {
    void* data;
    size_t size;
  };

  // malloc takes a third of the time of its aligned form, which PyTorch's allocator calls: a
  // block's head lies before its data, and the data where the next line begins.
  static c10::DataPtr small(size_t bytes) {
    void* const raw = std::malloc(sizeof(Block) + c10::gAlignment - 1 + bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, raw, "blockops: no memory for ", bytes, " bytes");
    void* data = static_cast<Block*>(raw) + 1;
    size_t space = c10::gAlignment - 1 + bytes;
    std::align(c10::gAlignment, bytes, data, space);
    auto* const block = new (raw) Block{data, bytes};
    report(*block, bytes);
    return {data, block, &free_small, c10::Device(c10::kCPU)};
  }

  static void free_small(void* context) {
    auto* const block = static_cast<Block*>(context);
    report(*block, -static_cast<int64_t>(block->size));
    std::free(block);
  }

  // A kept block of at least `bytes`, and not much more, the last that was freed.
  bool take(size_t bytes, Block& block) {
    // Never waits: whoever holds it may be a thread that is not there in this, a forked, process.
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock) return false;
    const auto fits = [&](const Block& b) {
      return b.size >= bytes && b.size - bytes <= bytes / 8;
    };
    const auto found = std::find_if(blocks_.rbegin(), blocks_.rend(), fits);
    if (found == blocks_.rend()) return false;
    block = *found;
    kept_ -= block.size;
    blocks_.erase(std::next(found).base());
    return true;
  }

  bool keep(const Block& block) {
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock || block.size > limit_) return false;
    drop_all_but(limit_ - block.size);
    blocks_.push_back(block);
    kept_ += block.size;
    return true;
  }

  void drop_all_but(size_t bytes) {  // with the lock held
    auto first = blocks_.begin();
    for (; kept_ > bytes; ++first) {
      c10::free_cpu(first->data);
      kept_ -= first->size;
    }
    blocks_.erase(blocks_.begin(), first);
  }

  void* fresh(size_t bytes) {
    void* data;
    try {
      data = c10::alloc_cpu(bytes);
    } catch (const c10::Error&) {  // what is kept may be what is missing
      const std::lock_guard<std::mutex> lock(mutex_);
      drop_all_but(0);
      data = c10::alloc_cpu(bytes);
    }
    advise_huge_pages(data, bytes);
    return data;
  }

  static void free(void* context) {
    auto* const block = static_cast<Block*>(context);
    report(*block, -static_cast<int64_t>(block->size));
    if (!get().keep(*block)) c10::free_cpu(block->data);
    delete block;
  }

  // To PyTorch's profiler: what is kept counts as freed.
  static void report(const Block& block, int64_t bytes) {
    if (c10::memoryProfilingEnabled())
      c10::reportMemoryUsageToProfiler(block.data, bytes, 0, 0, c10::Device(c10::kCPU));
  }

  std::mutex mutex_;
  size_t limit_ = 1 << 30;
  std::vector<Block> blocks_;  // kept, oldest first
  size_t kept_ = 0;            // their bytes
};

}  // namespace blockops::cpu
