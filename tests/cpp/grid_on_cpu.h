// A grid of CUDA threads on the CPU: one fiber for each thread, run in an order that a number, the
// schedule, decides, from one meeting of threads (barrier, warp collective) to the next.
#pragma once
#include <vector_types.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "fibers.h"

// What a kernel reads of its own place; set before each turn of a thread.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace blockops::device::cpu {

// What a kernel did wrong, and where.
struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// 0 runs threads in their order; every other number is a shuffled order with lagging warps.
inline unsigned schedule =
    std::getenv("BLOCKOPS_SCHEDULE") ? std::atoi(std::getenv("BLOCKOPS_SCHEDULE")) : 0;
// How many blocks the chip holds at once.
inline int chip_blocks = 8;

// A place in the source: as a default argument, the caller's.
struct Where {
  const char* file;
  int line;
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

// What threads meet at: an instruction and its place.
struct Instruction {
  const char* name;
  Where where;
  std::string text() const { return std::string(name) + " at " + where.text(); }
};
inline bool operator==(const Instruction& a, const Instruction& b) {
  const auto same = [](const char* x, const char* y) { return x == y || !std::strcmp(x, y); };
  return a.where.line == b.where.line && same(a.name, b.name) && same(a.where.file, b.where.file);
}

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) {}
  uint32_t below(uint32_t end) {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return static_cast<uint32_t>((state_ >> 32) * end >> 32);
  }

 private:
  uint64_t state_;
};

struct Thread;

// Where all threads of a block or of a grid meet. A thread may reach the next meeting while others
// still leave this one, so two addresses take turns in ordering them.
struct Barrier {
  std::vector<Thread*> waiting;
  unsigned meetings = 0;
  char order[2];
};

// Where the lanes of one mask meet.
struct Collective {
  unsigned mask = 0, arrived = 0, meetings = 0;
  Instruction instruction{};
  void* data[32];
  char order[2];
};

struct Warp {
  unsigned live = 0, ready = 0, meeting = 0;  // sets of lanes
  Thread* lanes[32];
  Collective collectives[32];  // by the lowest lane of the mask: masks in use do not overlap
};

// A copy from global to shared memory that is under way.
struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int valid;
  int64_t group;
  bool landed;
};

struct Block;

struct Thread {
  Fiber* fiber = nullptr;
  uint3 index{};
  Block* block = nullptr;
  Warp* warp = nullptr;
  int lane = 0;
  Instruction instruction{};  // that it waits at
  std::vector<Copy> copies;
  int64_t committed_groups = 0;
  bool ended = false;
};

struct Block {
  uint3 index{};
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  size_t live = 0;
  Barrier barrier;
  unsigned char* shared = nullptr;
};

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  Where where;
  bool cooperative;
  std::function<void()> kernel;
  Random random{schedule};
  std::vector<std::unique_ptr<Block>> blocks{};  // on the chip
  Barrier barrier{};
  std::string error{};
  char started = 0, done = 0;  // addresses for release and acquire
};

inline Fiber scheduler;

inline void work();
inline Fibers fibers(work);
inline Thread* current = nullptr;
inline Launch* launched = nullptr;

inline std::string text(const uint3& at) {
  return "(" + std::to_string(at.x) + ", " + std::to_string(at.y) + ", " + std::to_string(at.z) +
         ")";
}

// What a thread leaves its kernel with when its launch has gone wrong.
struct Stop {};

// Ends the launch with an error in the current thread.
[[noreturn]] inline void fail(const std::string& what) {
  launched->error =
      "thread " + text(current->index) + " of block " + text(current->block->index) + ": " + what;
  throw Stop();
}

// ---- meetings ----

inline void wake(Thread& thread) { thread.warp->ready |= 1u << thread.lane; }

// Until another thread wakes this one.
inline void sleep(const Instruction& instruction) {
  current->instruction = instruction;
  current->warp->ready &= ~(1u << current->lane);
  switch_fibers(*current->fiber, scheduler);
  if (!launched->error.empty()) throw Stop();
}

inline void open(Barrier& barrier) {
  for (Thread* thread : barrier.waiting) wake(*thread);
  barrier.waiting.clear();
  ++barrier.meetings;
}

inline void meet_all(Barrier& barrier, size_t expected, const Instruction& instruction) {
  Overlooked bookkeeping;
  if (!barrier.waiting.empty() && !(barrier.waiting[0]->instruction == instruction)) {
    fail("reached " + instruction.text() + " while others wait at " +
         barrier.waiting[0]->instruction.text());
  }
  void* order = &barrier.order[barrier.meetings % 2];
  release(order);
  if (barrier.waiting.size() + 1 == expected) {
    open(barrier);
  } else {
    barrier.waiting.push_back(current);
    sleep(instruction);
  }
  acquire(order);
}

