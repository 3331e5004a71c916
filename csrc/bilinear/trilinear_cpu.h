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
#include <ATen/Parallel.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm_cpu_dispatch.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>

#include "core/simd.h"

namespace blockops::cpu {

constexpr int64_t kLanes = 256;             // batch rows of a tile
constexpr int64_t kTilePairs = 256;         // pairs of a tile: with kLanes 256 KiB of float32
constexpr int64_t kTasks = 16;              // parts to cut a pass into, where it is large enough
constexpr int64_t kTaskWork = 1 << 20;      // multiply-adds below which a part is not cut
constexpr int64_t kBufferBytes = 6 << 20;   // bound on transposed operands, and on partial sums

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
class Buffer {  // aligned, uninitialised
 public:
  explicit Buffer(int64_t size) : data_(c10::GetCPUAllocator()->allocate(size * sizeof(T))) {}
  T* get() const { return static_cast<T*>(data_.get()); }

 private:
  c10::DataPtr data_;
};

template <class T>
struct Matrix {  // a strided view
  T* data;
  int64_t rows, cols, row_stride, col_stride;
  Matrix transposed() const { return {data, cols, rows, col_stride, row_stride}; }
};

// out = a b, or out += a b: ATen's matrix product, straight to its CPU kernel. In a parallel region
// it runs on the calling thread.
template <class T>
void multiply(Matrix<const T> a, Matrix<const T> b, Matrix<T> out, bool accumulate) {
  const auto view = [](auto matrix) {
    return at::from_blob(const_cast<T*>(matrix.data), {matrix.rows, matrix.cols},
                         {matrix.row_stride, matrix.col_stride},
                         at::TensorOptions(c10::CppTypeToScalarType<T>::value));
  };
  auto result = view(out);
  if (accumulate) {
    at::cpu::addmm_(result, view(a), view(b));
  } else {
    at::cpu::mm_out(result, view(a), view(b));
  }
}

// Runs body(part) for every part in [0, count). at::parallel_for would run a single part outside of
// a parallel region, where ATen's product takes threads of its own and other bits with them: an
// empty second part keeps the region.
template <class Body>
void for_each_part(int64_t count, const Body& body) {
  at::parallel_for(0, std::max<int64_t>(count, 2), 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < std::min(last, count); ++part) body(part);
  });
}

// The pairs (u, v) in order: all of n1 x n2, or with `upper` those with u <= v of n1 = n2.
struct Pairs {
  int64_t n1, n2;
  bool upper;

  int64_t size() const { return upper ? n1 * (n1 + 1) / 2 : n1 * n2; }
  int64_t first_v(int64_t u) const { return upper ? u : 0; }
  int64_t row_start(int64_t u) const { return upper ? u * n2 - u * (u - 1) / 2 : u * n2; }
};

// Walks the stretches of pairs (u, v), (u, v + 1), ... of one u in [begin, end); `offset` counts
// pairs from begin.
struct Run {
  const Pairs& pairs;
  int64_t begin, end, offset = 0, u = 0, v = 0, count = 0;

  Run(const Pairs& pairs, int64_t begin, int64_t end) : pairs(pairs), begin(begin), end(end) {
    if (pairs.upper) {
      while (u + 1 < pairs.n1 && pairs.row_start(u + 1) <= begin) ++u;
    } else if (begin < end) {
      u = begin / pairs.n2;
    }
    v = pairs.first_v(u) + begin - pairs.row_start(u);
    count = std::min(pairs.n2 - v, end - begin);
  }
  bool valid() const { return count > 0; }
  void advance() {
    offset += count;
    v = pairs.first_v(++u);
    count = std::min(pairs.n2 - v, end - begin - offset);
  }
};

// Transposed operands, (features, batch): the row of feature f starts at data + f * stride.
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  T* operator[](int64_t feature) const { return data + feature * stride; }
};

// out[p - begin][r] = a_u[r] b_v[r].
template <class T>
BLOCKOPS_SIMD_CLONES void khatri_rao(const Pairs& pairs, int64_t begin, int64_t end,
                                     Rows<const T> a, Rows<const T> b, int64_t lanes, Rows<T> out) {
  for (Run run(pairs, begin, end); run.valid(); run.advance()) {
    const T* const a_u = a[run.u];
    for (int64_t s = 0; s < run.count; ++s) {
      const T* const b_v = b[run.v + s];
      T* __restrict const row = out[run.offset + s];
      for (int64_t r = 0; r < lanes; ++r) row[r] = a_u[r] * b_v[r];
    }
  }
}

