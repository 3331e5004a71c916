// The bilinear family on the CPU: one form, three passes.
//
//   T = sum_b sum_p sum_t  M[p, t] a_bu b_bv c_bt,   p = (u, v) a pair of features of a and b.
//
// Each gradient of T is a pass of its own, a matrix product (core/product.h) with M whose other
// operand is built block by block in a buffer that stays in the cache:
//   third_pass    c_t  = sum_p M[p, t] a_u b_v            Khatri-Rao rows a_u b_v, times M
//   pair_pass     A_p  = sum_t M[p, t] c_t, then          M times c, contracted in place
//                 a_u += sum_v A_uv b_v,  b_v += sum_u A_uv a_u
//   matrix_pass   M[p, t] = sum_b a_bu b_bv c_bt          Khatri-Rao rows, times c
//                                                         (trilinear_matrix.h)
// Any slot of bilinear's and quadratic's formula may play a, b and c: bilinear_cpu.cpp chooses.
//
// Operands are transposed to (features, batch) first: then every vector runs along the batch,
// whatever the number of features. How the work is cut depends on the shape alone, never on the
// number of threads, and partial sums are added in a fixed order: the bits are always the same.
#pragma once
#include "bilinear/trilinear_tiles.h"
#include "core/cpu.h"
#include "core/transpose.h"

namespace blockops::cpu {

constexpr int64_t kBlock = 48;             // batch rows of a product: whole tiles of any registers
constexpr int64_t kLanes = 10 * kBlock;    // batch rows of a task, about
constexpr int64_t kDepth = 192;            // depth of a product, at most
constexpr int64_t kTile = 512;             // pairs of a tile of M, at most
constexpr int64_t kTileSize = 1 << 17;     // elements of a tile of M: half of the L2 cache
constexpr int64_t kThirds = 8 * kBlock;    // thirds t of a task of the matrix pass, at most
constexpr int64_t kTaskThirds = 256;       // of the third pass
constexpr int64_t kPairThirds = 512;       // thirds of a tile of the pair pass, about
constexpr int64_t kTasks = 32;             // parts to cut a pass into, where it is large enough
constexpr int64_t kTaskWork = 1 << 19;     // multiply-adds below which a part is not cut
constexpr int64_t kBufferBytes = 6 << 20;  // bound on transposed operands, and on partial sums

inline int64_t round_up(int64_t size, int64_t multiple) {
  return ceil_div(size, multiple) * multiple;
}

// `size` cut into equal stretches of at most `most`, multiples of `multiple` but for the last.
inline int64_t stretch(int64_t size, int64_t most, int64_t multiple) {
  return round_up(ceil_div(size, ceil_div(size, most)), multiple);
}

// Distances of rows that a product reads side by side: off the powers of two, at which they would
// crowd each other out of the cache. padded: of rows that are read by vectors, 64 bytes at a time.
inline int64_t padded(int64_t size) { return (ceil_div(size, 16) | 1) * 16; }
inline int64_t apart(int64_t size) { return size % 32 ? size : size + 16; }

// Zeros where vectors read past `cols` of some rows. What memory held before would do no harm there
// but for its price: numbers like 1e-40 are common in it and take many times as long to multiply.
template <class T>
void clear_padding(Rows<T> rows, int64_t count, int64_t cols) {
  for (int64_t r = 0; r < count; ++r) std::fill(rows[r] + cols, rows[r] + round_up(cols, 16), T(0));
}

// How a pass over `rows` of the batch is cut into tasks: groups of lanes, times chunks of pairs,
// times stretches of thirds.
struct Cut {
  int64_t rows, groups, lanes, pairs, chunks, chunk_pairs, tile, n3, thirds;

