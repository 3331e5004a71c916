// The rules of center, asked by the kernels of every device and by Meta.
#pragma once
#include <c10/util/OptionalArrayRef.h>

#include <bitset>

#include "core/checks.h"

namespace blockops {

inline constexpr int64_t kMaxDims = 64;  // as torch's own reductions have it

// Which axes of x the mean runs over: those in `dim`, which may count from the end, or all.
inline std::bitset<kMaxDims> check_center(const Tensor& x, at::OptionalIntArrayRef dim) {
  check_floating("center", "x", x);
  BLOCKOPS_CHECK(TORCH_CHECK_VALUE, x.dim() <= kMaxDims, "center: x must have at most ", kMaxDims,
                 " dimensions, got ", x.dim());
  std::bitset<kMaxDims> reduced;
  if (!dim || dim->empty()) return reduced.set();
  const int64_t axes = std::max<int64_t>(x.dim(), 1);  // a scalar has dim 0 and -1, as in torch
  for (const int64_t d : *dim) {
    BLOCKOPS_CHECK(TORCH_CHECK_INDEX, -axes <= d && d < axes, "center: dim must be in [", -axes,
                   ", ", axes - 1, "] for x of ", x.dim(), " dimensions, got ", d);
    const size_t axis = d < 0 ? d + axes : d;
    BLOCKOPS_CHECK(TORCH_CHECK_VALUE, !reduced[axis],
                   "center: dim must name each axis once, got axis ", axis, " twice");
    reduced.set(axis);
  }
  return reduced;
}

}  // namespace blockops
