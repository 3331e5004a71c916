// The matrix pass of trilinear_cpu.h: M[p, t] = sum_b a_bu b_bv c_bt, the gradient of the weight.
#pragma once
#include "bilinear/trilinear_cpu.h"

namespace blockops::cpu {

constexpr int64_t kRows = 3 * kBlock;     // batch rows of a product, at most
constexpr int64_t kColumns = 3 * kBlock;  // pairs of a plain tile, along the vectors
constexpr int64_t kChain = 32;            // products that are added one after the other

// How the pass is cut: tiles of pairs, times stretches of thirds, times parts of the batch, at the
// price of partial sums, only where there are few of those to go round, or the batch is so long
// that one chain of sums would round too often.
struct MatrixCut {
  int64_t step;  // rows whose operands are copied at a time
  int64_t tile, tiles, n3, thirds, part_rows, parts;

  template <class T>
  static MatrixCut of(const Pairs& pairs, int64_t n3, int64_t batch) {
    MatrixCut cut;
    const int64_t size = pairs.size();
    cut.step = batch_step<T>(batch, n3 + (pairs.upper ? pairs.n1 : 0));
    cut.tile = pairs.upper ? stretch(size, kRows, 8) : kColumns;
    cut.tiles = ceil_div(size, cut.tile);
    cut.n3 = n3;
    cut.thirds = stretch(n3, kThirds, kBlock);
    const int64_t blocks = ceil_div(cut.step, kRows);
    const int64_t tasks = std::clamp<int64_t>(batch * size * n3 / kTaskWork, 1, kTasks);
    const int64_t most = std::min(blocks, max_parts<T>(size * n3));
    const int64_t wanted = std::max(tasks / cut.pieces(), ceil_div(blocks, kChain));
    const int64_t parts = std::clamp<int64_t>(wanted, 1, most);
    cut.part_rows = ceil_div(blocks, parts) * kRows;
    cut.parts = ceil_div(blocks * kRows, cut.part_rows);
    return cut;
  }

  int64_t pieces() const { return tiles * ceil_div(n3, thirds); }
  // Whether the batch comes in one piece, so that each tile is complete at once.
  bool at_once(int64_t batch) const { return parts == 1 && step == batch; }
};

// A task of the pass: pairs [p, p_end), `thirds` t from `third` on, rows [begin, end) of a step.
struct MatrixTask {
  int64_t p, p_end, third, thirds, part, begin, end;

