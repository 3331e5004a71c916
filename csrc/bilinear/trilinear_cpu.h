// The bilinear family on the CPU: one form, three passes.
//
//   T = sum_b sum_p sum_t  M[p, t] a_bu b_bv c_bt,   p = (u, v) a pair of features of a and b.
//
// Each gradient of T is a pass of its own, a matrix product (ATen's) with M whose other operand is
// built tile by tile in a buffer that stays in the L2 cache:
//   third_pass    c_t  = sum_p M[p, t] a_u b_v            Khatri-Rao rows a_u b_v, times M
//   pair_pass     A_p  = sum_t M[p, t] c_t, then          M times c, contracted in place
//                 a_u += sum_v A_uv b_v,  b_v += sum_u A_uv a_u
//   matrix_pass   M[p, t] = sum_b a_bu b_bv c_bt          Khatri-Rao rows, times c
// Any slot of bilinear's and quadratic's formula may play a, b and c: bilinear_cpu.cpp chooses.
//
// Operands are transposed to (features, batch) first: then every elementwise loop runs along the
// batch, whatever the number of features. How the work is cut depends on the shape alone, never on
// the number of threads, and partial sums are added in a fixed order: the bits are always the same.
#pragma once
#include "bilinear/trilinear_tiles.h"
#include "core/cpu.h"
#include "core/transpose.h"

namespace blockops::cpu {

constexpr int64_t kLanes = 256;            // batch rows of a tile, at most
constexpr int64_t kTilePairs = 384;        // pairs of a tile of kLanes: 384 KiB of float32
constexpr int64_t kTasks = 32;             // parts to cut a pass into, where it is large enough
constexpr int64_t kTaskWork = 1 << 19;     // multiply-adds below which a part is not cut
constexpr int64_t kBufferBytes = 6 << 20;  // bound on transposed operands, and on partial sums

inline int64_t round_up(int64_t size, int64_t multiple) {
  return ceil_div(size, multiple) * multiple;
}

// Pairs of each tile of `pairs`, when the tiles are `lanes` rows of the batch wide: more of them
// where that is narrow, as far as the tile's part of M, n3 wide, stays small too; all alike.
inline int64_t tile_pairs(int64_t pairs, int64_t lanes, int64_t n3) {
  const int64_t by_lanes = kTilePairs * kLanes / lanes;
  const int64_t by_weight = 4 * kTilePairs * kLanes / n3;
  const int64_t most =
      std::clamp<int64_t>(std::min(by_lanes, by_weight), kTilePairs / 2, 8 * kTilePairs);
  return round_up(ceil_div(pairs, ceil_div(pairs, most)), 16);
}

// How a pass over `rows` of the batch is cut into tasks: groups of lanes times chunks of pairs.
struct Cut {
  int64_t rows, groups, lanes, pairs, chunks, chunk_pairs, tile;

