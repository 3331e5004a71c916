// The matrix pass of trilinear_cpu.h as sums of outer products: for each feature t of c,
//   M_t = sum_b (c_bt a_b) b_b^T,
// tile by tile in registers over a block of batch rows, then over the blocks. Operands are read
// along their features, as they lie, so that no side of a product is short. Of symmetric pairs,
// each strip of features u is computed from its own first feature on.
#pragma once
#include <array>
#include <cstring>

#include "bilinear/trilinear_cpu.h"

namespace blockops::cpu {

constexpr int64_t kStrip = 16;  // features u of a product; whole vectors of any size
constexpr int64_t kHalf = kStrip / 2;
constexpr int64_t kBlockLanes = 128;         // batch rows of a block, at most
constexpr int64_t kBlockElements = 1 << 16;  // of a block of b, and of a task's sums, to n2 = 4096
constexpr int64_t kSpanElements = 1 << 14;   // of a task's sums, where that is more than a strip

// out (lanes, kStrip) = a_bu c_bt, for kStrip features u.
template <class T>
BLOCKOPS_SIMD_CLONES void scaled_strip(int64_t lanes, Rows<const T> a, const T* c, int64_t n3,
                                       T* out) {
  typedef T Vector __attribute__((vector_size(32)));
  constexpr int64_t width = sizeof(Vector) / sizeof(T);
  for (int64_t r = 0; r < lanes; ++r, c += n3, out += kStrip)
    for (int64_t u = 0; u < kStrip; u += width)
      *reinterpret_cast<Vector*>(out + u) = *reinterpret_cast<const Vector*>(a[r] + u) * *c;
}

// `count` features of some rows of in (batch, features) to rows of their own. They are copied in
// pieces of a size that the compiler knows, the last of which overlaps the one before.
template <class T>
BLOCKOPS_SIMD_CLONES void copy_rows(const T* in, int64_t features, int64_t count, int64_t lanes,
                                    Rows<T> out) {
  for (int64_t r = 0; r < lanes; ++r, in += features)
    if (count < kStrip) {
      for (int64_t f = 0; f < count; ++f) out[r][f] = in[f];
    } else {
      for (int64_t f = 0; f < count; f += kStrip) {
        const int64_t from = std::min(f, count - kStrip);
        std::memcpy(out[r] + from, in + from, kStrip * sizeof(T));
      }
    }
}

// How the pass is cut: spans of features u, groups of thirds t, and the batch into parts, at the
// price of partial sums, only where spans and groups are few.
struct OuterCut {
  int64_t width, span, spans, group, groups, lanes, blocks, part_blocks, parts, sums_size;

  template <class T>
  static OuterCut of(const Pairs& pairs, int64_t n3, int64_t batch) {
    OuterCut cut;
    cut.width = round_up(pairs.n2, kStrip);
    cut.group = std::clamp<int64_t>(kBlockElements / (kStrip * cut.width), 1, std::min(n3, kStrip));
    cut.groups = ceil_div(n3, cut.group);
    cut.lanes = std::clamp<int64_t>(kBlockElements / cut.width, 16, kBlockLanes);
    cut.blocks = ceil_div(batch, cut.lanes);
    const int64_t tasks = std::clamp<int64_t>(batch * pairs.size() * n3 / kTaskWork, 1, kTasks);
    const int64_t strips = ceil_div(pairs.n1, kStrip);
    const int64_t fit = std::min(kSpanElements / (cut.group * kStrip * cut.width),
                                 strips * cut.groups * cut.blocks / tasks);
    cut.span = kStrip * std::clamp<int64_t>(fit, 1, strips);
    cut.spans = ceil_div(pairs.n1, cut.span);
    cut.sums_size = cut.group * cut.span * cut.width;
    const int64_t most = std::min(cut.blocks, max_parts<T>(cut.pieces() * cut.sums_size));
    const int64_t parts = std::clamp<int64_t>(ceil_div(tasks, cut.pieces()), 1, most);
    cut.part_blocks = ceil_div(cut.blocks, parts);
    cut.parts = ceil_div(cut.blocks, cut.part_blocks);
    return cut;
  }