// grad[r] += A_p[r] other[r]
template <class T>
inline void multiply_add(const T* A_p, const T* other, int64_t lanes, T* __restrict grad) {
  for (int64_t r = 0; r < lanes; ++r) grad[r] += A_p[r] * other[r];
}

// grad_a_u[r] += A_p[r] b_v[r] and grad_b_v[r] += A_p[r] a_u[r], each where it is wanted (not
// null). With grad_a = grad_b the two fall on the same rows, one after the other.
template <class T>
BLOCKOPS_SIMD_CLONES void contract(const Pairs& pairs, int64_t begin, int64_t end, Rows<const T> A,
                                   Rows<const T> a, Rows<const T> b, int64_t lanes,
                                   Rows<T> grad_a, Rows<T> grad_b) {
  for (Run run(pairs, begin, end); run.valid(); run.advance()) {
    for (int64_t s = 0; s < run.count; ++s) {
      const T* const A_p = A[run.offset + s];
      if (grad_a.data) multiply_add(A_p, b[run.v + s], lanes, grad_a[run.u]);
      if (grad_b.data) multiply_add(A_p, a[run.u], lanes, grad_b[run.v + s]);
    }
  }
}

// The matrix M of a form. Plain: M[p, t] = data[p * pair_stride + t * third_stride]. Symmetric (the
// pairs are `upper`): data is quadratic's weight (n, n, m) and M[(i, j), k] = W_ijk + W_jik, or
// W_iik: T needs only the sum.
template <class T>
struct Weight {
  Pairs pairs;
  int64_t n3;
  const T* data;
  int64_t pair_stride, third_stride;
};

// M of symmetric pairs [begin, end) as contiguous rows of n3.
template <class T>
BLOCKOPS_SIMD_CLONES void pack_symmetric(const Weight<T>& weight, int64_t begin, int64_t end,
                                         T* out) {
  const int64_t n = weight.pairs.n1, m = weight.n3;
  for (Run run(weight.pairs, begin, end); run.valid(); run.advance()) {
    const T* upper = weight.data + (run.u * n + run.v) * m;
    const T* lower = weight.data + (run.v * n + run.u) * m;
    T* __restrict row = out + run.offset * m;
    for (int64_t s = 0; s < run.count; ++s, upper += m, lower += n * m, row += m) {
      const bool diagonal = run.v + s == run.u;
      for (int64_t k = 0; k < m; ++k) row[k] = diagonal ? upper[k] : upper[k] + lower[k];
    }
  }
}

// The way back: grad (n, n, m) from `parts` packed gradients, part_stride apart, which are summed.
template <class T>
BLOCKOPS_SIMD_CLONES void unpack_symmetric(const Weight<T>& packed, int64_t parts,
                                           int64_t part_stride, int64_t begin, int64_t end,
                                           T* grad) {
  const int64_t n = packed.pairs.n1, m = packed.n3;
  for (Run run(packed.pairs, begin, end); run.valid(); run.advance()) {
    for (int64_t s = 0; s < run.count; ++s) {
      const T* const row = packed.data + (begin + run.offset + s) * packed.pair_stride;
      T* const upper = grad + (run.u * n + run.v + s) * m;
      T* const lower = grad + ((run.v + s) * n + run.u) * m;
      for (int64_t k = 0; k < m; ++k) {
        T sum = row[k * packed.third_stride];
        for (int64_t part = 1; part < parts; ++part)
          sum += row[part * part_stride + k * packed.third_stride];
        upper[k] = lower[k] = sum;
      }
    }
  }
}

// grad[i] = the sum of the parts, part_stride apart, in order.
template <class T>
BLOCKOPS_SIMD_CLONES void sum_parts(const T* partial, int64_t parts, int64_t part_stride,
                                    int64_t begin, int64_t end, T* grad) {
  for (int64_t i = begin; i < end; ++i) {
    T sum = partial[i];
    for (int64_t part = 1; part < parts; ++part) sum += partial[part * part_stride + i];
    grad[i] = sum;
  }
}

