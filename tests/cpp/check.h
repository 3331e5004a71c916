// The frame of a test program for kernels on the CPU, main included:
//
//   BLOCKOPS_TEST(name) { ... check::close(...); }
//
//   program [--quick] [part of a test's name] [schedule ...]
//
// runs the tests under each schedule (BLOCKOPS_SCHEDULE, else 0, where none is named) and exits
// with 1 when one fails or checks nothing. --quick, for sanitizers, which are slow, sets
// check::quick and makes the chip smaller.
#pragma once
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/device.h"
#include "core/numbers.h"

namespace blockops::check {

using device::narrow;
using device::widen;

inline bool quick = false;
inline int checks = 0;               // made by the test that runs
inline bool written_beyond = false;  // a buffer of it

struct Failure : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void that(bool holds, const std::string& otherwise) {
  ++checks;
  if (!holds) throw Failure(otherwise);
}

inline void launched(cudaError_t error) {
  that(error == cudaSuccess, "the launch returned error " + std::to_string(error));
}

// That `body` goes wrong as a kernel on the CPU, with `words` in the report.
template <class Body>
void fails(const std::string& words, const Body& body) {
  try {
    body();
  } catch (const device::cpu::KernelError& error) {
    return that(std::string(error.what()).find(words) != std::string::npos,
                "expected a report with \"" + words + "\", got: " + error.what());
  }
  that(false, "expected a report with \"" + words + "\", got none");
}

// Memory of the GPU, filled with NaN. It begins `offset` elements after an address aligned to 256
// bytes and ends where it must, so that AddressSanitizer sees every access beyond it; in the other
// builds a write next to it fails the test.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size, int64_t offset = 0) : size_(size), offset_(offset) {
    if (posix_memalign(&memory_, 256, bytes())) throw std::bad_alloc();
    std::memset(memory_, 0xff, bytes());
  }
  Buffer(Buffer&& other)
      : memory_(std::exchange(other.memory_, nullptr)),
        size_(other.size_),
        offset_(other.offset_) {}
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() {
    const auto* before = static_cast<unsigned char*>(memory_);
    const unsigned char* after = before + bytes() - kGuardBytes;
    for (size_t i = 0; memory_ && i < kGuardBytes; ++i) {
      written_beyond |= before[i] != 0xff || after[i] != 0xff;
    }
    std::free(memory_);
  }

  T* data() { return reinterpret_cast<T*>(static_cast<char*>(memory_) + kGuardBytes) + offset_; }
  const T* data() const { return const_cast<Buffer*>(this)->data(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }

 private:
  static constexpr size_t kGuardBytes = device::cpu::kAddressSanitizer ? 0 : 256;
  size_t bytes() const { return (offset_ + size_) * sizeof(T) + 2 * kGuardBytes; }

  void* memory_ = nullptr;
  int64_t size_, offset_;
};

template <class T>
Buffer<T> normal(int64_t size, unsigned seed, int64_t offset = 0) {
  Buffer<T> buffer(size, offset);
  std::mt19937 generator(seed);
  std::normal_distribution<double> values;
  for (int64_t i = 0; i < size; ++i) {
    buffer[i] = narrow<T>(static_cast<device::Sum<T>>(values(generator)));
  }
  return buffer;
}

// From {-2, ..., 2}: sums of products of a few thousand of them are exact in float32.
template <class T>
Buffer<T> integers(int64_t size, unsigned seed, int64_t offset = 0) {
  Buffer<T> buffer(size, offset);
  std::mt19937 generator(seed);
  for (int64_t i = 0; i < size; ++i) {
    buffer[i] = narrow<T>(static_cast<device::Sum<T>>(static_cast<int>(generator() % 5) - 2));
  }
  return buffer;
}

// That |error| <= element * S + rounding * |reference| in each element, where S, `scale`, is the
// reference's formula on absolute values. NaN and infinities must be where the reference has them.
template <class T>
void close(const std::string& name, const Buffer<T>& actual, const std::vector<double>& reference,
           const std::vector<double>& scale, double element, double rounding = 0) {
  that(actual.size() == static_cast<int64_t>(reference.size()) && reference.size() == scale.size(),
       name + ": the result, its reference and its scale differ in size");
  for (int64_t i = 0; i < actual.size(); ++i) {
    const double got = widen(actual[i]), want = reference[i];
    const double bound = element * scale[i] + rounding * std::abs(want);
    const bool same = std::isfinite(want) ? std::abs(got - want) <= bound
                                          : got == want || (std::isnan(got) && std::isnan(want));
    if (same) continue;
    char text[160];
    std::snprintf(text, sizeof text, ": element %lld is %.9g, not %.9g: off by %.3g, bound %.3g",
                  static_cast<long long>(i), got, want, std::abs(got - want), bound);
    that(false, name + text);
  }
}

// That every element is the reference, rounded to T.
template <class T>
void equal(const std::string& name, const Buffer<T>& actual, std::vector<double> reference) {
  for (double& want : reference) want = widen(narrow<T>(static_cast<device::Sum<T>>(want)));
  close(name, actual, reference, std::vector<double>(reference.size()), 0);
}

// ---- tests and their program ----

struct Test {
  const char* name;
  void (*body)();
  bool planted;  // has a bug on purpose, and runs only by its full name
};
inline std::vector<Test> tests;

struct Registration {
  Registration(const char* name, void (*body)(), bool planted) {
    tests.push_back({name, body, planted});
  }
};

#define BLOCKOPS_TEST_OF_KIND(name, planted)                               \
  static void blockops_test_##name();                                      \
  static const blockops::check::Registration blockops_registration_##name( \
      #name, blockops_test_##name, planted);                               \
  static void blockops_test_##name()
#define BLOCKOPS_TEST(name) BLOCKOPS_TEST_OF_KIND(name, false)
#define BLOCKOPS_PLANTED(name) BLOCKOPS_TEST_OF_KIND(name, true)

inline bool passes(const Test& test) {
  std::printf("%s, schedule %u: ", test.name, device::cpu::schedule);
  std::fflush(stdout);  // a sanitizer may end the program
  checks = 0;
  written_beyond = false;
  std::string failure;
  try {
    test.body();
    if (checks == 0) failure = "it checks nothing";
  } catch (const std::exception& error) {
    failure = error.what();
  }
  if (written_beyond)
    failure += (failure.empty() ? "" : "; ") + std::string("a write next to a buffer");
  std::puts(failure.empty() ? "passed" : ("FAILED: " + failure).c_str());
  return failure.empty();
}

inline int run(int count, char** arguments) {
  std::string part;
  std::vector<unsigned> schedules;
  for (int i = 1; i < count; ++i) {
    const std::string argument = arguments[i];
    if (argument == "--quick") {
      quick = true;
      device::cpu::chip_blocks = 3;
    } else if (argument.find_first_not_of("0123456789") == std::string::npos) {
      schedules.push_back(std::stoul(argument));
    } else {
      part = argument;
    }
  }
  if (schedules.empty()) schedules.push_back(device::cpu::schedule);
  int ran = 0, failed = 0;
  for (const unsigned schedule : schedules) {
    device::cpu::schedule = schedule;
    for (const Test& test : tests) {
      const bool wanted =
          test.planted ? part == test.name : std::string(test.name).find(part) != std::string::npos;
      if (!wanted) continue;
      ++ran;
      failed += !passes(test);
    }
  }
  std::printf("%d of %d failed\n", failed, ran);
  return failed > 0 || ran == 0;
}

}  // namespace blockops::check

int main(int count, char** arguments) { return blockops::check::run(count, arguments); }
