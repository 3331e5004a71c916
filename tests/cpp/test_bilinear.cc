// The CUDA kernels of quadratic and bilinear, every pass against its formula in float64.
#include "bilinear/bilinear.cuh"
#include "check.h"

using namespace blockops;
using namespace blockops::device;
using check::Buffer;

namespace {

struct Shape {
  int64_t B;
  int n1, n2, m;  // quadratic takes n1 for both
};

// In blocks of rows, columns, depths and features: below one, just one, above; wide and narrow; in
// need of many splits; of one feature or output.
const std::vector<Shape> kShapes = {
    {1, 3, 3, 2},      {2, 20, 20, 10},  {33, 17, 22, 5}, {40, 65, 70, 20}, {7, 70, 65, 33},
    {130, 33, 31, 65}, {300, 40, 45, 3}, {40, 90, 95, 1}, {300, 1, 1, 20},  {129, 33, 1, 70},
    {5, 1, 129, 17},   {64, 64, 64, 64}, {3, 130, 5, 17}, {200, 16, 15, 16}};
const std::vector<Shape> kQuickShapes = {
    {2, 20, 20, 10}, {130, 9, 31, 20}, {33, 70, 1, 17}, {5, 9, 70, 17}};
// All of them in the first schedule only: they take a while.
const std::vector<Shape>& shapes() {
  return check::quick || device::cpu::schedule != 0 ? kQuickShapes : kShapes;
}

enum class Values { kIntegers, kNormal, kPositive };

template <class T>
Buffer<T> filled(int64_t size, Values values, unsigned seed, int64_t offset) {
  if (values == Values::kNormal) return check::normal<T>(size, seed, offset);
  Buffer<T> buffer = check::integers<T>(size, seed, offset);
  if (values == Values::kPositive) {
    for (int64_t i = 0; i < size; ++i) buffer[i] = narrow<T>(widen(buffer[i]) > 0 ? 2 : 1);
  }
  return buffer;
}

// A sum and the sum of its terms' absolute values.
struct Truth {
  std::vector<double> value, scale;
  explicit Truth(int64_t size) : value(size), scale(size) {}
  void add(int64_t at, double term) {
    value[at] += term;
    scale[at] += std::abs(term);
  }
};

// How the kernels are run and what is asked of them.
struct Run {
  Values values = Values::kIntegers;
  double element = 0;  // 0: every element must be exact
  bool tf32 = false;
  int64_t offset = 0;  // of every operand, in elements
  int processors = 4;
  int special = -1;  // which argument gets `value` in its middle
  double value = 0;
};

// Scratch memory that begins as NaN.
struct Scratch {
  std::vector<Buffer<char>> held;
  Launch launch;
  explicit Scratch(const Run& run) : launch{nullptr, run.processors, run.tf32, {}} {
    launch.allocate = [this](int64_t bytes) -> void* { return held.emplace_back(bytes).data(); };
  }
};

template <class T>
void compare(const std::string& name, const Buffer<T>& actual, const Truth& truth, const Run& run) {
  if (run.element == 0) {
    check::equal(name, actual, truth.value);
  } else {
    check::close(name, actual, truth.value, truth.scale, run.element);
  }
}

template <class T>
std::vector<Buffer<T>> arguments(const std::vector<int64_t>& sizes, const Run& run) {
  std::vector<Buffer<T>> made;
  for (size_t i = 0; i < sizes.size(); ++i) {
    made.push_back(filled<T>(sizes[i], run.values, unsigned(i + 1), run.offset));
    if (run.special == int(i)) made[i][sizes[i] / 2] = narrow<T>(Sum<T>(run.value));
  }
  return made;
}

std::string text(const char* op, const Shape& s) {
  return std::string(op) + " B=" + std::to_string(s.B) + " n1=" + std::to_string(s.n1) +
         " n2=" + std::to_string(s.n2) + " m=" + std::to_string(s.m) + " ";
}

template <class T>
void quadratic(const Shape& s, const Run& run) {
  const int64_t B = s.B, n = s.n1, m = s.m;
  const auto given = arguments<T>({B * n, n * n * m, m, B * m}, run);
  const Buffer<T>&x = given[0], &W = given[1], &bias = given[2], &grad = given[3];
  Truth y(B * m), grad_x(B * n), grad_W(n * n * m);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t k = 0; k < m; ++k) {
      const double g = widen(grad[b * m + k]);
      y.add(b * m + k, widen(bias[k]));
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < n; ++j) {
          const int64_t at = (i * n + j) * m + k;
          const double w = widen(W[at]), xi = widen(x[b * n + i]), xj = widen(x[b * n + j]);
          y.add(b * m + k, w * xi * xj);
          grad_x.add(b * n + i, w * xj * g);
          grad_x.add(b * n + j, w * xi * g);
          grad_W.add(at, xi * xj * g);
        }
    }
  Scratch scratch(run);
  Buffer<T> got_y(B * m, run.offset), got_x(B * n, run.offset), got_W(n * n * m, run.offset);
  check::launched(
      quadratic_forward<T>(scratch.launch, B, n, m, x.data(), W.data(), bias.data(), got_y.data()));
  compare(text("quadratic", s) + "y", got_y, y, run);
  check::launched(
      quadratic_grad_x<T>(scratch.launch, B, n, m, grad.data(), x.data(), W.data(), got_x.data()));
  compare(text("quadratic", s) + "grad_x", got_x, grad_x, run);
  check::launched(
      quadratic_grad_weight<T>(scratch.launch, B, n, m, grad.data(), x.data(), got_W.data()));
  compare(text("quadratic", s) + "grad_W", got_W, grad_W, run);
}

