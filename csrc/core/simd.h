// BLOCKOPS_SIMD_CLONES before a function: the compiler makes a copy of it for each generation of
// x86 vector units and the loader picks the one that this machine runs, so that a library built on
// one machine is fast, and legal, on another. Elsewhere (and under the address sanitizer, which the
// loader's choice would precede) it means nothing. Clone the loop over a whole tile, not a short
// row.
#pragma once

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__)
#if __GNUC__ >= 12
#define BLOCKOPS_SIMD_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else  // knows single features only, and for avx2 no fused multiply-add
#define BLOCKOPS_SIMD_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#else
#define BLOCKOPS_SIMD_CLONES
#endif
