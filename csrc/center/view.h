// How the kernels of every device see x, and the way from any x to that.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <vector>

#include "center/checks.h"

namespace blockops {

// Contiguous x as (O, R, K, S), where the mean runs over R and S: a mean of all elements is
// (1, 1, 1, S), of the last axis (O, 1, 1, S), of the first one (1, R, K, 1), of a batch of images
// by channel (1, R, K, S).
struct View {
  int64_t O = 1, R = 1, K = 1, S = 1;
};

// The sizes of runs of axes that are all kept or all reduced, a kept one (maybe of size 1) first.
inline at::DimVector runs_of(at::IntArrayRef sizes, const std::bitset<kMaxDims>& reduced) {
  at::DimVector runs = {1};
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    if (sizes[axis] == 1) continue;
    const bool in_reduced_run = runs.size() % 2 == 0;
    if (reduced[axis] == in_reduced_run) {
      runs.back() *= sizes[axis];
    } else {
      runs.push_back(sizes[axis]);
    }
  }
  return runs;
}

// More runs than a View has: the reduced axes moved to the end, and the result back again.
template <class CenterView>
Tensor center_moved(const Tensor& x, const std::bitset<kMaxDims>& reduced,
                    const CenterView& center_view) {
  std::vector<int64_t> order, back(x.dim());
  for (const bool wanted : {false, true})
    for (int64_t axis = 0; axis < x.dim(); ++axis)
      if (reduced[axis] == wanted) order.push_back(axis);
  View view;
  for (int64_t i = 0; i < x.dim(); ++i) {
    back[order[i]] = i;
    (reduced[order[i]] ? view.S : view.O) *= x.size(order[i]);
  }
  return center_view(view, x.permute(order).contiguous()).permute(back).contiguous();
}

// The op on a device whose center_view(view, x) centers contiguous x that is not empty.
template <class CenterView>
Tensor center_by_view(const Tensor& x, at::OptionalIntArrayRef dim, const CenterView& center_view) {
  const auto reduced = check_center(x, dim);
  if (x.numel() == 0) return at::empty(x.sizes(), x.options());
  const auto runs = runs_of(x.sizes(), reduced);
  if (runs.size() > 4) return center_moved(x, reduced, center_view);
  const auto run = [&](size_t index) { return index < runs.size() ? runs[index] : 1; };
  const View view =
      runs.size() == 2 ? View{run(0), 1, 1, run(1)} : View{run(0), run(1), run(2), run(3)};
  return center_view(view, x.contiguous());
}

}  // namespace blockops