template <class T>
void bilinear(const Shape& s, const Run& run) {
  const int64_t B = s.B, n1 = s.n1, n2 = s.n2, m = s.m;
  const auto given = arguments<T>({B * n1, B * n2, m * n1 * n2, m, B * m}, run);
  const Buffer<T>&x1 = given[0], &x2 = given[1], &W = given[2], &bias = given[3], &grad = given[4];
  Truth y(B * m), grad_x1(B * n1), grad_x2(B * n2), grad_W(m * n1 * n2);
  for (int64_t b = 0; b < B; ++b)
    for (int64_t k = 0; k < m; ++k) {
      const double g = widen(grad[b * m + k]);
      y.add(b * m + k, widen(bias[k]));
      for (int64_t i = 0; i < n1; ++i)
        for (int64_t j = 0; j < n2; ++j) {
          const int64_t at = (k * n1 + i) * n2 + j;
          const double w = widen(W[at]), xi = widen(x1[b * n1 + i]), xj = widen(x2[b * n2 + j]);
          y.add(b * m + k, w * xi * xj);
          grad_x1.add(b * n1 + i, w * xj * g);
          grad_x2.add(b * n2 + j, w * xi * g);
          grad_W.add(at, xi * xj * g);
        }
    }
  Scratch scratch(run);
  Buffer<T> got_y(B * m, run.offset), got_1(B * n1, run.offset), got_2(B * n2, run.offset),
      got_W(m * n1 * n2, run.offset);
  check::launched(bilinear_forward<T>(scratch.launch, B, n1, n2, m, x1.data(), x2.data(), W.data(),
                                      bias.data(), got_y.data()));
  compare(text("bilinear", s) + "y", got_y, y, run);
  check::launched(bilinear_grad_inputs<T>(scratch.launch, B, n1, n2, m, grad.data(), x1.data(),
                                          x2.data(), W.data(), got_1.data(), got_2.data()));
  compare(text("bilinear", s) + "grad_x1", got_1, grad_x1, run);
  compare(text("bilinear", s) + "grad_x2", got_2, grad_x2, run);
  check::launched(bilinear_grad_weight<T>(scratch.launch, B, n1, n2, m, grad.data(), x1.data(),
                                          x2.data(), got_W.data()));
  compare(text("bilinear", s) + "grad_W", got_W, grad_W, run);
}

template <class T>
void both(const Shape& shape, const Run& run) {
  quadratic<T>(shape, run);
  bilinear<T>(shape, run);
}

template <class T>
void all_shapes(double element, bool tf32 = false) {
  for (const Shape& shape : shapes()) {
    Run run;
    run.tf32 = tf32;
    if (!check::quick) both<T>(shape, run);
    run.values = Values::kNormal, run.element = element;
    run.offset = shape.B % 2;  // some of them misaligned
    both<T>(shape, run);
  }
}

}  // namespace