// (batch, features) -> (features, batch), for the batch rows [begin, end).
template <class T>
BLOCKOPS_SIMD_CLONES void transpose_in(const T* in, int64_t features, int64_t begin, int64_t end,
                                       Rows<T> out) {
  for (int64_t f = 0; f < features; ++f)
    for (int64_t r = begin; r < end; ++r) out[f][r] = in[r * features + f];
}

// The way back, with `parts` partial sums, part_stride apart, added in order, and a bias (or null).
template <class T>
BLOCKOPS_SIMD_CLONES void transpose_out(Rows<const T> in, int64_t parts, int64_t part_stride,
                                        const T* bias, int64_t features, int64_t begin, int64_t end,
                                        T* out) {
  for (int64_t f = 0; f < features; ++f) {
    const T start = bias ? bias[f] : T(0);
    for (int64_t r = begin; r < end; ++r) {
      T sum = start + in[f][r];
      for (int64_t part = 1; part < parts; ++part) sum += in[f][part * part_stride + r];
      out[r * features + f] = sum;
    }
  }
}

// How a pass over `rows` of the batch is cut into tasks: groups of lanes times chunks of pairs.
struct Cut {
  int64_t rows, groups, lanes, pairs, chunks, chunk_pairs;

  Cut(int64_t rows, int64_t pairs, int64_t n3, int64_t max_chunks) : rows(rows), pairs(pairs) {
    groups = ceil_div(rows, kLanes);
    lanes = ceil_div(ceil_div(rows, groups), 16) * 16;
    const int64_t tasks = std::clamp<int64_t>(rows * pairs * n3 / kTaskWork, 1, kTasks);
    const int64_t tiles = ceil_div(pairs, kTilePairs);
    const int64_t wanted = std::clamp<int64_t>(tasks / groups, 1, std::min(tiles, max_chunks));
    chunk_pairs = ceil_div(tiles, wanted) * kTilePairs;
    chunks = ceil_div(pairs, chunk_pairs);
  }
};

struct Task {
  int64_t lane, lanes;  // rows of the batch [lane, lane + lanes)
  int64_t chunk, begin, end;  // pairs [begin, end)
};

// Runs body(task, scratch) for every task of a cut, with scratch of that size.
template <class T, class Body>
void for_each_task(const Cut& cut, int64_t scratch_size, const Body& body) {
  for_each_part(cut.groups * cut.chunks, [&](int64_t index) {
    const Buffer<T> scratch(scratch_size);
    Task task;
    task.lane = index % cut.groups * cut.lanes;
    task.lanes = std::min(cut.lanes, cut.rows - task.lane);
    task.chunk = index / cut.groups;
    task.begin = task.chunk * cut.chunk_pairs;
    task.end = std::min(cut.pairs, task.begin + cut.chunk_pairs);
    body(task, scratch.get());
  });
}

// The operands a and b of some rows of the batch, transposed. One copy where the pairs are
// symmetric, so that a is b; none of an operand that the pass does not need (null).
template <class T>
class Operands {
 public:
  Operands(const T* a, const T* b, const Pairs& pairs, int64_t row, int64_t rows)
      : rows_(rows), a_(0), b_(0) {
    if (a) a_ = transposed(a + row * pairs.n1, rows, pairs.n1);
    if (b && !pairs.upper) b_ = transposed(b + row * pairs.n2, rows, pairs.n2);
  }
  Rows<const T> a(int64_t lane) const { return {a_.get() + lane, rows_}; }
  Rows<const T> b(int64_t lane) const { return {(b_.get() ? b_ : a_).get() + lane, rows_}; }

