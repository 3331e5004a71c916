// The third and the pair pass of trilinear_cpu.h for a third slot of few features (n3 <= kNarrow),
// where a matrix product would be too thin: M[uv, :] c is summed in registers, for a block of batch
// rows at a time.
#pragma once
#include <array>

#include "bilinear/trilinear_cpu.h"

namespace blockops::cpu {

constexpr int64_t kNarrow = 16;
// Up to here the input gradient of symmetric pairs takes the full square of M: twice the sums, but
// none of them through memory, which is what the pairs u <= v cost then.
constexpr int64_t kSquare = 3;
constexpr int64_t kPackSize = 1 << 12;  // elements of M that are packed at a time, at most
constexpr int64_t kShared = 1 << 21;  // multiply-adds below which one thread does all: it has M in
                                      // its cache, and that M reached another's would take longer

// What the next block reads of many features and this one writes, asked for while this one is
// computed: at once it would be more lines than can be under way, and the block would wait for
// them.
class Coming {
 public:
  // Rows [begin, begin + lanes) of a tensor (batch, features), as far as there are so many.
  template <class T>
  void add(const T* data, int64_t features, int64_t begin, int64_t batch, int64_t lanes) {
    const int64_t end = std::min(begin + lanes, batch);
    if (begin < end)
      ranges_[count_++] = {reinterpret_cast<const char*>(data + begin * features),
                           reinterpret_cast<const char*>(data + end * features)};
  }
  // It is asked for in so many turns.
  void spread(int64_t turns) {
    int64_t bytes = 0;
    for (int i = 0; i < count_; ++i) bytes += ranges_[i].end - ranges_[i].at;
    share_ = ceil_div(ceil_div(bytes, kLine), turns) + 1;
  }
  [[gnu::always_inline]] void ask() {
    for (int64_t i = 0; i < share_ && next_ < count_; ++i) {
      Range& range = ranges_[next_];
      __builtin_prefetch(range.at, /*write=*/0, /*locality=*/2);
      range.at += kLine;
      if (range.at >= range.end) ++next_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  struct Range {
    const char *at, *end;
  };
  std::array<Range, 4> ranges_;
  int64_t share_ = 0;
  int count_ = 0, next_ = 0;
};

// A block of `lanes` batch rows in `vectors` registers; M * vectors sums fit.
template <class T, class Registers, int M>
struct Block {
  typedef T Vector __attribute__((vector_size(Registers::bytes)));
  static constexpr int vectors = M * 4 <= Registers::sums ? 4 : M * 2 <= Registers::sums ? 2 : 1;
  static constexpr int rows = std::max(1, Registers::sums / (M * vectors));  // features u at once
  static constexpr int64_t lanes = vectors * static_cast<int64_t>(sizeof(Vector) / sizeof(T));
};

// c_t += sum_v M[uv, t] a_u b_v for `rows` features u from `first` on: each b_v is read once for
// all. Of symmetric pairs the square is apart: in one sum with the rest an infinite a_u would lose
// its sign.
template <class T, class Registers, int M, int rows, class Vector, int vectors>
[[gnu::always_inline]] inline void narrow_third_rows(const Pairs& pairs, int64_t first,
                                                     const T* weight, const Vector* a,
                                                     const Vector* b, Vector (&c)[M][vectors]) {
  Vector sum[rows][M][vectors] = {};
  const T* M_u[rows];
  const int64_t begin = pairs.upper ? first + rows : 0;  // the first v of all of them
#pragma GCC unroll 24                                    // or the sums would be kept in memory
  for (int u = 0; u < rows; ++u) {
    M_u[u] = weight + pairs.row_start(first + u) * M;
    if (!pairs.upper) continue;
    for (int i = 0; i < vectors; ++i) {
      const Vector square = a[(first + u) * vectors + i] * a[(first + u) * vectors + i];
      for (int t = 0; t < M; ++t) c[t][i] += M_u[u][t] * square;
    }
#pragma GCC unroll 24
    for (int v = u + 1; v < rows; ++v)
      for (int t = 0; t < M; ++t)
        for (int i = 0; i < vectors; ++i)
          sum[u][t][i] += M_u[u][(v - u) * M + t] * b[(first + v) * vectors + i];
    M_u[u] += (rows - u) * M;
  }
  for (int64_t v = begin; v < pairs.n2; ++v)
    for (int u = 0; u < rows; ++u)
      for (int t = 0; t < M; ++t)
        for (int i = 0; i < vectors; ++i)
          sum[u][t][i] += M_u[u][(v - begin) * M + t] * b[v * vectors + i];
  for (int u = 0; u < rows; ++u)
    for (int t = 0; t < M; ++t)
      for (int i = 0; i < vectors; ++i) c[t][i] += sum[u][t][i] * a[(first + u) * vectors + i];
}

// c_t = sum_uv M[uv, t] a_u b_v for one block; a, b and c are (features, lanes), M has rows of n3.
template <class T, class Registers, int M>
BLOCKOPS_SIMD_CLONES void narrow_third_block(const Pairs& pairs, const T* weight, const T* a_rows,
                                             const T* b_rows, T* c_rows, Coming& coming) {
  using Vector = typename Block<T, Registers, M>::Vector;
  constexpr int vectors = Block<T, Registers, M>::vectors;
  constexpr int rows = Block<T, Registers, M>::rows;
  const auto* const a = reinterpret_cast<const Vector*>(a_rows);
  const auto* const b = reinterpret_cast<const Vector*>(b_rows);
  Vector c[M][vectors] = {};
  coming.spread(pairs.n1 / rows + 1);
  int64_t u = 0;
  for (; u + rows <= pairs.n1; u += rows) {
    coming.ask();
    narrow_third_rows<T, Registers, M, rows>(pairs, u, weight, a, b, c);
  }
  coming.ask();
  for (; u < pairs.n1; ++u) narrow_third_rows<T, Registers, M, 1>(pairs, u, weight, a, b, c);
  for (int t = 0; t < M; ++t)
    for (int i = 0; i < vectors; ++i) reinterpret_cast<Vector*>(c_rows)[t * vectors + i] = c[t][i];
}

// With A_uv = sum_t M[uv, t] c_t: grad_a_u += sum_v A_uv b_v and grad_b_v += sum_u A_uv a_u for one
// block. grad_a may be grad_b.
template <class T, class Registers, int M>
BLOCKOPS_SIMD_CLONES void narrow_pair_block(const Pairs& pairs, const T* weight, const T* a_rows,
                                            const T* b_rows, const T* c_rows, T* grad_a_rows,
                                            T* grad_b_rows, Coming& coming) {
  using Vector = typename Block<T, Registers, M>::Vector;
  constexpr int vectors = Block<T, Registers, M>::vectors;
  const auto* const a = reinterpret_cast<const Vector*>(a_rows);
  const auto* const b = reinterpret_cast<const Vector*>(b_rows);
  auto* const grad_a = reinterpret_cast<Vector*>(grad_a_rows);
  auto* const grad_b = reinterpret_cast<Vector*>(grad_b_rows);
  Vector c[M][vectors];
  for (int t = 0; t < M; ++t)
    for (int i = 0; i < vectors; ++i)
      c[t][i] = reinterpret_cast<const Vector*>(c_rows)[t * vectors + i];
  coming.spread(pairs.n1);
  for (int64_t u = 0; u < pairs.n1; ++u) {
    coming.ask();
    Vector a_u[vectors], to_a[vectors] = {};
    for (int i = 0; i < vectors; ++i) a_u[i] = a[u * vectors + i];
    for (int64_t v = pairs.first_v(u); v < pairs.n2; ++v, weight += M) {
      Vector A[vectors] = {};
      for (int t = 0; t < M; ++t)
        for (int i = 0; i < vectors; ++i) A[i] += weight[t] * c[t][i];
      for (int i = 0; i < vectors; ++i) to_a[i] += A[i] * b[v * vectors + i];
      for (int i = 0; i < vectors; ++i) grad_b[v * vectors + i] += A[i] * a_u[i];
    }
    for (int i = 0; i < vectors; ++i) grad_a[u * vectors + i] += to_a[i];
  }
}

// grad_a_u = sum_t c_t sum_v M[uv, t] a_v for `rows` features u of one block, of which weight,
// (rows, n, M), and grad_a are the first.
template <class T, class Registers, int M, int rows, class Vector>
[[gnu::always_inline]] inline void narrow_square_rows(int64_t n, const T* weight, const Vector* a,
                                                      const Vector* c, Vector* grad_a) {
  constexpr int vectors = Block<T, Registers, M>::vectors;
  Vector sum[rows][M][vectors] = {};
  for (int64_t v = 0; v < n; ++v)
    for (int u = 0; u < rows; ++u)
      for (int t = 0; t < M; ++t)
        for (int i = 0; i < vectors; ++i)
          sum[u][t][i] += weight[(u * n + v) * M + t] * a[v * vectors + i];
  for (int u = 0; u < rows; ++u)
    for (int i = 0; i < vectors; ++i) {
      Vector total = {};
      for (int t = 0; t < M; ++t) total += sum[u][t][i] * c[t * vectors + i];
      grad_a[u * vectors + i] = total;
    }
}

// The same for one block; M is (n, n, n3), symmetric in u and v.
template <class T, class Registers, int M>
BLOCKOPS_SIMD_CLONES void narrow_square_block(int64_t n, const T* weight, const T* a_rows,
                                              const T* c_rows, T* grad_rows, Coming& coming) {
  using Vector = typename Block<T, Registers, M>::Vector;
  constexpr int vectors = Block<T, Registers, M>::vectors;
  constexpr int rows = Block<T, Registers, M>::rows;
  const auto* const a = reinterpret_cast<const Vector*>(a_rows);
  const auto* const c = reinterpret_cast<const Vector*>(c_rows);
  auto* const grad = reinterpret_cast<Vector*>(grad_rows);
  coming.spread(n / rows + 1);
  int64_t u = 0;
  for (; u + rows <= n; u += rows) {
    coming.ask();
    narrow_square_rows<T, Registers, M, rows>(n, weight + u * n * M, a, c, grad + u * vectors);
  }
  coming.ask();
  for (; u < n; ++u)
    narrow_square_rows<T, Registers, M, 1>(n, weight + u * n * M, a, c, grad + u * vectors);
}

// Rows [begin, begin + lanes) of in (batch, features), transposed to (features, lanes); rows past
// the batch are zero.
template <class T>
void load_block(const T* in, int64_t features, int64_t begin, int64_t batch, int64_t lanes,
                T* out) {
  const int64_t rows = std::min(lanes, batch - begin);
  if (rows < lanes) std::fill(out, out + features * lanes, T(0));
  transpose(in + begin * features, features, rows, features, out, lanes);
}

// The way back, with a bias (features) or null.
template <class T>
void store_block(T* in, const T* bias, int64_t features, int64_t begin, int64_t batch,
                 int64_t lanes, T* out) {
  const int64_t rows = std::min(lanes, batch - begin);
  if (bias)
    for (int64_t f = 0; f < features; ++f) add_constant(in + f * lanes, bias[f], rows);
  transpose(in, lanes, features, rows, out + begin * features, features);
}

inline int64_t most_threads(const Pairs& pairs, int64_t n3, int64_t batch) {
  return batch * pairs.size() * n3 < kShared ? 1 : INT64_MAX;
}

// Runs body(block's first row, scratch) for each block of rows.
template <class T, class Body>
void for_each_block(int64_t batch, int64_t lanes, int64_t scratch_size, int64_t most_threads,
                    const Body& body) {
  const int64_t blocks = ceil_div(batch, lanes);
  const int64_t part_blocks = ceil_div(blocks, kTasks);
  for_each_part(ceil_div(blocks, part_blocks), most_threads, [&](int64_t part) {
    const Buffer<T> scratch(scratch_size);
    const int64_t end = std::min(blocks, (part + 1) * part_blocks);
    for (int64_t block = part * part_blocks; block < end; ++block)
      body(block * lanes, scratch.get());
  });
}

template <class T, class Registers, int M>
void narrow_third(const Pairs& pairs, const T* weight, int64_t batch, const T* a, const T* b,
                  const T* bias, T* c) {
  constexpr int64_t lanes = Block<T, Registers, M>::lanes;
  const int64_t size_a = pairs.n1 * lanes, size_b = pairs.upper ? 0 : pairs.n2 * lanes;
  const int64_t size = size_a + size_b, threads = most_threads(pairs, M, batch);
  for_each_block<T>(batch, lanes, size + M * lanes, threads, [&](int64_t row, T* block_a) {
    T* const block_b = pairs.upper ? block_a : block_a + size_a;
    T* const block_c = block_a + size;
    load_block(a, pairs.n1, row, batch, lanes, block_a);
    if (!pairs.upper) load_block(b, pairs.n2, row, batch, lanes, block_b);
    Coming coming;
    coming.add(a, pairs.n1, row + lanes, batch, lanes);
    if (!pairs.upper) coming.add(b, pairs.n2, row + lanes, batch, lanes);
    narrow_third_block<T, Registers, M>(pairs, weight, block_a, block_b, block_c, coming);
    store_block(block_c, bias, M, row, batch, lanes, c);
  });
}

template <class T, class Registers, int M>
void narrow_pair(const Pairs& pairs, const T* weight, int64_t batch, const T* a, const T* b,
                 const T* c, T* grad_a, T* grad_b) {
  constexpr int64_t lanes = Block<T, Registers, M>::lanes;
  const int64_t size_a = pairs.n1 * lanes, size_b = pairs.upper ? 0 : pairs.n2 * lanes;
  const int64_t size = size_a + size_b;
  const int64_t threads = most_threads(pairs, M, batch);
  for_each_block<T>(batch, lanes, 2 * size + M * lanes, threads, [&](int64_t row, T* block_a) {
    T* const block_b = pairs.upper ? block_a : block_a + size_a;
    T* const to_a = block_a + size;
    T* const to_b = pairs.upper ? to_a : to_a + size_a;
    T* const block_c = to_a + size;
    load_block(a, pairs.n1, row, batch, lanes, block_a);
    if (!pairs.upper) load_block(b, pairs.n2, row, batch, lanes, block_b);
    load_block(c, M, row, batch, lanes, block_c);
    std::fill(to_a, to_a + size, T(0));
    Coming coming;
    coming.add(grad_a, pairs.n1, row, batch, lanes);
    if (!pairs.upper) coming.add(grad_b, pairs.n2, row, batch, lanes);
    coming.add(a, pairs.n1, row + lanes, batch, lanes);
    if (!pairs.upper) coming.add(b, pairs.n2, row + lanes, batch, lanes);
    narrow_pair_block<T, Registers, M>(pairs, weight, block_a, block_b, block_c, to_a, to_b,
                                       coming);
    store_block<T>(to_a, nullptr, pairs.n1, row, batch, lanes, grad_a);
    if (!pairs.upper) store_block<T>(to_b, nullptr, pairs.n2, row, batch, lanes, grad_b);
  });
}

template <class T, class Registers, int M>
void narrow_square(int64_t n, const T* weight, int64_t batch, const T* a, const T* c, T* grad) {
  constexpr int64_t lanes = Block<T, Registers, M>::lanes;
  const int64_t threads = most_threads({n, n, true}, M, batch);
  for_each_block<T>(batch, lanes, (2 * n + M) * lanes, threads, [&](int64_t row, T* block_a) {
    T* const block_grad = block_a + n * lanes;
    T* const block_c = block_grad + n * lanes;
    load_block(a, n, row, batch, lanes, block_a);
    load_block(c, M, row, batch, lanes, block_c);
    Coming coming;
    coming.add(grad, n, row, batch, lanes);
    coming.add(a, n, row + lanes, batch, lanes);
    narrow_square_block<T, Registers, M>(n, weight, block_a, block_c, block_grad, coming);
    store_block<T>(block_grad, nullptr, n, row, batch, lanes, grad);
  });
}

// All of M as rows of n3.
template <class T>
Buffer<T> weight_rows(const Weight<T>& weight, int64_t threads) {
  const int64_t size = weight.pairs.size(), n3 = weight.n3;
  const int64_t part = stretch(size, ceil_div(kPackSize, n3), 8);
  Buffer<T> rows(size * n3);
  for_each_part(ceil_div(size, part), threads, [&](int64_t nth) {
    const int64_t begin = nth * part, end = std::min(size, begin + part);
    T* const out = rows.get() + begin * n3;
    if (weight.pairs.upper) {
      pack_symmetric(weight, begin, end, 0, n3, {out, n3});
    } else {
      transpose(weight.data + begin, weight.third_stride, n3, end - begin, out, n3);
    }
  });
  return rows;
}

// W_ijk + W_jik of quadratic's weight, for all i and j.
template <class T>
Buffer<T> symmetric_square(const Weight<T>& weight, int64_t threads) {
  const int64_t n = weight.pairs.n1, m = weight.n3;
  Buffer<T> square(n * n * m);
  for_each_part(n, threads, [&](int64_t i) {
    for (int64_t j = 0; j < n; ++j)
      for (int64_t k = 0; k < m; ++k)
        square.get()[(i * n + j) * m + k] =
            weight.data[(i * n + j) * m + k] + weight.data[(j * n + i) * m + k];
  });
  return square;
}

// Calls body with the registers and with n3, of 1 to `most`, as a constant of its type.
template <int most = kNarrow, class Body>
void with_constants(int64_t n3, const Body& body) {
  if constexpr (most > 1) {
    if (n3 < most) return with_constants<most - 1>(n3, body);
  }
  with_registers([&](auto registers) { body(registers, std::integral_constant<int, most>()); });
}

// third_pass for n3 <= kNarrow.
template <class T>
void narrow_third_pass(const Weight<T>& weight, int64_t batch, const T* a, const T* b,
                       const T* bias, T* c) {
  const Buffer<T> rows = weight_rows(weight, most_threads(weight.pairs, weight.n3, batch));
  with_constants(weight.n3, [&](auto registers, auto n3) {
    narrow_third<T, decltype(registers), n3>(weight.pairs, rows.get(), batch, a, b, bias, c);
  });
}

// pair_pass for n3 <= kNarrow.
template <class T>
void narrow_pair_pass(const Weight<T>& weight, int64_t batch, const T* a, const T* b, const T* c,
                      T* grad_a, T* grad_b) {
  if (weight.pairs.upper && weight.n3 <= kSquare) {
    const Buffer<T> square = symmetric_square(weight, most_threads(weight.pairs, weight.n3, batch));
    with_constants<kSquare>(weight.n3, [&](auto registers, auto n3) {
      narrow_square<T, decltype(registers), n3>(weight.pairs.n1, square.get(), batch, a, c, grad_a);
    });
    return;
  }
  const Buffer<T> rows = weight_rows(weight, most_threads(weight.pairs, weight.n3, batch));
  with_constants(weight.n3, [&](auto registers, auto n3) {
    narrow_pair<T, decltype(registers), n3>(weight.pairs, rows.get(), batch, a, b, c, grad_a,
                                            grad_b);
  });
}

}  // namespace blockops::cpu
