// The CUDA kernels of linear_relu on the CPU.
#include <cmath>
#include <limits>

#include "check.h"
#include "linear_relu/linear_relu.cuh"

namespace blockops::device::linear_relu {
namespace {

using check::Buffer;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Sizes {
  int B, n, m;
};

// How the arguments of a test are made.
struct Given {
  bool integers = false;  // then results are exact
  int64_t offset = 0;     // elements beyond an aligned address
};

template <class T>
Buffer<T> argument(int64_t size, unsigned seed, const Given& given) {
  return given.integers ? check::integers<T>(size, seed, given.offset)
                        : check::normal<T>(size, seed, given.offset);
}

template <class T>
double tolerance() {
  if (std::is_same_v<T, double>) return 1e-12;
  if (std::is_same_v<T, float>) return 1e-6;
  return std::is_same_v<T, BFloat16> ? 4.1e-3 : 5.2e-4;
}

// A result in float64, and S, its formula on absolute values.
struct Expected {
  std::vector<double> values, scale;
  explicit Expected(int64_t size) : values(size), scale(size) {}
  void add(int64_t at, double a, double b) {
    values[at] += a * b;
    scale[at] += std::abs(a * b);
  }
};

template <class T>
void compare(const std::string& name, const Sizes& sizes, const Given& given,
             const Buffer<T>& actual, Expected expected) {
  const std::string what = name + " of B " + std::to_string(sizes.B) + ", n " +
                           std::to_string(sizes.n) + ", m " + std::to_string(sizes.m);
  if (given.integers) {
    check::equal(what, actual, expected.values);
  } else {
    if (std::is_same_v<T, Half>) {  // what rounding to a subnormal number may cost
      for (double& scale : expected.scale) scale += std::exp2(-25) / tolerance<T>();
    }
    check::close(what, actual, expected.values, expected.scale, tolerance<T>());
  }
}

// Sizes on both sides of what the kernels cut at, each pair of them for each two of B, n and m.
template <class Body>
void for_ragged_sizes(int stride, const Body& body) {
  const int of[] = {1, 2, 15, 16, 17, 31, 33, 63, 65, 127, 129};
  constexpr int kCount = std::size(of);
  for (int i = 0; i < kCount * kCount; i += stride) {
    body(Sizes{of[i / kCount], of[i % kCount], of[(i / kCount + i) % kCount]});
  }
}

// ---- forward ----

template <class T>
Buffer<T> forward(const Sizes& sizes, const Buffer<T>& x, const Buffer<T>& weight,
                  const Buffer<T>* bias, int64_t offset = 0) {
  Buffer<T> y(int64_t{sizes.B} * sizes.m, offset);
  check::launched(launch_forward<T>(
      {sizes.B, sizes.n, sizes.m, x.data(), weight.data(), bias ? bias->data() : nullptr, y.data()},
      nullptr));
  return y;
}

template <class T>
Expected forward_expected(const Sizes& sizes, const Buffer<T>& x, const Buffer<T>& weight,
                          const Buffer<T>* bias) {
  Expected y(int64_t{sizes.B} * sizes.m);
  for (int64_t b = 0; b < sizes.B; ++b) {
    for (int64_t k = 0; k < sizes.m; ++k) {
      const int64_t at = b * sizes.m + k;
      if (bias) y.add(at, widen((*bias)[k]), 1);
      for (int64_t i = 0; i < sizes.n; ++i) {
        y.add(at, widen(x[b * sizes.n + i]), widen(weight[k * sizes.n + i]));
      }
      y.values[at] = y.values[at] <= 0 ? 0 : y.values[at];
    }
  }
  return y;
}

template <class T>
void test_forward(const Sizes& sizes, const Given& given, bool has_bias = true) {
  const auto x = argument<T>(int64_t{sizes.B} * sizes.n, 1, given);
  const auto weight = argument<T>(int64_t{sizes.m} * sizes.n, 2, given);
  const auto bias = argument<T>(sizes.m, 3, given);
  const auto* const given_bias = has_bias ? &bias : nullptr;
  compare("y", sizes, given, forward(sizes, x, weight, given_bias, given.offset),
          forward_expected(sizes, x, weight, given_bias));
}

// ---- backward ----

template <class T>
struct Operands {
  Sizes sizes;
  Buffer<T> grad, y, x, weight;
  Operands(const Sizes& sizes, const Given& given)
      : sizes(sizes),
        grad(argument<T>(int64_t{sizes.B} * sizes.m, 1, given)),
        y(argument<T>(int64_t{sizes.B} * sizes.m, 2, given)),
        x(argument<T>(int64_t{sizes.B} * sizes.n, 3, given)),
        weight(argument<T>(int64_t{sizes.m} * sizes.n, 4, given)) {}
};

struct ExpectedGradients {
  Expected z, x, weight, bias;
};

template <class T>
ExpectedGradients expected_gradients(const Operands<T>& of) {
  const int64_t B = of.sizes.B, n = of.sizes.n, m = of.sizes.m;
  ExpectedGradients grad{Expected(B * m), Expected(B * n), Expected(m * n), Expected(m)};
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t k = 0; k < m; ++k) {
      const double g = widen(of.y[b * m + k]) <= 0 ? 0 : widen(of.grad[b * m + k]);
      grad.z.values[b * m + k] = g;
      grad.bias.add(k, g, 1);
      for (int64_t i = 0; i < n; ++i) {
        grad.x.add(b * n + i, g, widen(of.weight[k * n + i]));
        grad.weight.add(k * n + i, g, widen(of.x[b * n + i]));
      }
    }
  }
  return grad;
}