  Cut(int64_t rows, int64_t pairs, int64_t n3, int64_t most_thirds, int64_t max_chunks)
      : rows(rows), pairs(pairs), n3(n3), thirds(stretch(n3, most_thirds, 16)) {
    groups = std::max<int64_t>(1, (rows + kLanes / 2) / kLanes);
    lanes = round_up(ceil_div(rows, groups), kBlock);
    groups = ceil_div(rows, lanes);
    const int64_t tasks = std::clamp<int64_t>(rows * pairs * n3 / kTaskWork, 1, kTasks);
    const int64_t most = std::min(ceil_div(pairs, kDepth), max_chunks);
    int64_t wanted = std::clamp<int64_t>(tasks / (groups * stretches()), 1, most);
    if (wanted > 2) wanted = std::min(round_up(wanted, 4), max_chunks);  // for 2 and 4 threads
    chunk_pairs = round_up(ceil_div(pairs, wanted), 8);
    chunks = ceil_div(pairs, chunk_pairs);
    tile = stretch(chunk_pairs,
                   std::clamp<int64_t>(kTileSize / std::min(round_up(thirds, kBlock), kPairThirds),
                                       kDepth / 2, kTile),
                   8);
  }
  int64_t stretches() const { return ceil_div(n3, thirds); }
};

struct Task {
  int64_t lane, lanes;        // rows of the batch [lane, lane + lanes)
  int64_t third, thirds;      // thirds [third, third + thirds)
  int64_t chunk, begin, end;  // pairs [begin, end)
};

// Runs body(task, scratch) for every task of a cut, with scratch of that size.
template <class T, class Body>
void for_each_task(const Cut& cut, int64_t scratch_size, const Body& body) {
  const int64_t stretches = cut.stretches();
  for_each_part(cut.groups * stretches * cut.chunks, [&](int64_t index) {
    const Buffer<T> scratch(scratch_size);
    Task task;
    task.lane = index / cut.chunks / stretches * cut.lanes;
    task.lanes = std::min(cut.lanes, cut.rows - task.lane);
    task.third = index / cut.chunks % stretches * cut.thirds;
    task.thirds = std::min(cut.thirds, cut.n3 - task.third);
    task.chunk = index % cut.chunks;
    task.begin = task.chunk * cut.chunk_pairs;
    task.end = std::min(cut.pairs, task.begin + cut.chunk_pairs);
    body(task, scratch.get());
  });
}

// Runs body(lane, lanes) for the blocks of a task's rows of the batch, in whole vectors: the last
// may reach past the batch, where nothing reads what comes of it.
template <class Body>
void for_each_block_of(const Task& task, const Body& body) {
  for (int64_t lane = 0; lane < task.lanes; lane += kBlock)
    body(task.lane + lane, round_up(std::min(kBlock, task.lanes - lane), 16));
}

// `features` of `rows` of the batch, transposed block by block: (blocks, features, kBlock).
template <class T>
class Panels {
 public:
  Panels(int64_t features, int64_t rows)
      : features_(features), rows_(rows), data_(ceil_div(rows, kBlock) * features * kBlock) {}
  // in (rows, features)
  Panels(const T* in, int64_t features, int64_t rows) : Panels(features, rows) {
    for_each_block([&](int64_t row, int64_t lanes) {
      transpose(in + row * features, features, lanes, features, (*this)[row].data, kBlock);
      clear_padding((*this)[row], features, lanes);
    });
  }
  // The features of the block that begins at `row`.
  Rows<T> operator[](int64_t row) const { return {data_.get() + row * features_, kBlock}; }
  // Runs body(row, lanes) for every block, in parallel.
  template <class Body>
  void for_each_block(const Body& body) const {
    for_each_part(ceil_div(rows_, kBlock), [&](int64_t block) {
      const int64_t row = block * kBlock;
      body(row, std::min(kBlock, rows_ - row));
    });
  }

 private:
  int64_t features_, rows_;
  Buffer<T> data_;
};

// The operands a and b of some rows of the batch; one copy where the pairs are symmetric, so that
// a is b.
template <class T>
class Operands {
 public:
  Operands(const T* a, const T* b, const Pairs& pairs, int64_t row, int64_t rows)
      : a_(a + row * pairs.n1, pairs.n1, rows), same_(pairs.upper), b_(0, 0) {
    if (!same_) b_ = Panels<T>(b + row * pairs.n2, pairs.n2, rows);
  }
  Rows<const T> a(int64_t row) const { return {a_[row].data, kBlock}; }
  Rows<const T> b(int64_t row) const {
    return same_ ? a(row) : Rows<const T>{b_[row].data, kBlock};
  }

 private:
  Panels<T> a_;
  bool same_;
  Panels<T> b_;
};

// Sums of a pass over some rows of the batch, one part for each chunk of pairs: the parts of a
// block follow each other.
template <class T>
class Parts {
 public:
  Parts(int64_t features, int64_t rows, int64_t parts)
      : features_(features), parts_(parts), sums_(parts * features, rows) {}
  Rows<T> rows(int64_t part, int64_t row) const { return {sums_[row][part * features_], kBlock}; }
  void clear(const Task& task) const {
    for_each_block_of(task, [&](int64_t lane, int64_t) {
      std::fill_n(rows(task.chunk, lane).data, features_ * kBlock, T(0));
    });
  }
  // out (rows, features) = the sum of the parts, in order, + bias (features) or null.
  void store(const T* bias, T* out) const {
    sums_.for_each_block([&](int64_t row, int64_t lanes) {
      const Rows<T> sums = rows(0, row);
      add_parts(sums.data, parts_, features_ * kBlock, features_ * kBlock);
      if (bias)
        for (int64_t f = 0; f < features_; ++f) add_constant(sums[f], bias[f], lanes);
      transpose(sums.data, kBlock, features_, lanes, out + row * features_, features_);
    });
  }