  Cut(int64_t rows, int64_t pairs, int64_t n3, int64_t max_chunks) : rows(rows), pairs(pairs) {
    groups = ceil_div(rows, kLanes);
    lanes = round_up(ceil_div(rows, groups), 16);
    const int64_t tasks = std::clamp<int64_t>(rows * pairs * n3 / kTaskWork, 1, kTasks);
    const int64_t tiles = ceil_div(pairs, tile_pairs(pairs, lanes, n3));
    const int64_t wanted = std::clamp<int64_t>(tasks / groups, 1, std::min(tiles, max_chunks));
    chunk_pairs = round_up(ceil_div(pairs, wanted), 16);
    chunks = ceil_div(pairs, chunk_pairs);
    tile = tile_pairs(chunk_pairs, lanes, n3);
  }
};

struct Task {
  int64_t lane, lanes;        // rows of the batch [lane, lane + lanes)
  int64_t chunk, begin, end;  // pairs [begin, end)
};

// Runs body(task, scratch) for every task of a cut, with scratch of that size.
template <class T, class Body>
void for_each_task(const Cut& cut, int64_t scratch_size, const Body& body) {
  for_each_part(cut.groups * cut.chunks, [&](int64_t index) {
    const Buffer<T> scratch(scratch_size);
    Task task;
    task.lane = index / cut.chunks * cut.lanes;
    task.lanes = std::min(cut.lanes, cut.rows - task.lane);
    task.chunk = index % cut.chunks;
    task.begin = task.chunk * cut.chunk_pairs;
    task.end = std::min(cut.pairs, task.begin + cut.chunk_pairs);
    body(task, scratch.get());
  });
}

// The distance of transposed rows of the batch: off the powers of two, at which the rows would
// crowd each other out of the cache.
inline int64_t padded(int64_t rows) { return round_up(rows, 32) + 16; }

// The operands a and b of some rows of the batch, transposed; one copy where the pairs are
// symmetric, so that a is b.
template <class T>
class Operands {
 public:
  Operands(const T* a, const T* b, const Pairs& pairs, int64_t row, int64_t rows)
      : rows_(rows), a_(transposed(a + row * pairs.n1, rows, pairs.n1)), b_(0) {
    if (!pairs.upper) b_ = transposed(b + row * pairs.n2, rows, pairs.n2);
  }
  Rows<const T> a(int64_t lane) const { return {a_.get() + lane, padded(rows_)}; }
  Rows<const T> b(int64_t lane) const { return {(b_.get() ? b_ : a_).get() + lane, padded(rows_)}; }

 private:
  static Buffer<T> transposed(const T* in, int64_t rows, int64_t features) {
    Buffer<T> out(padded(rows) * features);
    for_each_part(ceil_div(rows, kLanes), [&](int64_t group) {
      const int64_t lane = group * kLanes;
      transpose(in + lane * features, features, std::min(kLanes, rows - lane), features,
                out.get() + lane, padded(rows));
    });
    return out;
  }

  int64_t rows_;
  Buffer<T> a_, b_;
};

// Sums of a pass over some rows of the batch, (features, rows), one part for each chunk of pairs.
template <class T>
class Parts {
 public:
  Parts(int64_t features, int64_t rows, int64_t parts)
      : features_(features), rows_(rows), parts_(parts), data_(features * padded(rows) * parts) {}
  Rows<T> rows(int64_t part, int64_t lane) const {
    return {data_.get() + part * features_ * padded(rows_) + lane, padded(rows_)};
  }
  void clear(const Task& task) const {
    for (int64_t f = 0; f < features_; ++f) {
      T* const row = rows(task.chunk, task.lane)[f];
      std::fill(row, row + task.lanes, T(0));
    }
  }
  // out (rows, features) = the sum of the parts, in order, + bias (features) or null.
  void store(const T* bias, T* out) const {
    for_each_part(ceil_div(rows_, kLanes), [&](int64_t group) {
      const int64_t lane = group * kLanes, lanes = std::min(kLanes, rows_ - lane);
      const Rows<T> sums = rows(0, lane);
      for (int64_t f = 0; f < features_; ++f) {
        add_parts(sums[f], parts_, features_ * padded(rows_), lanes);
        if (bias) add_constant(sums[f], bias[f], lanes);
      }
      transpose(sums.data, sums.stride, features_, lanes, out + lane * features_, features_);
    });
  }

