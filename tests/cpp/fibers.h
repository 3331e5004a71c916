// Fibers: functions that run in turns on stacks of their own, in one thread of the system, and what
// AddressSanitizer and ThreadSanitizer must be told of them. To ThreadSanitizer each fiber is a
// thread, and nothing but release() and acquire() puts what two fibers do in an order.
#pragma once
#include <sys/mman.h>

#include <cstddef>
#include <deque>
#include <new>

#if !defined(__x86_64__) || !defined(__linux__)
#error "the CUDA kernels' tests on the CPU switch stacks in a way made for Linux on x86-64"
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
}
#endif

namespace blockops::device::cpu {

#ifdef __SANITIZE_ADDRESS__
constexpr bool kAddressSanitizer = true;
#else
constexpr bool kAddressSanitizer = false;
#endif
#ifdef __SANITIZE_THREAD__
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

constexpr size_t kStackBytes = kAddressSanitizer ? 512 << 10 : 128 << 10;

// While one lives, ThreadSanitizer overlooks what this fiber reads and writes: the bookkeeping here
// is no part of the kernel under test.
struct Overlooked {
#ifdef __SANITIZE_THREAD__
  Overlooked() {
    AnnotateIgnoreReadsBegin("", 0);
    AnnotateIgnoreWritesBegin("", 0);
  }
  ~Overlooked() {
    AnnotateIgnoreWritesEnd("", 0);
    AnnotateIgnoreReadsEnd("", 0);
  }
#else
  ~Overlooked() {}
#endif
};

// What came before release(order) comes before what follows acquire(order).
inline void release([[maybe_unused]] void* order) {
#ifdef __SANITIZE_THREAD__
  __tsan_release(order);
#endif
}
inline void acquire([[maybe_unused]] void* order) {
#ifdef __SANITIZE_THREAD__
  __tsan_acquire(order);
#endif
}

// Tells ThreadSanitizer of an access by hardware, which no compiled code shows.
inline void note_read([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_THREAD__
  __tsan_read_range(const_cast<void*>(address), bytes);
#endif
}
inline void note_write([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
#ifdef __SANITIZE_THREAD__
  __tsan_write_range(address, bytes);
#endif
}

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // its lowest address
  size_t stack_bytes = kStackBytes;
  void* thread = nullptr;      // ThreadSanitizer's
  void* fake_stack = nullptr;  // AddressSanitizer's
};

// Pushes the registers that a call must keep, and pops those of the other stack.
extern "C" void blockops_switch_stacks(void** from, void* to);
asm(R"(
  .pushsection .text
  .weak blockops_switch_stacks
blockops_switch_stacks:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
  .popsection
)");

// Goes on with `to`; returns when something goes on with `from`.
inline void switch_fibers(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack, to.stack_bytes);
#endif
#ifdef __SANITIZE_THREAD__
  __tsan_switch_to_fiber(to.thread, __tsan_switch_to_fiber_no_sync);
#endif
  blockops_switch_stacks(&from.stack_pointer, to.stack_pointer);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// The first thing that a new fiber does; `starter` is the one that switched to it.
inline void arrive_on_new_stack([[maybe_unused]] Fiber& starter) {
#ifdef __SANITIZE_ADDRESS__
  const void* stack = nullptr;
  __sanitizer_finish_switch_fiber(nullptr, &stack, &starter.stack_bytes);
  starter.stack = static_cast<char*>(const_cast<void*>(stack));
#endif
}

// What the system started, as a fiber.
inline void take_current_fiber([[maybe_unused]] Fiber& fiber) {
#ifdef __SANITIZE_THREAD__
  fiber.thread = __tsan_get_current_fiber();
#endif
}

// Fibers for one task after another: entry() must not return, and switches away at the end of a
// task. What two tasks do on one fiber has an order for ThreadSanitizer.
class Fibers {
 public:
  explicit Fibers(void (*entry)()) : entry_(entry) {}

  // The fiber that has rested longest, or a new one where no more than `rest` are resting.
  Fiber* take(size_t rest) {
    if (resting_.size() <= rest) return add();
    Fiber* fiber = resting_.front();
    resting_.pop_front();
    return fiber;
  }
  void give_back(Fiber* fiber) { resting_.push_back(fiber); }

 private:
  Fiber* add() {
    constexpr size_t kPage = 4096, kSavedRegisters = 6;
    auto* memory = static_cast<char*>(mmap(nullptr, kPage + kStackBytes, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED || mprotect(memory, kPage, PROT_NONE)) throw std::bad_alloc();
    Fiber& fiber = all_.emplace_back();
    fiber.stack = memory + kPage;
    void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes) - 2;
    *top = reinterpret_cast<void*>(entry_);
    fiber.stack_pointer = top - kSavedRegisters;  // which are all zero
#ifdef __SANITIZE_THREAD__
    fiber.thread = __tsan_create_fiber(0);
#endif
    return &fiber;
  }

  void (*entry_)();
  std::deque<Fiber> all_;
  std::deque<Fiber*> resting_;
};

}  // namespace blockops::device::cpu