// The gradients that are wanted; the others of size 0.
template <class T>
struct Made {
  Buffer<T> x, weight, bias;
  Made(const Operands<T>& of, bool wants_x, bool wants_weight, bool wants_bias, int64_t offset)
      : x(wants_x ? of.x.size() : 0, offset),
        weight(wants_weight ? of.weight.size() : 0, offset),
        bias(wants_bias ? of.sizes.m : 0, offset) {
    const auto pointer = [](bool wanted, T* data) { return wanted ? data : nullptr; };
    check::launched(launch_gradients<T>(
        {of.sizes.B, of.sizes.n, of.sizes.m, of.grad.data(), of.y.data(),
         wants_weight ? of.x.data() : nullptr, wants_x ? of.weight.data() : nullptr,
         pointer(wants_x, x.data()), pointer(wants_weight, weight.data()),
         pointer(wants_bias, bias.data())},
        nullptr));
  }
};

template <class T>
void compare_gradients(const Operands<T>& of, const Given& given) {
  const ExpectedGradients expected = expected_gradients(of);
  const Made<T> made(of, true, true, true, given.offset);
  compare("grad_x", of.sizes, given, made.x, expected.x);
  compare("grad_weight", of.sizes, given, made.weight, expected.weight);
  compare("grad_bias", of.sizes, given, made.bias, expected.bias);
}

template <class T>
void test_gradients(const Sizes& sizes, const Given& given) {
  compare_gradients(Operands<T>(sizes, given), given);
}

template <class T>
std::pair<Buffer<T>, Buffer<T>> mask(const Operands<T>& of, bool wants_bias, int64_t offset) {
  const int64_t B = of.sizes.B, m = of.sizes.m;
  Buffer<T> grad_z(B * m, offset), grad_bias(wants_bias ? m : 0, offset);
  Buffer<double> sums(wants_bias ? RowParts(B, m).count * m : 0);
  check::launched(launch_mask<T>({B, m, of.grad.data(), of.y.data(), grad_z.data(),
                                  wants_bias ? grad_bias.data() : nullptr, sums.data()},
                                 nullptr));
  return {std::move(grad_z), std::move(grad_bias)};
}

template <class T>
void compare_mask(const Operands<T>& of, const Given& given) {
  const ExpectedGradients expected = expected_gradients(of);
  const auto [grad_z, grad_bias] = mask(of, true, given.offset);
  check::equal("grad_z", grad_z, expected.z.values);
  compare("grad_bias", of.sizes, given, grad_bias, expected.bias);
}

template <class T>
void test_mask(const Sizes& sizes, const Given& given) {
  compare_mask(Operands<T>({sizes.B, 0, sizes.m}, given), given);
}

// ---- tests ----