  MatrixTask(const MatrixCut& cut, int64_t size, int64_t rows, int64_t index) {
    p = index % cut.tiles * cut.tile;
    p_end = std::min(size, p + cut.tile);
    third = index / cut.tiles % ceil_div(cut.n3, cut.thirds) * cut.thirds;
    thirds = std::min(cut.thirds, cut.n3 - third);
    part = index / cut.pieces();
    begin = part * cut.part_rows;
    end = std::min(rows, begin + cut.part_rows);
  }
};

// Rows of c, padded.
template <class T>
Buffer<T> padded_rows(const T* in, int64_t rows, int64_t features) {
  Buffer<T> out(rows * padded(features));
  for_each_part(ceil_div(rows, kBlock), [&](int64_t block) {
    const int64_t begin = block * kBlock, end = std::min(rows, begin + kBlock);
    const Rows<T> to{out.get(), padded(features)};
    for (int64_t r = begin; r < end; ++r) std::copy_n(in + r * features, features, to[r]);
    clear_padding<T>({to[begin], to.stride}, end - begin, features);
  });
  return out;
}

// To grad (n3, n1 n2).
template <class T>
void matrix_pass(const Pairs& pairs, int64_t n3, int64_t batch, const T* a, const T* b, const T* c,
                 T* grad) {
  const int64_t size = pairs.size();
  const auto cut = MatrixCut::of<T>(pairs, n3, batch);
  const Buffer<T> partial(cut.parts > 1 ? cut.parts * size * n3 : 0);
  T* const sums = cut.parts > 1 ? partial.get() : grad;
  const bool past_cache =
      cut.at_once(batch) && is_past_cache(grad, size * n3 * static_cast<int64_t>(sizeof(T)));
  for (int64_t row = 0; row < batch; row += cut.step) {
    const int64_t rows = std::min(cut.step, batch - row);
    const Buffer<T> c_rows = padded_rows(c + row * n3, rows, n3);
    for_each_part(cut.pieces() * cut.parts, [&](int64_t index) {
      const MatrixTask task(cut, size, rows, index);
      const Buffer<T> products(kRows * kColumns);
      clear_padding<T>({products.get(), kColumns}, kRows, task.p_end - task.p);
      T* const place = sums + task.part * size * n3 + task.third * size + task.p;
      const Buffer<T> own(past_cache ? task.thirds * kColumns : 0);
      const Rows<T> out = past_cache ? Rows<T>{own.get(), kColumns} : Rows<T>{place, size};
      for (int64_t r = task.begin; r < task.end; r += kRows) {
        const int64_t depth = std::min(kRows, task.end - r);
        khatri_rao_rows<T>(pairs, task.p, task.p_end, depth, a + (row + r) * pairs.n1,
                           b + (row + r) * pairs.n2, {products.get(), kColumns});
        const T* const c_r = c_rows.get() + r * padded(n3) + task.third;
        product<T>({c_r, task.thirds, depth, 1, padded(n3)}, {products.get(), kColumns},
                   task.p_end - task.p, out, row > 0 || r > task.begin);
      }
      if (past_cache) write_tile_past_cache<T>(out, task.thirds, task.p_end - task.p, place, size);
    });
  }
  if (cut.parts == 1) return;
  constexpr int64_t kStretch = 1 << 14;
  for_each_part(ceil_div(size * n3, kStretch), [&](int64_t index) {
    const int64_t begin = index * kStretch, end = std::min(size * n3, begin + kStretch);
    add_parts(partial.get() + begin, cut.parts, size * n3, end - begin);
    std::copy(partial.get() + begin, partial.get() + end, grad + begin);
  });
}

// The same for symmetric pairs, to both halves of grad (n, n, n3).
template <class T>
void symmetric_matrix_pass(int64_t n, int64_t n3, int64_t batch, const T* a, const T* c, T* grad) {
  const Pairs pairs{n, n, /*upper=*/true};
  const int64_t size = pairs.size();
  const auto cut = MatrixCut::of<T>(pairs, n3, batch);
  const bool at_once = cut.at_once(batch);  // then each tile goes straight to grad
  const Buffer<T> partial(at_once ? 0 : cut.parts * size * n3);
  const bool past_cache = is_past_cache(grad, n * n * n3 * static_cast<int64_t>(sizeof(T)));
  for (int64_t row = 0; row < batch; row += cut.step) {
    const int64_t rows = std::min(cut.step, batch - row);
    const Operands<T> operands(a, a, pairs, row, rows);
    const Buffer<T> c_rows = padded_rows(c + row * n3, rows, n3);
    for_each_part(cut.pieces() * cut.parts, [&](int64_t index) {
      const MatrixTask task(cut, size, rows, index);
      const Buffer<T> products(cut.tile * kRows);
      const Buffer<T> own(at_once ? cut.tile * task.thirds : 0);
      Rows<T> out{own.get(), task.thirds};
      if (!at_once) out = {partial.get() + (task.part * size + task.p) * n3 + task.third, n3};
      for (int64_t r = task.begin; r < task.end; r += kRows) {
        const int64_t depth = std::min(kRows, task.end - r);
        for (int64_t lane = 0; lane < depth; lane += kBlock)
          khatri_rao<T>(pairs, task.p, task.p_end, operands.a(r + lane), operands.b(r + lane),
                        std::min(kBlock, depth - lane), {products.get() + lane, kRows});
        product<T>({products.get(), task.p_end - task.p, depth, kRows, 1},
                   {c_rows.get() + r * padded(n3) + task.third, padded(n3)}, task.thirds, out,
                   row > 0 || r > task.begin);
      }
      if (at_once)
        unpack_symmetric<T>(pairs, n3, {out.data, out.stride}, task.p, task.p_end, task.thirds,
                            grad + task.third, past_cache);
    });
  }
  if (at_once) return;
  for_each_part(cut.tiles, [&](int64_t tile) {
    const int64_t p = tile * cut.tile, p_end = std::min(size, p + cut.tile);
    T* const sums = partial.get() + p * n3;
    add_parts(sums, cut.parts, size * n3, (p_end - p) * n3);
    unpack_symmetric<T>(pairs, n3, {sums, n3}, p, p_end, n3, grad, past_cache);
  });
}

}  // namespace blockops::cpu
