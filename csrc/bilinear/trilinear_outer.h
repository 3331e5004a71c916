// The matrix pass of trilinear_cpu.h as sums of outer products: for each feature t of c,
//   M_t = sum_b (c_bt a_b) b_b^T,
// tile by tile in registers over a block of batch rows, then over the blocks. Operands are read
// along their features, as they lie, so that no side of a product is short. Of symmetric pairs,
// each strip of features u is computed from its own first feature on.
#pragma once
#include <array>

#include "bilinear/trilinear_cpu.h"

namespace blockops::cpu {

constexpr int64_t kStrip = 16;               // features u of a task, and thirds t, at most
constexpr int64_t kBlockLanes = 128;         // batch rows of a block, at most
constexpr int64_t kBlockElements = 1 << 16;  // of a block of b, and of a task's sums, to n2 = 4096
constexpr int64_t kPadding = 16;             // elements: whole vectors of any size

// A tile of sums in registers.
constexpr int kTileVectors = 3;
template <class Registers>
constexpr int kTileRows = Registers::sums / kTileVectors;

// sums (rows, vectors) (+)= sum_r a_r b_r^T over `lanes` rows of a block.
template <class T, class Registers, int vectors>
BLOCKOPS_SIMD_CLONES void outer_tile(int64_t lanes, Rows<const T> a, Rows<const T> b, Rows<T> sums,
                                     bool accumulate) {
  typedef T Vector __attribute__((vector_size(Registers::bytes)));
  Vector total[kTileRows<Registers>][vectors] = {};
  for (int64_t r = 0; r < lanes; ++r) {
    const T* const a_r = a[r];
    const auto* const from = reinterpret_cast<const Vector*>(b[r]);
    Vector b_r[vectors];
    for (int v = 0; v < vectors; ++v) b_r[v] = from[v];
    for (int u = 0; u < kTileRows<Registers>; ++u)
      for (int v = 0; v < vectors; ++v) total[u][v] += a_r[u] * b_r[v];
  }
  for (int u = 0; u < kTileRows<Registers>; ++u) {
    auto* const to = reinterpret_cast<Vector*>(sums[u]);
    for (int v = 0; v < vectors; ++v) to[v] = accumulate ? to[v] + total[u][v] : total[u][v];
  }
}

// All tiles of a strip's sums for one t: its first `count` features u, and v from `first` on.
template <class T, class Registers>
void outer_strip(int64_t lanes, int64_t count, int64_t first, int64_t width, Rows<const T> a,
                 Rows<const T> b, Rows<T> sums, bool accumulate) {
  constexpr int64_t step = Registers::bytes / sizeof(T);
  for (int64_t u = 0; u < count; u += kTileRows<Registers>)
    for (int64_t v = first; v < width;) {
      const int64_t vectors = std::min<int64_t>(kTileVectors, (width - v) / step);
      const Rows<const T> a_u{a.data + u, a.stride}, b_v{b.data + v, b.stride};
      const Rows<T> to{sums[u] + v, sums.stride};
      if (vectors == 3) {
        outer_tile<T, Registers, 3>(lanes, a_u, b_v, to, accumulate);
      } else if (vectors == 2) {
        outer_tile<T, Registers, 2>(lanes, a_u, b_v, to, accumulate);
      } else {
        outer_tile<T, Registers, 1>(lanes, a_u, b_v, to, accumulate);
      }
      v += vectors * step;
    }
}

// out (lanes, kStrip) = a_b[begin, begin + count) c_bt, the rest 0.
template <class T>
BLOCKOPS_SIMD_CLONES void scaled_strip(int64_t lanes, const T* a, int64_t n1, int64_t count,
                                       const T* c, int64_t n3, T* out) {
  for (int64_t r = 0; r < lanes; ++r, a += n1, c += n3, out += kStrip) {
    const T factor = *c;
    for (int64_t u = 0; u < count; ++u) out[u] = a[u] * factor;
  }
}

// How the pass is cut: strips of features u, groups of thirds t, and the batch into parts, at the
// price of partial sums, only where strips and groups are few.
struct OuterCut {
  int64_t width, strips, group, groups, lanes, blocks, part_blocks, parts, sums_size;

  template <class T>
  static OuterCut of(const Pairs& pairs, int64_t n3, int64_t batch) {
    OuterCut cut;
    cut.width = round_up(pairs.n2, kPadding);
    cut.strips = ceil_div(pairs.n1, kStrip);
    cut.group = std::clamp<int64_t>(kBlockElements / (kStrip * cut.width), 1, std::min(n3, kStrip));
    cut.groups = ceil_div(n3, cut.group);
    cut.lanes = std::clamp<int64_t>(kBlockElements / cut.width, 16, kBlockLanes);
    cut.blocks = ceil_div(batch, cut.lanes);
    cut.sums_size = cut.group * kStrip * cut.width;
    const int64_t tasks = std::clamp<int64_t>(batch * pairs.size() * n3 / kTaskWork, 1, kTasks);
    const int64_t most = std::min(cut.blocks, max_parts<T>(cut.pieces() * cut.sums_size));
    const int64_t parts = std::clamp<int64_t>(ceil_div(tasks, cut.pieces()), 1, most);
    cut.part_blocks = ceil_div(cut.blocks, parts);
    cut.parts = ceil_div(cut.blocks, cut.part_blocks);
    return cut;
  }

