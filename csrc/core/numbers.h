// The element types of kernels: conversion, and the type in which sums are kept. Host code may
// include it, and the headers that declare params and launch functions do; kernels include
// core/device.h besides.
#pragma once
#include "core/runtime.h"

namespace blockops::device {

using BFloat16 = __nv_bfloat16;
using Half = __half;

template <class T>
struct SumOf {
  using Type = float;
};
template <>
struct SumOf<double> {
  using Type = double;
};
// float, or double for double.
template <class T>
using Sum = typename SumOf<T>::Type;

__host__ __device__ __forceinline__ float widen(float x) { return x; }
__host__ __device__ __forceinline__ double widen(double x) { return x; }
__host__ __device__ __forceinline__ float widen(BFloat16 x) { return __bfloat162float(x); }
__host__ __device__ __forceinline__ float widen(Half x) { return __half2float(x); }

// Rounded to the nearest T.
template <class T>
__host__ __device__ __forceinline__ T narrow(Sum<T> x) {
  return x;
}
template <>
__host__ __device__ __forceinline__ BFloat16 narrow<BFloat16>(float x) {
  return __float2bfloat16(x);
}
template <>
__host__ __device__ __forceinline__ Half narrow<Half>(float x) {
  return __float2half(x);
}

__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace blockops::device