 private:
  int64_t features_, parts_;
  Panels<T> sums_;
};

// A tile of M for the products, in scratch: M[p, t] for p in [begin, end) and `thirds` t from
// `third` on. A plain weight is copied too: its rows may be whole pages apart, and crowd each other
// out of the cache.
template <class T>
Matrix<const T> tile_of(const Weight<T>& weight, int64_t begin, int64_t end, int64_t third,
                        int64_t thirds, T* scratch) {
  const int64_t size = end - begin;
  if (weight.pairs.upper) {
    pack_symmetric(weight, begin, end, third, thirds, {scratch, apart(thirds)});
    return {scratch, size, thirds, apart(thirds), 1};
  }
  const T* const data = weight.data + third * weight.third_stride + begin;
  copy_tile(data, weight.third_stride, thirds, size, {scratch, apart(size)});
  return {scratch, size, thirds, 1, apart(size)};
}
inline int64_t tile_size(int64_t pairs, int64_t thirds) {
  return (pairs + 16) * (thirds + 16);  // apart(), of shorter tiles too
}

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
  const int64_t step = batch_step<T>(batch, pairs.n1 + pairs.n2 + n3);
  for (int64_t row = 0; row < batch; row += step) {
    const int64_t rows = std::min(step, batch - row);
    const Cut cut(rows, pairs.size(), n3, kTaskThirds, max_parts<T>(rows * n3));
    const Operands<T> operands(a, b, pairs, row, rows);
    const Parts<T> sums(n3, rows, cut.chunks);
    const int64_t products_size = kDepth * kBlock;
    const int64_t scratch_size = products_size + tile_size(cut.tile, cut.thirds);
    for_each_task<T>(cut, scratch_size, [&](const Task& task, T* scratch) {
      for (int64_t begin = task.begin; begin < task.end; begin += cut.tile) {
        const int64_t end = std::min(task.end, begin + cut.tile);
        const auto M =
            tile_of(weight, begin, end, task.third, task.thirds, scratch + products_size);
        for_each_block_of(task, [&](int64_t lane, int64_t lanes) {
          const Rows<T> products{scratch, kBlock};
          const Rows<T> out{sums.rows(task.chunk, lane)[task.third], kBlock};
          for (int64_t p = begin; p < end; p += kDepth) {
            const int64_t p_end = std::min(end, p + kDepth);
            khatri_rao<T>(pairs, p, p_end, operands.a(lane), operands.b(lane), lanes, products);
            product<T>(M.some_rows(p - begin, p_end - p).transposed(), products, lanes, out,
                       p > task.begin);
          }
        });
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
  const int64_t step = batch_step<T>(batch, 2 * (pairs.n1 + pairs.n2) + n3);
  for (int64_t row = 0; row < batch; row += step) {
    const int64_t rows = std::min(step, batch - row);
    const Cut cut(rows, pairs.size(), n3, n3, max_parts<T>(rows * (pairs.n1 + pairs.n2)));
    const Operands<T> operands(a, b, pairs, row, rows);
    const Panels<T> c_rows(c + row * n3, n3, rows);
    const Parts<T> sums_a(pairs.n1, rows, cut.chunks);
    const Parts<T> sums_b(pairs.upper ? 0 : pairs.n2, rows, cut.chunks);
    const int64_t A_size = kDepth * kBlock;
    const int64_t most_thirds = stretch(n3, kPairThirds, kBlock);
    const int64_t scratch_size = A_size + tile_size(cut.tile, most_thirds);
    for_each_task<T>(cut, scratch_size, [&](const Task& task, T* scratch) {
      sums_a.clear(task);
      sums_b.clear(task);
      // A of some thirds at a time: sums over t are linear, so that each is contracted on its own.
      const auto add_tile = [&](int64_t begin, int64_t end, int64_t third, int64_t thirds) {
        const auto M = tile_of(weight, begin, end, third, thirds, scratch + A_size);
        for_each_block_of(task, [&](int64_t lane, int64_t lanes) {
          const Rows<T> A{scratch, kBlock};
          const Rows<T> to_a = sums_a.rows(task.chunk, lane);
          const Rows<T> to_b = pairs.upper ? to_a : sums_b.rows(task.chunk, lane);
          for (int64_t p = begin; p < end; p += kDepth) {
            const int64_t p_end = std::min(end, p + kDepth);
            const auto M_p = M.some_rows(p - begin, p_end - p).transposed();
            for (int64_t t = 0; t < thirds; t += kDepth)
              product<T>(M_p.some_rows(t, std::min(kDepth, thirds - t)).transposed(),
                         {c_rows[lane][third + t], kBlock}, lanes, A, t > 0);
            contract<T>(pairs, p, p_end, A, operands.a(lane), operands.b(lane), lanes, to_a, to_b);
          }
        });
      };
      for (int64_t begin = task.begin; begin < task.end; begin += cut.tile)
        for (int64_t third = 0; third < n3; third += most_thirds)
          add_tile(begin, std::min(task.end, begin + cut.tile), third,
                   std::min(most_thirds, n3 - third));
    });
    sums_a.store(nullptr, grad_a + row * pairs.n1);
    if (!pairs.upper) sums_b.store(nullptr, grad_b + row * pairs.n2);
  }
}

}  // namespace blockops::cpu