template <class T>
void test_ragged_sizes(int stride, const Given& given) {
  for_ragged_sizes(check::quick ? 5 * stride : stride, [&](const Sizes& sizes) {
    test_forward<T>(sizes, given);
    test_gradients<T>(sizes, given);
    test_mask<T>(sizes, given);
  });
}

BLOCKOPS_TEST(exact_integers_of_ragged_sizes) {
  test_ragged_sizes<double>(17, {true, 0});
  test_ragged_sizes<float>(5, {true, 0});
  test_ragged_sizes<BFloat16>(17, {true, 0});
  test_ragged_sizes<Half>(17, {true, 0});
}

BLOCKOPS_TEST(rounding_of_ragged_sizes) {
  test_ragged_sizes<double>(19, {});
  test_ragged_sizes<float>(7, {});
  test_ragged_sizes<BFloat16>(19, {});
  test_ragged_sizes<Half>(19, {});
}

// Rows of 16 bytes: read in packs where they are aligned, by elements where they are not.
template <class T>
void test_packs() {
  for (const int64_t offset : {0, 1}) {
    for (const Sizes& sizes :
         {Sizes{1, 1040, 3}, {4, 64, 8}, {5, 320, 9}, {16, 1040, 2}, {33, 8, 40}, {70, 16, 264}}) {
      if (check::quick && sizes.B * sizes.n * sizes.m > 20000) continue;
      test_forward<T>(sizes, {false, offset}, offset);
      test_gradients<T>(sizes, {false, offset});
      test_mask<T>(sizes, {false, offset});
    }
  }
}

BLOCKOPS_TEST(packs_and_misaligned_pointers) {
  test_packs<double>();
  test_packs<float>();
  test_packs<BFloat16>();
  test_packs<Half>();
}

// The shapes that the choice of the glue takes farthest, cut where only repetition would be lost.
BLOCKOPS_TEST(workloads) {
  test_forward<float>({1, 2880, 8}, {});
  test_forward<float>({16, 2880, 6}, {});
  test_forward<float>({2, 20, 256}, {});
  test_forward<float>({2, 256, 10}, {});
  test_forward<float>({3, 8192, 1}, {false, 1});
  test_gradients<float>({2, 20, 256}, {});
  test_gradients<float>({16, 100, 128}, {});
  test_gradients<float>({512, 3, 5}, {});
  test_gradients<BFloat16>({2, 70, 512}, {});
}

template <class T>
void test_empty() {
  for (const Sizes& sizes : {Sizes{0, 5, 3}, {4, 0, 3}, {4, 3, 0}, {0, 0, 3}, {0, 0, 0}}) {
    test_forward<T>(sizes, {true, 0});
    test_forward<T>(sizes, {true, 0}, false);
    test_gradients<T>(sizes, {true, 0});
    test_mask<T>(sizes, {true, 0});
  }
}

BLOCKOPS_TEST(empty_sizes) {
  test_empty<double>();
  test_empty<float>();
  test_empty<BFloat16>();
  test_empty<Half>();
}

BLOCKOPS_TEST(only_the_wanted_gradients) {
  const Given given{true, 0};
  const Operands<float> of({17, 33, 9}, given);
  const ExpectedGradients expected = expected_gradients(of);
  const auto as_wanted = [&](bool wanted, const Buffer<float>& made, const Expected& all) {
    compare("a gradient", of.sizes, given, made, wanted ? all : Expected(0));
  };
  for (int wanted = 0; wanted < 8; ++wanted) {
    const bool x = wanted & 1, weight = wanted & 2, bias = wanted & 4;
    const Made<float> made(of, x, weight, bias, 0);
    as_wanted(x, made.x, expected.x);
    as_wanted(weight, made.weight, expected.weight);
    as_wanted(bias, made.bias, expected.bias);
  }
  check::equal("grad_z", mask(of, false, 0).first, expected.z.values);
}