 private:
  int64_t features_, rows_, parts_;
  Buffer<T> data_;
};

// All of M as contiguous rows of n3, packed in parallel.
template <class T>
Buffer<T> weight_rows(const Weight<T>& weight) {
  const int64_t size = weight.pairs.size(), n3 = weight.n3;
  Buffer<T> rows(size * n3);
  for_each_part(ceil_div(size, kTilePairs), [&](int64_t tile) {
    const int64_t begin = tile * kTilePairs, end = std::min(size, begin + kTilePairs);
    T* const out = rows.get() + begin * n3;
    if (weight.pairs.upper) {
      pack_symmetric(weight, begin, end, out);
    } else {
      transpose(weight.data + begin, weight.third_stride, n3, end - begin, out, n3);
    }
  });
  return rows;
}

// Tiles of M for the products. Symmetric pairs are packed: once for all where several groups of
// lanes will ask for them, else tile by tile into the caller's scratch. A plain weight is viewed as
// it lies; but where its rows are whole pages apart, a product that sums over them
// (sums_over_third) gets copies: they would crowd each other out of the cache.
template <class T>
class Tiles {
 public:
  Tiles(const Weight<T>& weight, int64_t batch, bool sums_over_third)
      : weight_(weight), packed_(0), crowded_(false) {
    if (!weight.pairs.upper) {
      crowded_ = sums_over_third && weight.third_stride * sizeof(T) % 4096 == 0;
    } else if (batch > kLanes) {
      packed_ = weight_rows(weight);
    }
  }
  int64_t scratch_size(int64_t pairs) const {
    if (crowded_) return weight_.n3 * padded(pairs);
    return weight_.pairs.upper && !packed_.get() ? pairs * weight_.n3 : 0;
  }
  Matrix<const T> tile(int64_t begin, int64_t end, T* scratch) const {
    const int64_t n3 = weight_.n3, size = end - begin;
    if (crowded_) {
      for (int64_t t = 0; t < n3; ++t) {
        const T* const row = weight_.data + t * weight_.third_stride;
        std::copy(row + begin, row + end, scratch + t * padded(size));
      }
      return {scratch, size, n3, 1, padded(size)};
    }
    if (!weight_.pairs.upper) {
      return {weight_.data + begin, size, n3, 1, weight_.third_stride};
    }
    if (packed_.get()) return {packed_.get() + begin * n3, size, n3, n3, 1};
    pack_symmetric(weight_, begin, end, scratch);
    return {scratch, size, n3, n3, 1};
  }

