// center's CUDA kernels against the formula in float64, by every way that plan_center knows.
#include "center/center.cuh"
#include "check.h"

using namespace blockops;
using namespace blockops::device;
using center::Center;
using center::Chip;
using center::Cut;
using center::Plan;
using center::Schedule;
using check::Buffer;

namespace {

struct Shape {
  int64_t O, R, K, S;
  int64_t size() const { return O * R * K * S; }
};

// Eight blocks of 128 threads, each of which has shared memory for five vectors and some sums.
const Chip kChip{8, 12288, 128};

constexpr double kElement = 4e-7;
template <class T>
constexpr double kRounding = std::is_same_v<T, Half>       ? 4.9e-4
                             : std::is_same_v<T, BFloat16> ? 3.91e-3
                                                           : 0;

std::string text(const Shape& s) {
  return "(" + std::to_string(s.O) + ", " + std::to_string(s.R) + ", " + std::to_string(s.K) +
         ", " + std::to_string(s.S) + ")";
}

// Which way a plan goes.
std::string way(const Plan& plan) {
  const Cut& cut = plan.cut;
  const std::string width = plan.wide ? "wide " : "";
  if (plan.schedule == Schedule::kRows) {
    return width + (plan.team > 32 ? "rows of a block" : "rows of a team");
  }
  const std::string what = width + (plan.schedule == Schedule::kLines ? "lines " : "columns ");
  if (cut.stages == 2) return what + "in turn";
  if (cut.share > int64_t(cut.held) * plan.threads) return what + "read twice";
  return what + (cut.members > 1 ? "shared" : "whole");
}

// y, after checks of the plan: that it takes this way (if one is named), and what it asks for.
template <class T>
Buffer<T> centered(const Shape& s, const Buffer<T>& x, const Chip& chip = kChip,
                   const std::string& by = "", int64_t offset = 0) {
  Buffer<T> y(s.size(), offset);
  const Center<T> c{x.data(), y.data(), s.O, s.R, s.K, s.S};
  const Plan plan = center::plan_center(c, chip);
  check::that(by.empty() || way(plan) == by, text(s) + " goes by " + way(plan) + ", not " + by);
  check::that(plan.shared_bytes <= chip.shared_bytes && plan.threads <= chip.threads,
              text(s) + ": more than a block has");
  device::cpu::chip_blocks = chip.processors;
  Buffer<double> partial(plan.workspace_bytes / sizeof(double));
  check::launched(center::launch_center(c, plan, partial.data(), nullptr));
  return y;
}

struct Truth {
  std::vector<double> value, scale;  // scale: the largest of what a mean runs over
};

template <class T>
Truth truth(const Shape& s, const Buffer<T>& x) {
  std::vector<double> means(s.O * s.K), largest(s.O * s.K);
  const auto group = [&](int64_t i) { return i / (s.R * s.K * s.S) * s.K + i / s.S % s.K; };
  for (int64_t i = 0; i < s.size(); ++i) {
    means[group(i)] += widen(x[i]);
    largest[group(i)] = std::max(largest[group(i)], std::abs(double(widen(x[i]))));
  }
  for (double& mean : means) mean /= double(s.R) * s.S;
  Truth truth;
  for (int64_t i = 0; i < s.size(); ++i) {
    truth.value.push_back(widen(x[i]) - means[group(i)]);
    truth.scale.push_back(largest[group(i)]);
  }
  return truth;
}

template <class T>
void compare(const Shape& s, const Buffer<T>& x, const Chip& chip = kChip,
             const std::string& by = "", int64_t offset = 0) {
  const Truth want = truth(s, x);
  const Buffer<T> y = centered(s, x, chip, by, offset);
  const double element = sizeof(T) == 8 ? 1e-14 : kElement;
  check::close(text(s), y, want.value, want.scale, element, kRounding<T>);
}

template <class T>
Buffer<T> around(double middle, int64_t size, unsigned seed, int64_t offset = 0) {
  Buffer<T> x = check::normal<T>(size, seed, offset);
  for (int64_t i = 0; i < size; ++i) x[i] = narrow<T>(Sum<T>(widen(x[i]) + middle));
  return x;
}

template <class T>
void compare_normal(const Shape& s, const std::string& by = "", int64_t offset = 0) {
  compare(s, around<T>(3, s.size(), 1, offset), kChip, by, offset);
}

struct Way {
  Shape shape;
  const char* name;
};

// For float, of which a vector has four.
const std::vector<Way> kWays = {
    {{70, 1, 1, 17}, "wide rows of a team"},
    {{5, 1, 1, 64}, "wide rows of a team"},
    {{3, 1, 2, 131}, "wide rows of a team"},
    {{3, 1, 1, 515}, "wide rows of a team"},
    {{2, 1, 1, 1021}, "wide rows of a block"},
    {{2, 5, 3, 36}, "wide lines whole"},
    {{1, 2, 9, 33}, "lines whole"},
    {{7, 1, 1, 2101}, "wide lines in turn"},
    {{5, 22, 1, 100}, "wide lines in turn"},
    {{1, 80, 7, 19}, "lines in turn"},
    {{2, 1, 1, 2101}, "wide lines shared"},
    {{3, 1, 1, 8003}, "wide lines shared"},
    {{1, 200, 2, 33}, "lines shared"},
    {{2, 1, 1, 40001}, "wide lines read twice"},
    {{1, 190, 2, 132}, "wide lines read twice"},
    {{1, 800, 2, 33}, "lines read twice"},
    {{300, 1, 1, 1}, "wide columns whole"},
    {{1, 1, 1, 1}, "columns whole"},
    {{1, 1, 1, 2}, "columns whole"},
    {{33, 1, 1, 15}, "columns whole"},
    {{65, 1, 1, 12}, "wide columns whole"},
    {{3, 2, 1000, 1}, "wide columns whole"},
    {{4, 2, 3, 2}, "columns whole"},
    {{5, 15, 17, 1}, "columns whole"},
    {{2, 9, 12, 7}, "wide columns whole"},
    {{1, 15, 129, 15}, "columns whole"},
    {{1, 100, 200, 1}, "wide columns in turn"},
    {{5, 60, 6, 10}, "wide columns in turn"},
    {{5, 65, 17, 1}, "columns in turn"},
    {{1, 80, 40, 3}, "wide columns in turn"},
    {{1, 34, 33, 16}, "wide columns in turn"},
    {{1, 2000, 3, 1}, "columns shared"},
    {{1, 4000, 4, 1}, "wide columns shared"},
    {{1, 600, 40, 1}, "wide columns read twice"},
    {{3, 300, 120, 1}, "wide columns read twice"},
    {{1, 3000, 3, 5}, "columns read twice"},
};

// All of them; in quick runs every fifth.
template <class Body>
void for_ways(const Body& body) {
  for (size_t i = 0; i < kWays.size(); i += check::quick ? 5 : 1) body(kWays[i].shape);
}

// Sizes on both sides of warps, vectors and shares, dealt into shapes: every kind of line for the
// chip at hand.
Shape ragged(std::mt19937& generator) {
  const int64_t sizes[] = {1, 1, 2, 3, 4, 8, 15, 16, 17, 31, 33, 64, 65, 129, 260, 1000, 5000};
  const int64_t largest = check::quick ? 2000 : 20000;
  Shape s{};
  do {
    const auto size = [&] { return sizes[generator() % std::size(sizes)]; };
    s = {size(), size(), size(), size()};
  } while (s.size() > largest);
  return s;
}

template <class T>
void compare_ragged(unsigned seed) {
  std::mt19937 generator(seed);
  for (int i = 0; i < (check::quick ? 12 : 120); ++i) {
    const Shape s = ragged(generator);
    const int threads = 32 << generator() % 3, slots = 2 + generator() % 7;
    const Chip chip{int(1 + generator() % 8), slots * 16 * threads + threads * 64, threads};
    const int64_t offset = generator() % 3 == 0 ? 1 + generator() % 7 : 0;
    const auto x = around<T>(i % 2 ? 0 : 1e3, s.size(), i, offset);
    compare(s, x, chip, "", generator() % 2 ? offset : 0);
  }
}

template <class T>
void compare_exactly() {
  for (const Shape& s :
       {Shape{3, 1, 1, 64}, Shape{1, 1, 2, 2048}, Shape{1, 1, 1, 8192}, Shape{1, 64, 200, 1},
        Shape{2, 1024, 3, 1}, Shape{3, 8, 5, 16}, Shape{1, 32, 3, 64}, Shape{64, 1, 1, 4}}) {
    const auto x = check::integers<T>(s.size(), 3);
    check::equal(text(s), centered(s, x), truth(s, x).value);
  }
}

// A value in one element, and a 0 before it, reach what x - mean takes them to.
template <class T>
void compare_with(double value) {
  for_ways([&](const Shape& s) {
    auto x = check::integers<T>(s.size(), 4);
    x[s.size() / 2] = narrow<T>(Sum<T>(value));
    compare(s, x);
  });
}

}  // namespace