 private:
  static Buffer<T> transposed(const T* in, int64_t rows, int64_t features) {
    Buffer<T> out(rows * features);
    for_each_part(ceil_div(rows, kLanes), [&](int64_t group) {
      const int64_t lane = group * kLanes;
      transpose_in(in, features, lane, std::min(rows, lane + kLanes), Rows<T>{out.get(), rows});
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
      : features_(features), rows_(rows), parts_(parts), data_(features * rows * parts) {}
  Rows<T> rows(int64_t part, int64_t lane) const {
    if (!data_.get()) return {nullptr, 0};
    return {data_.get() + part * features_ * rows_ + lane, rows_};
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
      const int64_t lane = group * kLanes;
      transpose_out(Rows<const T>{data_.get(), rows_}, parts_, features_ * rows_, bias, features_,
                    lane, std::min(rows_, lane + kLanes), out);
    });
  }

 private:
  int64_t features_, rows_, parts_;
  Buffer<T> data_;
};

// Tiles of M for the products: views of a plain weight. Symmetric pairs are packed: once for all
// where several groups of lanes will ask for them, else tile by tile into the caller's scratch.
template <class T>
class Tiles {
 public:
  Tiles(const Weight<T>& weight, int64_t batch) : weight_(weight), packed_(0) {
    if (!weight.pairs.upper || batch <= kLanes) return;
    const int64_t size = weight.pairs.size();
    packed_ = Buffer<T>(size * weight.n3);
    for_each_part(ceil_div(size, kTilePairs), [&](int64_t tile) {
      const int64_t begin = tile * kTilePairs;
      pack_symmetric(weight_, begin, std::min(size, begin + kTilePairs),
                     packed_.get() + begin * weight_.n3);
    });
  }
  int64_t scratch_size() const {
    return weight_.pairs.upper && !packed_.get() ? kTilePairs * weight_.n3 : 0;
  }
  Matrix<const T> tile(int64_t begin, int64_t end, T* scratch) const {
    const int64_t n3 = weight_.n3;
    if (!weight_.pairs.upper) {
      return {weight_.data + begin * weight_.pair_stride, end - begin, n3, weight_.pair_stride,
              weight_.third_stride};
    }
    if (packed_.get()) return {packed_.get() + begin * n3, end - begin, n3, n3, 1};
    pack_symmetric(weight_, begin, end, scratch);
    return {scratch, end - begin, n3, n3, 1};
  }