 private:
  Weight<T> weight_;
  Buffer<T> packed_;
  bool crowded_;
};

// Rows of the batch that a pass takes at a time, so that its transposed operands and results,
// `features` elements a row, stay within kBufferBytes.
template <class T>
int64_t batch_step(int64_t batch, int64_t features) {
  const int64_t fit = kBufferBytes / static_cast<int64_t>(sizeof(T)) / features;
  return std::min(batch, std::max<int64_t>(1, fit / kLanes) * kLanes);
}

// Parts that partial sums of `size` elements may come in, within kBufferBytes.
template <class T>
int64_t max_parts(int64_t size) {
  return std::max<int64_t>(1, kBufferBytes / static_cast<int64_t>(sizeof(T)) / size);
}

// c (batch, n3) = sum_uv M[uv, t] a_u b_v, + bias (n3) or null; a is (batch, n1), b (batch, n2).
template <class T>
void third_pass(const Weight<T>& weight, int64_t batch, const T* a, const T* b, const T* bias,
                T* c) {
  const auto& pairs = weight.pairs;
  const int64_t n3 = weight.n3;
  const Tiles<T> tiles(weight, batch, /*sums_over_third=*/false);
  const int64_t step = batch_step<T>(batch, pairs.n1 + pairs.n2 + n3);
  for (int64_t row = 0; row < batch; row += step) {
    const int64_t rows = std::min(step, batch - row);
    const Cut cut(rows, pairs.size(), n3, max_parts<T>(rows * n3));
    const Operands<T> operands(a, b, pairs, row, rows);
    const Parts<T> sums(n3, rows, cut.chunks);
    const int64_t products_size = cut.tile * cut.lanes;
    for_each_task<T>(
        cut, products_size + tiles.scratch_size(cut.tile), [&](const Task& task, T* scratch) {
          const Rows<T> products{scratch, task.lanes};
          const Matrix<T> out{sums.rows(task.chunk, task.lane).data, n3, task.lanes, padded(rows),
                              1};
          for (int64_t p = task.begin; p < task.end; p += cut.tile) {
            const int64_t end = std::min(task.end, p + cut.tile);
            khatri_rao(pairs, p, end, operands.a(task.lane), operands.b(task.lane), task.lanes,
                       products);
            multiply<T>(tiles.tile(p, end, scratch + products_size).transposed(),
                        {products.data, end - p, task.lanes, task.lanes, 1}, out, p > task.begin);
          }
        });
    sums.store(bias, c + row * n3);
  }
}

// With A_uv = sum_t M[uv, t] c_t: grad_a_u = sum_v A_uv b_v and grad_b_v = sum_u A_uv a_u, each
// (batch, n). Symmetric pairs: b is a, and grad_a takes both sums; grad_b is not used.
template <class T>
void pair_pass(const Weight<T>& weight, int64_t batch, const T* a, const T* b, const T* c,
               T* grad_a, T* grad_b) {
  const auto& pairs = weight.pairs;
  const int64_t n3 = weight.n3;
  const Tiles<T> tiles(weight, batch, /*sums_over_third=*/true);
  const int64_t step = batch_step<T>(batch, 2 * (pairs.n1 + pairs.n2));
  for (int64_t row = 0; row < batch; row += step) {
    const int64_t rows = std::min(step, batch - row);
    const Cut cut(rows, pairs.size(), n3, max_parts<T>(rows * (pairs.n1 + pairs.n2)));
    const Operands<T> operands(a, b, pairs, row, rows);
    const Parts<T> sums_a(pairs.n1, rows, cut.chunks);
    const Parts<T> sums_b(pairs.upper ? 0 : pairs.n2, rows, cut.chunks);
    const int64_t products_size = cut.tile * cut.lanes;
    for_each_task<T>(
        cut, products_size + tiles.scratch_size(cut.tile), [&](const Task& task, T* scratch) {
          sums_a.clear(task);
          sums_b.clear(task);
          const Rows<T> to_a = sums_a.rows(task.chunk, task.lane);
          const Rows<T> to_b = pairs.upper ? to_a : sums_b.rows(task.chunk, task.lane);
          const Matrix<const T> c_rows{c + (row + task.lane) * n3, task.lanes, n3, n3, 1};
          for (int64_t p = task.begin; p < task.end; p += cut.tile) {
            const int64_t end = std::min(task.end, p + cut.tile);
            multiply<T>(tiles.tile(p, end, scratch + products_size), c_rows.transposed(),
                        {scratch, end - p, task.lanes, task.lanes, 1}, false);
            contract<T>(pairs, p, end, {scratch, task.lanes}, operands.a(task.lane),
                        operands.b(task.lane), task.lanes, to_a, to_b);
          }
        });
    sums_a.store(nullptr, grad_a + row * pairs.n1);
    if (!pairs.upper) sums_b.store(nullptr, grad_b + row * pairs.n2);
  }
}

// How the matrix pass is cut: tiles of pairs, and the batch into parts, at the price of partial
// sums, only where there are few tiles to go round.
struct MatrixCut {
  int64_t step;  // rows whose operands are transposed at a time
  int64_t tile, tiles, part_rows, parts;
};

template <class T>
MatrixCut matrix_cut(const Pairs& pairs, int64_t n3, int64_t batch) {
  MatrixCut cut;
  const int64_t size = pairs.size();
  cut.step = batch_step<T>(batch, pairs.n1 + pairs.n2);
  cut.tile = tile_pairs(size, std::min(cut.step, kLanes), n3);
  cut.tiles = ceil_div(size, cut.tile);
  const int64_t groups = ceil_div(cut.step, kLanes);
  const int64_t tasks = std::clamp<int64_t>(batch * size * n3 / kTaskWork, 1, kTasks);
  const int64_t most = std::min(groups, max_parts<T>(size * n3));
  cut.part_rows = ceil_div(groups, std::clamp<int64_t>(tasks / cut.tiles, 1, most)) * kLanes;
  cut.parts = ceil_div(groups * kLanes, cut.part_rows);
  return cut;
}

// M[uv, t] = sum_b a_bu b_bv c_bt, to grad (n3, n1 n2).
template <class T>
void matrix_pass(const Pairs& pairs, int64_t n3, int64_t batch, const T* a, const T* b, const T* c,
                 T* grad) {
  const int64_t size = pairs.size();
  const auto cut = matrix_cut<T>(pairs, n3, batch);
  const Buffer<T> partial(cut.parts > 1 ? cut.parts * size * n3 : 0);
  T* const sums = cut.parts > 1 ? partial.get() : grad;
  for (int64_t row = 0; row < batch; row += cut.step) {
    const int64_t rows = std::min(cut.step, batch - row);
    const Operands<T> operands(a, b, pairs, row, rows);
    for_each_part(cut.tiles * cut.parts, [&](int64_t index) {
      const int64_t part = index / cut.tiles, p = index % cut.tiles * cut.tile;
      const int64_t p_end = std::min(size, p + cut.tile);
      T* const out = sums + part * size * n3 + p;
      const Buffer<T> products(cut.tile * std::min(kLanes, rows));
      const int64_t begin = part * cut.part_rows, end = std::min(rows, begin + cut.part_rows);
      for (int64_t lane = begin; lane < end; lane += kLanes) {
        const int64_t lanes = std::min(kLanes, end - lane);
        khatri_rao<T>(pairs, p, p_end, operands.a(lane), operands.b(lane), lanes,
                      {products.get(), lanes});
        multiply<T>({products.get(), p_end - p, lanes, lanes, 1},
                    {c + (row + lane) * n3, lanes, n3, n3, 1}, {out, p_end - p, n3, 1, size},
                    row > 0 || lane > begin);
      }
    });
  }
  if (cut.parts == 1) return;
  for_each_part(ceil_div(size, kTilePairs), [&](int64_t index) {
    const int64_t begin = index * kTilePairs * n3,
                  end = std::min(size * n3, begin + kTilePairs * n3);
    add_parts(partial.get() + begin, cut.parts, size * n3, end - begin);
    std::copy(partial.get() + begin, partial.get() + end, grad + begin);
  });
}

// matrix_pass for symmetric pairs, to both halves of grad (n, n, n3).
template <class T>
void symmetric_matrix_pass(int64_t n, int64_t n3, int64_t batch, const T* a, const T* c, T* grad) {
  const Pairs pairs{n, n, /*upper=*/true};
  const int64_t size = pairs.size(), step = batch_step<T>(batch, n);
  const int64_t tile = tile_pairs(size, std::min(step, kLanes), n3);
  // Where the batch comes in one step each tile is complete at once and goes straight to grad.
  const Buffer<T> packed(step < batch ? size * n3 : 0);
  for (int64_t row = 0; row < batch; row += step) {
    const int64_t rows = std::min(step, batch - row);
    const Operands<T> operands(a, a, pairs, row, rows);
    for_each_part(ceil_div(size, tile), [&](int64_t index) {
      const int64_t p = index * tile, p_end = std::min(size, p + tile);
      const Buffer<T> products(tile * std::min(kLanes, rows)), sums(packed.get() ? 0 : tile * n3);
      T* const out = packed.get() ? packed.get() + p * n3 : sums.get();
      for (int64_t lane = 0; lane < rows; lane += kLanes) {
        const int64_t lanes = std::min(kLanes, rows - lane);
        khatri_rao<T>(pairs, p, p_end, operands.a(lane), operands.b(lane), lanes,
                      {products.get(), lanes});
        multiply<T>({products.get(), p_end - p, lanes, lanes, 1},
                    {c + (row + lane) * n3, lanes, n3, n3, 1}, {out, p_end - p, n3, n3, 1},
                    row > 0 || lane > 0);
      }
      if (row + rows == batch) unpack_symmetric(pairs, n3, out, p, p_end, grad);
    });
  }
}

}  // namespace blockops::cpu