inline std::string hexadecimal(unsigned mask) {
  char text[11];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

// The collective of this mask, once it is sure that the current lane may join it.
inline Collective& join(unsigned mask, const Instruction& instruction) {
  Warp& warp = *current->warp;
  const auto wrong = [&](const std::string& what) {
    fail(instruction.text() + " with mask " + hexadecimal(mask) + ": " + what);
  };
  if (!(mask >> current->lane & 1)) wrong("the mask lacks the calling lane");
  if (mask & ~warp.live) wrong("the mask names lanes that have ended or never were");
  Collective& collective = warp.collectives[__builtin_ctz(mask)];
  if (collective.arrived == 0) {
    if (mask & warp.meeting) wrong("the mask names a lane that waits with another mask");
    collective.mask = mask;
    collective.instruction = instruction;
  } else if (collective.mask != mask) {
    wrong("other lanes came with mask " + hexadecimal(collective.mask));
  } else if (!(collective.instruction == instruction)) {
    wrong("other lanes wait at " + collective.instruction.text());
  }
  return collective;
}

// Brings the lanes of `mask` together; the last one calls finish(data of each lane).
template <bool orders, class Data, class Finish>
void meet_lanes(unsigned mask, const Instruction& instruction, Data& data, const Finish& finish) {
  Overlooked bookkeeping;
  Collective& collective = join(mask, instruction);
  Warp& warp = *current->warp;
  const unsigned self = 1u << current->lane;
  void* order = &collective.order[collective.meetings % 2];
  if (orders) release(order);
  collective.data[current->lane] = &data;
  collective.arrived |= self;
  warp.meeting |= self;
  if (collective.arrived == mask) {
    finish(reinterpret_cast<Data* const*>(collective.data));
    ++collective.meetings;
    collective.arrived = 0;
    warp.meeting &= ~mask;
    warp.ready |= mask;
  } else {
    sleep(instruction);
  }
  if (orders) acquire(order);
}

// ---- threads and blocks ----

inline void end_thread() {
  if (!current->copies.empty()) fail("ends before its asynchronous copies are waited for");
  current->warp->live &= ~(1u << current->lane);
  current->warp->ready &= ~(1u << current->lane);
  Block& block = *current->block;
  --block.live;
  if (block.live > 0 && block.barrier.waiting.size() == block.live) open(block.barrier);
}

inline void run_kernel() {
  acquire(&launched->started);
  try {
    if (launched->error.empty()) launched->kernel();
    Overlooked bookkeeping;
    if (launched->error.empty()) end_thread();
  } catch (const Stop&) {
  }
  release(&launched->done);
}

// What each fiber does, for one thread after another.
inline void work() {
  arrive_on_new_stack(scheduler);
  while (true) {
    run_kernel();
    Overlooked bookkeeping;
    current->ended = true;
    switch_fibers(*current->fiber, scheduler);
  }
}

// Bytes before and after a block's shared memory that must stay as they are. AddressSanitizer has
// its own, which touch the last byte.
constexpr size_t kGuardBytes = kAddressSanitizer ? 0 : 4096;

// All bytes set, which is NaN in every floating type.
inline unsigned char* allocate_shared(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes + 2 * kGuardBytes)) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes + 2 * kGuardBytes);
  return static_cast<unsigned char*>(memory) + kGuardBytes;
}

inline void free_shared(unsigned char* shared, size_t bytes) {
  for (size_t i = 0; i < kGuardBytes && launched->error.empty(); ++i) {
    if (shared[i + bytes] != 0xff) launched->error = "a write after the end of shared memory";
    if (shared[-1 - static_cast<ptrdiff_t>(i)] != 0xff) {
      launched->error = "a write before the start of shared memory";
    }
  }
  std::free(shared - kGuardBytes);
}

// Fibers that rest under ThreadSanitizer before they work again, or a block's threads if those are
// more: blocks that follow one another share no fiber, whose order would hide their races.
constexpr size_t kResting = 512;

inline void start_block(uint3 index) {
  auto block = std::make_unique<Block>();
  const dim3& shape = launched->block;
  block->index = index;
  const size_t threads = shape.x * shape.y * shape.z;
  block->live = threads;
  block->threads.resize(threads);
  block->warps.resize((threads + 31) / 32);
  block->shared = allocate_shared(launched->shared_bytes);
  for (unsigned i = 0; i < threads; ++i) {
    Thread& thread = block->threads[i];
    thread.index = {i % shape.x, i / shape.x % shape.y, i / shape.x / shape.y};
    thread.block = block.get();
    thread.warp = &block->warps[i / 32];
    thread.lane = i % 32;
    thread.warp->lanes[thread.lane] = &thread;
    thread.warp->live |= 1u << thread.lane;
    thread.warp->ready = thread.warp->live;
    thread.fiber = fibers.take(kThreadSanitizer ? std::max<size_t>(kResting, threads) : 0);
  }
  launched->blocks.push_back(std::move(block));
}