BLOCKOPS_TEST(float_by_every_way) {
  for (const Way& w : kWays) compare_normal<float>(w.shape, w.name);
}

BLOCKOPS_TEST(other_dtypes_by_every_way) {
  for_ways([](const Shape& s) {
    compare_normal<double>(s);
    compare_normal<BFloat16>(s);
    compare_normal<Half>(s);
  });
}

BLOCKOPS_TEST(ragged) {
  compare_ragged<float>(1);
  compare_ragged<double>(2);
  compare_ragged<BFloat16>(3);
  compare_ragged<Half>(4);
}

BLOCKOPS_TEST(blocks_as_large_as_a_gpu_s) {
  const Chip chip{4, 232448};
  const auto goes = [&](const Shape& s, const char* name) {
    compare(s, check::normal<float>(s.size(), 6), chip, name);
  };
  goes({3, 1, 1, 8009}, "wide rows of a block");
  goes({1, 999, 96, 1}, "wide columns in turn");
  if (check::quick) return;
  goes({2, 1, 1, 20003}, "wide lines whole");
  goes({5, 1, 1, 30011}, "wide lines in turn");
  goes({1, 129, 129, 1}, "columns whole");
  goes({1, 8000, 64, 1}, "wide columns read twice");
}

// x and y aligned alike, if not to 16 bytes, and not alike.
BLOCKOPS_TEST(misaligned) {
  for (const int64_t offset : {1, 3}) {
    compare_normal<float>({5, 1, 1, 65}, "wide rows of a team", offset);
    compare_normal<float>({2, 1, 1, 1021}, "wide rows of a block", offset);
    compare_normal<float>({7, 1, 1, 2101}, "wide lines in turn", offset);
    compare_normal<float>({1, 1, 1, 40001}, "wide lines read twice", offset);
    compare_normal<float>({2, 5, 3, 36}, "lines whole", offset);
    compare_normal<float>({5, 65, 64, 1}, "columns in turn", offset);
    compare_normal<Half>({3, 1, 1, 777}, "wide rows of a team", offset);
  }
  const auto unlike = [](const Shape& s, const char* name) {
    compare(s, check::normal<float>(s.size(), 1, 1), kChip, name);
  };
  unlike({9, 1, 1, 64}, "rows of a team");
  unlike({3, 1, 1, 500}, "rows of a block");
  unlike({3, 1, 1, 600}, "lines whole");
  unlike({7, 1, 1, 2048}, "lines in turn");
}

