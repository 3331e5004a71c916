// BLOCKOPS_SIMD_CLONES before a function: the compiler makes a copy of it for each generation of
// x86 vector units and the loader picks the one that this machine runs, so that a library built on
// one machine is fast, and legal, on another. Elsewhere (and with BLOCKOPS_NO_COPIES, for the
// sanitizers: the loader chooses before that of addresses is ready) it means nothing. Clone the
// loop over a whole tile, not a short row.
//
// with_registers says which vectors such a function may keep its sums in.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(BLOCKOPS_NO_COPIES)
#if __GNUC__ >= 12
#define BLOCKOPS_WIDEST "x86-64-v4"
#define BLOCKOPS_SIMD_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else  // knows single features only, and for avx2 no fused multiply-add
#define BLOCKOPS_WIDEST "avx512f"
#define BLOCKOPS_SIMD_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define BLOCKOPS_SIMD_CLONES
#endif

namespace blockops::cpu {

// The vector registers of AVX-512, or of AVX2 and what is like it, and how many sums they hold
// beside what is multiplied. Vectors wider than the machine's are right too, but 4 to 40 times as
// slow: the compiler then keeps them in memory and takes them apart.
struct WideRegisters {
  static constexpr int bytes = 64, sums = 24;
};
struct NarrowRegisters {
  static constexpr int bytes = 32, sums = 12;
};
struct SmallRegisters {  // any machine's
  static constexpr int bytes = 16;
};

// Calls body with the registers of the copy that the loader picks on this machine.
template <class Body>
void with_registers(const Body& body) {
#ifdef BLOCKOPS_WIDE_REGISTERS
  return body(WideRegisters());
#endif
#ifdef BLOCKOPS_WIDEST
  static const bool wide = __builtin_cpu_supports(BLOCKOPS_WIDEST);
  if (wide) return body(WideRegisters());
#endif
  body(NarrowRegisters());
}

}  // namespace blockops::cpu