BLOCKOPS_TEST(float64) { all_shapes<double>(1e-12); }
BLOCKOPS_TEST(float32) { all_shapes<float>(1e-6); }
BLOCKOPS_TEST(tf32) { all_shapes<float>(1.05e-3, true); }
BLOCKOPS_TEST(bfloat16) { all_shapes<BFloat16>(8.2e-3); }
BLOCKOPS_TEST(float16) { all_shapes<Half>(1.05e-3); }

// Of one sign, where rounding adds up: the reason for short chains of sums.
BLOCKOPS_TEST(long_batch_of_one_sign) {
  Run run;
  run.processors = 1;  // no splits
  const int64_t B = check::quick ? 600 : 6000;
  auto x = check::normal<float>(B * 3, 1), grad = check::normal<float>(B * 20, 2);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = std::abs(x[i]);
  for (int64_t i = 0; i < grad.size(); ++i) grad[i] = std::abs(grad[i]);
  Truth truth(3 * 3 * 20);
  for (int64_t b = 0; b < B; ++b)
    for (int i = 0; i < 3; ++i)
      for (int j = 0; j < 3; ++j)
        for (int k = 0; k < 20; ++k)
          truth.add((i * 3 + j) * 20 + k, double(x[b * 3 + i]) * x[b * 3 + j] * grad[b * 20 + k]);
  Scratch scratch(run);
  Buffer<float> got(truth.value.size());
  check::launched(
      quadratic_grad_weight<float>(scratch.launch, B, 3, 20, grad.data(), x.data(), got.data()));
  check::close("grad_W", got, truth.value, truth.scale, 1e-6);
}

// As on a large chip: as many splits as there can be.
BLOCKOPS_TEST(many_splits) {
  Run run;
  run.processors = 200;
  for (const Shape& shape : {Shape{3, 33, 40, 20}, Shape{500, 17, 9, 3}, Shape{700, 9, 12, 20},
                             Shape{2570, 25, 2, 17}}) {
    both<float>(shape, run);
    both<BFloat16>(shape, run);
  }
}

BLOCKOPS_TEST(no_elements) {
  for (const Shape& shape : {Shape{0, 3, 4, 5}, Shape{3, 0, 4, 5}, Shape{3, 4, 0, 5},
                             Shape{3, 4, 5, 0}, Shape{0, 0, 0, 0}}) {
    both<float>(shape, Run());
    both<Half>(shape, Run());
  }
}

// Among numbers of one sign a sum with one infinity in it depends on no order; NaN must not come
// of the zeros around a tile.
BLOCKOPS_TEST(nan_and_infinity) {
  std::vector<Shape> some = {{5, 7, 9, 20}, {70, 70, 66, 18}, {270, 20, 37, 3}};
  some.resize(check::quick ? 1 : 3);
  for (const Shape& shape : some)
    for (const double value : {double(NAN), double(INFINITY), -double(INFINITY)})
      for (int special = 0; special < 5; ++special) {
        Run run;
        run.values = Values::kPositive, run.special = special, run.value = value;
        run.processors = 1;
        bilinear<float>(shape, run);
        bilinear<BFloat16>(shape, run);
        if (special < 4) quadratic<float>(shape, run);
        if (special < 4) quadratic<Half>(shape, run);
      }
}

// x_i x_j of float16 leaves its range, but not the gradient.
BLOCKOPS_TEST(large_float16) {
  const int64_t B = 4, n = 20, m = 20;
  Buffer<Half> x(B * n), grad(B * m), got(n * n * m);
  for (int64_t i = 0; i < x.size(); ++i) x[i] = narrow<Half>(1e4f);
  for (int64_t i = 0; i < grad.size(); ++i) grad[i] = narrow<Half>(0x1p-14f);
  Truth truth(n * n * m);
  const double term = double(widen(x[0])) * widen(x[0]) * 0x1p-14;
  for (int64_t i = 0; i < got.size(); ++i)
    for (int64_t b = 0; b < B; ++b) truth.add(i, term);
  Scratch scratch{Run()};
  check::launched(
      quadratic_grad_weight<Half>(scratch.launch, B, n, m, grad.data(), x.data(), got.data()));
  check::close("grad_W", got, truth.value, truth.scale, 1.05e-3);
}