BLOCKOPS_TEST(integers_are_exact) {
  compare_exactly<float>();
  compare_exactly<double>();
  compare_exactly<BFloat16>();
  compare_exactly<Half>();
}

// Where float32's own rounding is a tenth of the bound, and a chain of float32 sums beyond it.
BLOCKOPS_TEST(a_large_offset_costs_no_digits) {
  for_ways([](const Shape& s) {
    compare(s, around<float>(1e3, s.size(), 2));
    compare(s, around<BFloat16>(1e3, s.size(), 2));
    compare(s, around<Half>(1e3, s.size(), 2));
  });
}

BLOCKOPS_TEST(float16_does_not_overflow) {
  for_ways([](const Shape& s) {
    Buffer<Half> x(s.size());
    for (int64_t i = 0; i < x.size(); ++i) x[i] = narrow<Half>(6e4f);
    check::equal(text(s), centered(s, x), std::vector<double>(x.size()));
  });
}

BLOCKOPS_TEST(nan_and_infinity) {
  for (const double value : {NAN, INFINITY, -INFINITY}) {
    compare_with<float>(value);
    compare_with<BFloat16>(value);
  }
}

// Whatever order blocks and warps run in.
BLOCKOPS_TEST(same_bits_in_every_order) {
  for_ways([](const Shape& s) {
    const auto x = check::normal<float>(s.size(), 5);
    const auto first = centered(s, x);
    ++device::cpu::schedule;
    const auto second = centered(s, x);
    --device::cpu::schedule;
    check::that(!std::memcmp(first.data(), second.data(), s.size() * sizeof(float)),
                text(s) + ": other bits in another order");
  });
}