  int64_t pieces() const { return spans * groups; }
  // The first u and t of a piece.
  std::array<int64_t, 2> start(int64_t piece) const {
    return {piece / groups * span, piece % groups * group};
  }
};

// M[u, v, t] lies at data + u * u_stride + v * v_stride + t * t_stride.
template <class T>
struct Slots {
  T* data;
  int64_t u_stride, v_stride, t_stride;
};

// Sums of a piece, (group, span, width), to M from (u_begin, t_begin) on; of symmetric pairs, where
// t runs along memory, to both halves.
template <class T>
void store_sums(const Pairs& pairs, int64_t n3, const OuterCut& cut, std::array<int64_t, 2> start,
                const T* sums, const Slots<T>& M) {
  const auto [u_begin, t_begin] = start;
  const int64_t u_end = std::min(pairs.n1, u_begin + cut.span);
  const int64_t t_end = std::min(n3, t_begin + cut.group);
  for (int64_t u = u_begin; u < u_end; ++u) {
    const T* const rows = sums + (u - u_begin) * cut.width;
    const int64_t row_stride = cut.span * cut.width, v_begin = pairs.first_v(u);
    T* const to = M.data + u * M.u_stride + t_begin * M.t_stride;
    if (M.t_stride == 1) {
      transpose(rows + v_begin, row_stride, t_end - t_begin, pairs.n2 - v_begin,
                to + v_begin * M.v_stride, M.v_stride);
    } else {
      for (int64_t t = t_begin; t < t_end; ++t)
        for (int64_t v = v_begin; v < pairs.n2; ++v)
          to[(t - t_begin) * M.t_stride + v * M.v_stride] = rows[(t - t_begin) * row_stride + v];
    }
    if (!pairs.upper) continue;
    T* const mirrored = M.data + u * M.v_stride + t_begin;
    for (int64_t v = u + 1; v < pairs.n2; ++v)
      std::copy_n(to + v * M.v_stride, t_end - t_begin, mirrored + v * M.u_stride);
  }
}

// Rows [begin, end) of in (batch, features), from feature `first` on, as what is read next.
template <class T>
void list_features(const T* in, int64_t features, int64_t first, int64_t begin, int64_t end,
                   Ahead& ahead) {
  const int64_t together = first > 0 ? 1 : end - begin;  // rows that are one stretch of memory
  ahead.begin((together * features - first) * sizeof(T));
  for (int64_t row = begin; row < end; row += together) ahead.add(in + row * features + first);
}

// The sums of one piece over rows [begin, end) of the batch.
template <class T>
void outer_sums(const Pairs& pairs, int64_t n3, const OuterCut& cut, std::array<int64_t, 2> start,
                int64_t begin, int64_t end, const T* a, const T* b, const T* c, T* sums) {
  const auto [u_begin, t_begin] = start;
  const int64_t u_end = std::min(pairs.n1, u_begin + cut.span);
  const int64_t t_end = std::min(n3, t_begin + cut.group);
  const int64_t first = pairs.upper ? u_begin : 0, span = pairs.upper ? 0 : cut.span;
  const int64_t stride_a = span + kStrip, stride_b = cut.width + kStrip;
  // Whether a strip's second half, which begins at a later v, may end as much before the width: it
  // is a vector shorter then.
  const bool halves = pairs.upper && cut.width - pairs.n2 >= kHalf;
  const Buffer<T> block_a(cut.lanes * stride_a), block_b(cut.lanes * stride_b),
      strip(cut.lanes * kStrip);
  std::fill_n(block_a.get(), cut.lanes * stride_a, T(0));
  std::fill_n(block_b.get(), cut.lanes * stride_b, T(0));
  const Rows<T> b_rows{block_b.get(), stride_b};
  const Rows<T> a_rows =  // from u_begin on
      pairs.upper ? Rows<T>{b_rows.data + u_begin, stride_b} : Rows<T>{block_a.get(), stride_a};
  Ahead ahead;
  for (int64_t row = begin; row < end; row += cut.lanes) {
    const int64_t lanes = std::min(cut.lanes, end - row);
    copy_rows<T>(b + row * pairs.n2 + first, pairs.n2, pairs.n2 - first, lanes,
                 {b_rows.data + first, stride_b});
    if (!pairs.upper)
      copy_rows<T>(a + row * pairs.n1 + u_begin, pairs.n1, u_end - u_begin, lanes, a_rows);
    list_features(b, pairs.n2, first, row + lanes, std::min(end, row + lanes + cut.lanes), ahead);
    ahead.spread(lanes * (u_end - u_begin) * (t_end - t_begin) * (cut.width - first));
    for (int64_t t = t_begin; t < t_end; ++t)
      for (int64_t u = u_begin; u < u_end; u += kStrip) {
        const int64_t v = pairs.upper ? u : 0, count = std::min(kStrip, u_end - u);
        T* const to = sums + ((t - t_begin) * cut.span + u - u_begin) * cut.width;
        scaled_strip<T>(lanes, {a_rows.data + u - u_begin, a_rows.stride}, c + row * n3 + t, n3,
                        strip.get());
        const auto add_product = [&](int64_t i, int64_t rows, int64_t v, int64_t v_end) {
          product<T>({strip.get() + i, rows, lanes, 1, kStrip}, {b_rows.data + v, stride_b},
                     v_end - v, {to + i * cut.width + v, cut.width}, row > begin, &ahead);
        };
        const int64_t rows = std::min(count, halves ? kHalf : kStrip);
        add_product(0, rows, v, cut.width);
        if (rows < count) add_product(rows, count - rows, v + kHalf, cut.width - kHalf);
      }
  }
}

// M[u, v, t] = sum_b a_bu b_bv c_bt, a (batch, n1), b (batch, n2), c (batch, n3).
template <class T>
void outer_pass(const Pairs& pairs, int64_t n3, int64_t batch, const T* a, const T* b, const T* c,
                const Slots<T>& M) {
  const auto cut = OuterCut::of<T>(pairs, n3, batch);
  const Buffer<T> partial(cut.parts > 1 ? cut.parts * cut.pieces() * cut.sums_size : 0);
  for_each_part(cut.parts * cut.pieces(), [&](int64_t index) {
    const int64_t part = index / cut.pieces(), begin = part * cut.part_blocks * cut.lanes;
    const int64_t end = std::min(batch, begin + cut.part_blocks * cut.lanes);
    const auto start = cut.start(index % cut.pieces());
    const Buffer<T> own(cut.parts > 1 ? 0 : cut.sums_size);
    T* const sums = cut.parts > 1 ? partial.get() + index * cut.sums_size : own.get();
    outer_sums<T>(pairs, n3, cut, start, begin, end, a, b, c, sums);
    if (cut.parts == 1) store_sums(pairs, n3, cut, start, sums, M);
  });
  if (cut.parts == 1) return;
  for_each_part(cut.pieces(), [&](int64_t nth) {
    T* const sums = partial.get() + nth * cut.sums_size;
    add_parts(sums, cut.parts, cut.pieces() * cut.sums_size, cut.sums_size);
    store_sums(pairs, n3, cut, cut.start(nth), sums, M);
  });
}

}  // namespace blockops::cpu