inline void remove_blocks() {
  for (auto& block : launched->blocks) {
    for (Thread& thread : block->threads) fibers.give_back(thread.fiber);
    free_shared(block->shared, launched->shared_bytes);
  }
  launched->blocks.clear();
}

// ---- the scheduler ----

// Says where the threads of the first block that cannot go on are waiting.
inline std::string deadlock() {
  for (const auto& block : launched->blocks) {
    if (block->live == 0) continue;
    std::vector<std::pair<Instruction, int>> places;
    for (const Thread& thread : block->threads) {
      if (!(thread.warp->live >> thread.lane & 1)) continue;
      size_t i = 0;
      while (i < places.size() && !(places[i].first == thread.instruction)) ++i;
      if (i == places.size()) places.push_back({thread.instruction, 0});
      ++places[i].second;
    }
    std::string result = "deadlock: of " + std::to_string(block->threads.size()) +
                         " threads of block " + text(block->index);
    for (const auto& [instruction, count] : places) {
      result += ", " + std::to_string(count) + " wait at " + instruction.text();
    }
    return result + ", the others have ended";
  }
  return "deadlock";
}

inline void run_thread(Thread& thread) {
  current = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  switch_fibers(scheduler, *thread.fiber);
}

// Gives each ready lane of a warp a turn.
inline void run_warp(Warp& warp) {
  const int flip = schedule ? launched->random.below(32) : 0;
  for (int i = 0; i < 32 && launched->error.empty(); ++i) {
    if (warp.ready >> (i ^ flip) & 1) run_thread(*warp.lanes[i ^ flip]);
  }
}

// Lets the threads of a launch that has gone wrong leave their kernel.
inline void stop_threads() {
  for (auto& block : launched->blocks) {
    for (Thread& thread : block->threads) {
      if (!thread.ended) run_thread(thread);
    }
  }
}

// Runs the blocks on the chip to their end. The first warp that can go on always does, so that the
// last ones lag behind as far as barriers let them; a shuffled schedule changes the order at times.
inline void run_blocks() {
  std::vector<Warp*> warps;
  for (auto& block : launched->blocks) {
    for (Warp& warp : block->warps) warps.push_back(&warp);
  }
  Random& random = launched->random;
  const auto move = [&](size_t i) { std::swap(warps[i], warps[random.below(warps.size())]); };
  for (size_t i = 0; schedule && i < warps.size(); ++i) move(i);
  while (!warps.empty() && launched->error.empty()) {
    size_t i = 0;
    while (i < warps.size() && !warps[i]->ready) ++i;
    if (i == warps.size()) {
      launched->error = deadlock();
      return;
    }
    run_warp(*warps[i]);
    if (!warps[i]->live) {
      warps.erase(warps.begin() + i);
    } else if (schedule && random.below(8) == 0) {
      move(i);
    }
  }
}

// A step that visits every number below `count` once, in another order than 0, 1, 2.
inline uint64_t stride_through(uint64_t count) {
  uint64_t stride = count * 5 / 8 + launched->random.below(64);
  const auto common = [](uint64_t a, uint64_t b) {
    while (b) a %= b, std::swap(a, b);
    return a;
  };
  while (common(stride, count) != 1) ++stride;
  return stride;
}

inline void run_grid() {
  const dim3& grid = launched->grid;
  const uint64_t count = uint64_t{grid.x} * grid.y * grid.z;
  const uint64_t stride = schedule ? stride_through(count) : 1;
  uint64_t block = schedule ? launched->random.below(1u << 31) % count : 0;
  for (uint64_t i = 0; i < count && launched->error.empty(); ++i) {
    start_block({static_cast<unsigned>(block % grid.x),
                 static_cast<unsigned>(block / grid.x % grid.y),
                 static_cast<unsigned>(block / grid.x / grid.y)});
    block = (block + stride) % count;
    if (launched->cooperative && i + 1 < count) continue;
    run_blocks();
    if (!launched->error.empty()) stop_threads();
    remove_blocks();
  }
}

// Runs a whole launch; throws what went wrong in it.
inline void run(Launch& launch) {
  Overlooked bookkeeping;
  if (launched) throw std::logic_error("a kernel launches a kernel");
  launched = &launch;
  blockDim = launch.block;
  gridDim = launch.grid;
  take_current_fiber(scheduler);
  release(&launch.started);
  run_grid();
  acquire(&launch.done);
  launched = nullptr;
  if (launch.error.empty()) return;
  const auto size = [](const dim3& shape) { return text(uint3{shape.x, shape.y, shape.z}); };
  throw KernelError(launch.error + " [launch at " + launch.where.text() + ", grid " +
                    size(launch.grid) + ", block " + size(launch.block) + ", " +
                    std::to_string(launch.shared_bytes) + " bytes of shared memory, schedule " +
                    std::to_string(schedule) + "]");
}

}  // namespace blockops::device::cpu