 private:
  Weight<T> weight_;
  Buffer<T> packed_;
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
  const Tiles<T> tiles(weight, batch);
  const int64_t step = batch_step<T>(batch, pairs.n1 + pairs.n2 + n3);
  for (int64_t row = 0; row < batch; row += step) {
    const int64_t rows = std::min(step, batch - row);
    const Cut cut(rows, pairs.size(), n3, max_parts<T>(rows * n3));
    const Operands<T> operands(a, b, pairs, row, rows);
    const Parts<T> sums(n3, rows, cut.chunks);
    const int64_t products_size = kTilePairs * cut.lanes;
    for_each_task<T>(cut, products_size + tiles.scratch_size(), [&](const Task& task, T* scratch) {
      const Rows<T> products{scratch, task.lanes};
      const Matrix<T> out{sums.rows(task.chunk, task.lane).data, n3, task.lanes, rows, 1};
      for (int64_t p = task.begin; p < task.end; p += kTilePairs) {
        const int64_t end = std::min(task.end, p + kTilePairs);
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
// (batch, n) where it is wanted, else null; an operand that only the unwanted one needs may be null
// too. Symmetric pairs: a = b, and grad_a takes both sums.
template <class T>
void pair_pass(const Weight<T>& weight, int64_t batch, const T* a, const T* b, const T* c,
               const T* bias_a, T* grad_a, T* grad_b) {
  const auto& pairs = weight.pairs;
  const int64_t n3 = weight.n3;
  const Tiles<T> tiles(weight, batch);
  const int64_t step = batch_step<T>(batch, 2 * (pairs.n1 + pairs.n2));
  for (int64_t row = 0; row < batch; row += step) {
    const int64_t rows = std::min(step, batch - row);
    const Cut cut(rows, pairs.size(), n3, max_parts<T>(rows * (pairs.n1 + pairs.n2)));
    const Operands<T> operands(a, b, pairs, row, rows);
    const Parts<T> sums_a(grad_a ? pairs.n1 : 0, rows, cut.chunks);
    const Parts<T> sums_b(grad_b ? pairs.n2 : 0, rows, cut.chunks);
    const int64_t products_size = kTilePairs * cut.lanes;
    for_each_task<T>(cut, products_size + tiles.scratch_size(), [&](const Task& task, T* scratch) {
      sums_a.clear(task);
      sums_b.clear(task);
      const Rows<T> to_a = sums_a.rows(task.chunk, task.lane);
      const Rows<T> to_b = pairs.upper ? to_a : sums_b.rows(task.chunk, task.lane);
      const Matrix<const T> c_rows{c + (row + task.lane) * n3, task.lanes, n3, n3, 1};
      for (int64_t p = task.begin; p < task.end; p += kTilePairs) {
        const int64_t end = std::min(task.end, p + kTilePairs);
        multiply<T>(tiles.tile(p, end, scratch + products_size), c_rows.transposed(),
                    {scratch, end - p, task.lanes, task.lanes, 1}, false);
        contract<T>(pairs, p, end, {scratch, task.lanes}, operands.a(task.lane),
                    operands.b(task.lane), task.lanes, to_a, to_b);
      }
    });
    if (grad_a) sums_a.store(bias_a, grad_a + row * pairs.n1);
    if (grad_b) sums_b.store(nullptr, grad_b + row * pairs.n2);
  }
}

// M[uv, t] = sum_b a_bu b_bv c_bt: plain, to grad at pair_stride and third_stride (contiguous as a
// whole); symmetric, to both halves of grad (n, n, n3).
template <class T>
void matrix_pass(const Pairs& pairs, int64_t n3, int64_t batch, const T* a, const T* b, const T* c,
                 T* grad, int64_t pair_stride, int64_t third_stride) {
  const int64_t size = pairs.size(), tiles = ceil_div(size, kTilePairs);
  const int64_t step = batch_step<T>(batch, pairs.n1 + pairs.n2);
  const int64_t groups = ceil_div(step, kLanes);
  // The batch is cut, at the price of partial sums, only where there are few tiles.
  const int64_t tasks = std::clamp<int64_t>(batch * size * n3 / kTaskWork, 1, kTasks);
  const int64_t wanted =
      std::clamp<int64_t>(tasks / tiles, 1, std::min(groups, max_parts<T>(size * n3)));
  const int64_t part_groups = ceil_div(groups, wanted), parts = ceil_div(groups, part_groups);
  const bool direct = parts == 1 && !pairs.upper;
  const Buffer<T> partial(direct ? 0 : parts * size * n3);
  if (pairs.upper) {  // ATen's product likes a long first dimension; so does unpacking
    pair_stride = n3 < 32 ? 1 : n3;
    third_stride = n3 < 32 ? size : 1;
  }
  for (int64_t row = 0; row < batch; row += step) {
    const int64_t rows = std::min(step, batch - row);
    const Operands<T> operands(a, b, pairs, row, rows);
    for_each_part(tiles * parts, [&](int64_t index) {
      const Buffer<T> products(kTilePairs * kLanes);
      const int64_t p = index % tiles * kTilePairs, part = index / tiles;
      const int64_t count = std::min(kTilePairs, size - p);
      T* const out = (direct ? grad : partial.get() + part * size * n3) + p * pair_stride;
      const int64_t begin = part * part_groups * kLanes;
      const int64_t end = std::min(rows, begin + part_groups * kLanes);
      for (int64_t lane = begin; lane < end; lane += kLanes) {
        const int64_t lanes = std::min(kLanes, end - lane);
        khatri_rao<T>(pairs, p, p + count, operands.a(lane), operands.b(lane), lanes,
                      {products.get(), lanes});
        multiply<T>({products.get(), count, lanes, lanes, 1},
                    {c + (row + lane) * n3, lanes, n3, n3, 1},
                    {out, count, n3, pair_stride, third_stride}, row > 0 || lane > begin);
      }
    });
  }
  if (direct) return;
  const Weight<T> packed{pairs, n3, partial.get(), pair_stride, third_stride};
  for_each_part(tiles, [&](int64_t tile) {
    const int64_t begin = tile * kTilePairs, end = std::min(size, begin + kTilePairs);
    if (pairs.upper) {
      unpack_symmetric(packed, parts, size * n3, begin, end, grad);
    } else {
      sum_parts(partial.get(), parts, size * n3, begin * n3, end * n3, grad);
    }
  });
}

}  // namespace blockops::cpu