  int64_t pieces() const { return strips * groups; }
  // The first u and t of a piece. From both ends in turn: the strips of a triangle shrink, and
  // threads take neighbours.
  std::array<int64_t, 2> start(int64_t nth) const {
    const int64_t piece = nth % 2 ? pieces() - 1 - nth / 2 : nth / 2;
    return {piece / groups * kStrip, piece % groups * group};
  }
};

// M[u, v, t] lies at data + u * u_stride + v * v_stride + t * t_stride.
template <class T>
struct Slots {
  T* data;
  int64_t u_stride, v_stride, t_stride;
};

// Sums of a piece, (group, kStrip, width), to M from (u_begin, t_begin) on; of symmetric pairs to
// both halves.
template <class T>
void store_sums(const Pairs& pairs, int64_t n3, const OuterCut& cut, std::array<int64_t, 2> start,
                const T* sums, const Slots<T>& M) {
  const auto [u_begin, t_begin] = start;
  const int64_t u_end = std::min(pairs.n1, u_begin + kStrip);
  const int64_t t_end = std::min(n3, t_begin + cut.group);
  for (int64_t t = t_begin; t < t_end; ++t)
    for (int64_t u = u_begin; u < u_end; ++u) {
      const T* const row = sums + ((t - t_begin) * kStrip + u - u_begin) * cut.width;
      T* const to = M.data + u * M.u_stride + t * M.t_stride;
      for (int64_t v = pairs.first_v(u); v < pairs.n2; ++v) to[v * M.v_stride] = row[v];
      if (!pairs.upper) continue;
      T* const mirrored = M.data + u * M.v_stride + t * M.t_stride;
      for (int64_t v = u + 1; v < pairs.n2; ++v) mirrored[v * M.u_stride] = row[v];
    }
}

// The sums of one piece over rows [begin, end) of the batch.
template <class T, class Registers>
void outer_sums(const Pairs& pairs, int64_t n3, const OuterCut& cut, std::array<int64_t, 2> start,
                int64_t begin, int64_t end, const T* a, const T* b, const T* c, T* sums) {
  const auto [u, t] = start;
  const int64_t count = std::min(kStrip, pairs.n1 - u), t_count = std::min(cut.group, n3 - t);
  const int64_t first = pairs.upper ? u : 0, stride = cut.width + kPadding;
  const Buffer<T> block(cut.lanes * stride), strip(cut.lanes * kStrip);
  std::fill_n(block.get(), cut.lanes * stride, T(0));
  std::fill_n(strip.get(), cut.lanes * kStrip, T(0));
  for (int64_t row = begin; row < end; row += cut.lanes) {
    const int64_t lanes = std::min(cut.lanes, end - row);
    for (int64_t r = 0; r < lanes; ++r) {
      const T* const from = b + (row + r) * pairs.n2;
      std::copy(from + first, from + pairs.n2, block.get() + r * stride + first);
    }
    for (int64_t k = 0; k < t_count; ++k) {
      scaled_strip(lanes, a + row * pairs.n1 + u, pairs.n1, count, c + row * n3 + t + k, n3,
                   strip.get());
      outer_strip<T, Registers>(lanes, count, first, cut.width, {strip.get(), kStrip},
                                {block.get(), stride}, {sums + k * kStrip * cut.width, cut.width},
                                row > begin);
    }
  }
}

// M[u, v, t] = sum_b a_bu b_bv c_bt, a (batch, n1), b (batch, n2), c (batch, n3).
template <class T, class Registers>
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
    outer_sums<T, Registers>(pairs, n3, cut, start, begin, end, a, b, c, sums);
    if (cut.parts == 1) store_sums(pairs, n3, cut, start, sums, M);
  });
  if (cut.parts == 1) return;
  for_each_part(cut.pieces(), [&](int64_t nth) {
    T* const sums = partial.get() + nth * cut.sums_size;
    add_parts(sums, cut.parts, cut.pieces() * cut.sums_size, cut.sums_size);
    store_sums(pairs, n3, cut, cut.start(nth), sums, M);
  });
}

template <class T>
void outer_pass(const Pairs& pairs, int64_t n3, int64_t batch, const T* a, const T* b, const T* c,
                const Slots<T>& M) {
  with_registers(
      [&](auto registers) { outer_pass<T, decltype(registers)>(pairs, n3, batch, a, b, c, M); });
}

}  // namespace blockops::cpu
