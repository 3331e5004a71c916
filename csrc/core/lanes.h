// Vectors of some elements of memory, and the last of them where fewer are left.
#pragma once
#include <cstdint>
#include <cstring>

namespace blockops::cpu {

template <class T, class Registers>
struct Lanes {
  typedef T Vector __attribute__((vector_size(Registers::bytes)));
  static constexpr int64_t width = Registers::bytes / sizeof(T);
};

// Up to `available` elements, the others 0.
template <class T, class Vector>
[[gnu::always_inline]] inline void load(Vector& vector, const T* from, int64_t available) {
  if (available >= static_cast<int64_t>(sizeof(vector) / sizeof(T))) {
    std::memcpy(&vector, from, sizeof(vector));
  } else {
    vector = Vector{};
    std::memcpy(&vector, from, available * sizeof(T));
  }
}

template <class T, class Vector>
[[gnu::always_inline]] inline void store(const Vector& vector, T* to, int64_t available) {
  if (available >= static_cast<int64_t>(sizeof(vector) / sizeof(T))) {
    std::memcpy(to, &vector, sizeof(vector));
  } else {
    std::memcpy(to, &vector, available * sizeof(T));
  }
}

template <class T, class Vector>
[[gnu::always_inline]] inline void add_to(T* to, const Vector& vector, int64_t available) {
  Vector sum;
  load(sum, to, available);
  sum += vector;
  store(sum, to, available);
}

}  // namespace blockops::cpu
