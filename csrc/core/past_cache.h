// A result too large to be found in the cache again is written past it. Lines that are overwritten
// whole then need not be read from memory first, which is a third of what a copy moves.
#pragma once
#include <algorithm>
#include <cstdint>
#if defined(__linux__) && defined(__SSE2__)
#define BLOCKOPS_PAST_CACHE
#include <emmintrin.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace blockops::cpu {

constexpr int64_t kCacheLine = 64;     // bytes
constexpr int64_t kLongRun = 1 << 14;  // bytes that are walked in kStreams: the processor fetches
constexpr int64_t kStreams = 4;        // ahead within a page, so that one waits at each new page

// Whether `bytes` at y are to be written past the cache. Not fresh memory: the kernel has just put
// zeros there, and so its lines are in the cache.
inline bool is_past_cache([[maybe_unused]] const void* y, [[maybe_unused]] int64_t bytes) {
#ifdef BLOCKOPS_PAST_CACHE
  if (bytes < 32 << 20) return false;
  static const uintptr_t page = sysconf(_SC_PAGESIZE);
  const uintptr_t middle = (reinterpret_cast<uintptr_t>(y) + bytes / 2) / page * page;
  unsigned char state = 0;
  return mincore(reinterpret_cast<void*>(middle), 1, &state) == 0 && state % 2 == 1;
#else
  return false;
#endif
}

inline void store_line_past_cache([[maybe_unused]] const void* line, [[maybe_unused]] void* to) {
#ifdef BLOCKOPS_PAST_CACHE
  for (int64_t i = 0; i < kCacheLine / 16; ++i)
    _mm_stream_si128(static_cast<__m128i*>(to) + i, static_cast<const __m128i*>(line)[i]);
#endif
}

// Before another thread is told that the results are there.
inline void finish_past_cache([[maybe_unused]] bool past_cache) {
#ifdef BLOCKOPS_PAST_CACHE
  if (past_cache) _mm_sfence();
#endif
}

// y[i] = value(i) for i < size.
template <class T, class Value>
inline void write(T* y, int64_t size, bool past_cache, const Value& value) {
  int64_t i = 0;
  if (past_cache) {
    constexpr int64_t line = kCacheLine / sizeof(T);
    const int64_t in_line = reinterpret_cast<uintptr_t>(y) % kCacheLine / sizeof(T);
    for (const int64_t head = std::min((line - in_line) % line, size); i < head; ++i)
      y[i] = value(i);
    const int64_t streams = size * int64_t(sizeof(T)) < kLongRun ? 1 : kStreams;
    const int64_t stream = (size - i) / (streams * line) * line;
    for (const int64_t end = i + stream; i < end; i += line)
      for (int64_t from = i; from < i + streams * stream; from += stream) {
        alignas(kCacheLine) T values[line];
        for (int64_t at = 0; at < line; ++at) values[at] = value(from + at);
        store_line_past_cache(values, y + from);
      }
    i += (streams - 1) * stream;
  }
  for (; i < size; ++i) y[i] = value(i);
}

}  // namespace blockops::cpu