namespace {

// What must hold for x and y that begin at a multiple of 16 bytes, of any size.
void check_plan(const Shape& s, const Chip& chip) {
  const Center<Half> c{nullptr, nullptr, s.O, s.R, s.K, s.S};
  const Plan plan = center::plan_center(c, chip);
  const Cut& cut = plan.cut;
  const auto holds = [&](bool it, const char* what) {
    check::that(it, text(s) + ", " + way(plan) + ": " + what);
  };
  holds(0 < plan.blocks && plan.blocks < int64_t{1} << 31, "no such grid");
  holds(plan.shared_bytes <= chip.shared_bytes, "too much shared memory");
  holds(plan.workspace_bytes <= 1 << 20, "much scratch memory");
  if (plan.schedule == Schedule::kRows) {
    const int64_t rows = plan.blocks * (plan.threads / plan.team);
    holds(rows >= s.O * s.K && rows - s.O * s.K < 16, "not these rows");
    return;
  }
  holds(cut.members == 1 || plan.blocks <= chip.processors, "not all blocks at once");
  const int64_t vectors = cut.R * cut.per_row;
  holds(cut.members * cut.share >= vectors && (cut.members - 1) * cut.share < vectors,
        "the shares are not the line");
  holds(cut.lines * cut.pitch * cut.R >= s.size() &&
            (cut.lines / cut.across) * cut.R * cut.stride == s.size(),
        "the lines are not x");
}

}  // namespace

BLOCKOPS_TEST(plans) {
  const int64_t many = int64_t{1} << 36;
  for (const Chip& chip : {Chip{132, 232448}, Chip{108, 166912}, Chip{82, 101376}}) {
    for (const int64_t S : {int64_t{1}, int64_t{2}, int64_t{5}, int64_t{16}, int64_t{17},
                            int64_t{1000}, int64_t{262144}, many / 64}) {
      for (const int64_t R : {int64_t{1}, int64_t{2}, int64_t{300}, many / (64 * S)}) {
        for (const int64_t K : {int64_t{1}, int64_t{3}, int64_t{512}, many / (R * S)}) {
          if (R == 0 || K == 0 || R * K * S > many) continue;
          check_plan({1, R, K, S}, chip);
          check_plan({many / (R * K * S), R, K, S}, chip);
        }
      }
    }
  }
}

// A thread far out in a large x finds its vectors, and its way back.
BLOCKOPS_TEST(offsets_beyond_32_bits) {
  const int64_t R = 5, K = int64_t{1} << 20, S = 5000 * 8;
  const Center<Half> c{nullptr, nullptr, 3, R, K, S};
  const Plan plan = center::plan_center(c, {1, 101376, 1024});
  check::that(way(plan) == "wide lines read twice", "it goes by " + way(plan));
  const int64_t o = 2, k = K - 1;
  for (const int thread : {0, 777, 1023}) {
    threadIdx = {unsigned(thread), 0, 0};
    blockDim = dim3(1024);
    center::Share<8, false> share(plan.cut, o * K + k, 0);
    const auto expect = [&](int i) {
      const int64_t u = thread + i * int64_t{1024};
      const int64_t element = ((o * R + u / (S / 8)) * K + k) * S + u % (S / 8) * 8;
      check::that(share.offset * 8 == element, "not at vector " + std::to_string(i));
    };
    check::that(share.count == (25000 - thread + 1023) / 1024, "not so many vectors");
    for (int i = 0; i < share.count; ++i, share.forward(plan.cut)) expect(i);
    for (int i = share.count - 1; i >= 0; --i) share.backward(plan.cut), expect(i);
  }
}