// NaN and infinities in one argument after the other.
template <class T>
void test_special_values() {
  const Sizes sizes{6, 34, 5};
  for (const double special : {kNaN, kInfinity, -kInfinity}) {
    const auto planted = narrow<T>(static_cast<Sum<T>>(special));
    for (int place = 0; place < 3; ++place) {
      auto x = argument<T>(sizes.B * sizes.n, 1, {});
      auto weight = argument<T>(sizes.m * sizes.n, 2, {});
      auto bias = argument<T>(sizes.m, 3, {});
      if (place == 0) x[2 * sizes.n + 33] = x[5 * sizes.n + 1] = planted;
      if (place == 1) weight[4 * sizes.n + 3] = planted;
      if (place == 2) bias[1] = planted;
      compare("y", sizes, {}, forward(sizes, x, weight, &bias),
              forward_expected(sizes, x, weight, &bias));
    }
    for (int place = 0; place < 4; ++place) {
      Operands<T> of(sizes, {});
      (place == 0 ? of.grad : place == 1 ? of.y : place == 2 ? of.x : of.weight)[7] = planted;
      compare_gradients(of, {});
      compare_mask(of, {});
    }
  }
}

BLOCKOPS_TEST(special_values) {
  test_special_values<double>();
  test_special_values<float>();
  test_special_values<BFloat16>();
  test_special_values<Half>();
}

// The gradient passes where y is above 0, however little, or NaN.
BLOCKOPS_TEST(border_of_the_mask) {
  Operands<float> of({1, 4, 7}, {true, 0});
  const float smallest = std::numeric_limits<float>::denorm_min();
  const float ys[] = {0.0f, -0.0f, smallest, -smallest, NAN, INFINITY, -INFINITY};
  for (int k = 0; k < 7; ++k) of.grad[k] = k + 1, of.y[k] = ys[k];
  const std::vector<double> expected = {0, 0, 3, 0, 5, 6, 0};
  check::equal("grad_z", mask(of, true, 0).first, expected);
  check::equal("grad_bias", mask(of, true, 0).second, expected);
  check::equal("grad_bias", Made<float>(of, false, false, true, 0).bias, expected);
}

// Equal terms are rounded alike, the worst that a chain of sums can meet.
BLOCKOPS_TEST(long_sums_of_equal_terms) {
  const auto equal_terms = [](const Sizes& sizes) {
    Operands<float> of(sizes, {});
    std::fill_n(of.grad.data(), of.grad.size(), 0.1f);
    std::fill_n(of.y.data(), of.y.size(), 1.0f);
    return of;
  };
  compare_mask(equal_terms({check::quick ? 3000 : 40000, 0, 1}), {});
  const auto of = equal_terms({512, 1, 1});
  compare("grad_bias", of.sizes, {}, Made<float>(of, false, false, true, 0).bias,
          expected_gradients(of).bias);
}

BLOCKOPS_TEST(parts_cover_all_rows) {
  for (const int64_t B : {0, 1, 32, 33, 1000, 32768, 32769, 1 << 20}) {
    for (const int64_t m : {0, 1, 128, 129, 1 << 17, 1 << 20}) {
      const RowParts parts(B, m);
      check::that(parts.rows * parts.count >= B && parts.rows * (parts.count - 1) < B,
                  "the parts are not the rows");
      check::that(parts.count <= 1 || parts.count * ceil_div(m, 128) <= 2048, "too many parts");
    }
  }
}

template <class T>
std::vector<double> all_results(const Operands<T>& of, const Buffer<T>& bias) {
  std::vector<double> all;
  const auto append = [&](const Buffer<T>& buffer) {
    for (int64_t i = 0; i < buffer.size(); ++i) all.push_back(widen(buffer[i]));
  };
  append(forward(of.sizes, of.x, of.weight, &bias));
  const Made<T> made(of, true, true, true, 0);
  append(made.x), append(made.weight), append(made.bias);
  append(mask(of, true, 0).second);
  return all;
}

BLOCKOPS_TEST(same_bits_in_every_order) {
  const Operands<float> of({65, 260, 40}, {});
  const auto bias = argument<float>(of.sizes.m, 5, {});
  const auto before = all_results(of, bias);
  const unsigned schedule = cpu::schedule;
  cpu::schedule = schedule + 1;
  const auto after = all_results(of, bias);
  cpu::schedule = schedule;
  check::that(before == after, "the bits depend on the schedule");
}

}  // namespace
}  // namespace blockops::device::linear_relu
