// center on the CPU: how the work on a view (O, R, K, S) is cut, and the passes. What fits into the
// cache is summed and centered at once; elsewhere partial sums are added in their order, which the
// shape alone decides.
#include <ATen/Dispatch.h>
#include <torch/library.h>

#include "center/center_loops.h"
#include "center/view.h"
#include "core/cpu.h"

namespace blockops {
namespace {

using namespace cpu;

// A tile is a range of k by a range of units; a unit is one r, or where S is long a stretch of s
// for one r. Sizes in elements.
constexpr int64_t kTile = 1 << 16;
constexpr int64_t kStretch = 1 << 15;
constexpr int64_t kColumns = 2048;
constexpr int64_t kGroup = 1 << 14;  // what is worth a thread
constexpr int64_t kLine = 1 << 20;
constexpr int64_t kManyLines = 16;  // enough to share among threads

struct Tiling : View {
  bool past_cache;  // the result is written so
  int64_t stretch() const { return std::min(S, kStretch); }
  int64_t stretches() const { return ceil_div(S, stretch()); }
  int64_t units() const { return R * stretches(); }
  int64_t tile_cols() const { return std::clamp<int64_t>(kColumns / stretch(), 1, K); }
  int64_t col_tiles() const { return ceil_div(K, tile_cols()); }
  int64_t tile_units() const {
    return std::clamp<int64_t>(kTile / (tile_cols() * stretch()), 1, units());
  }
  int64_t unit_tiles() const { return ceil_div(units(), tile_units()); }
  int64_t lines() const { return O * col_tiles(); }  // sets of tiles that share their means
  // Whether the tiles of a line are kept in the cache, between sum and difference, by one thread.
  bool in_cache() const {
    const int64_t line = R * S * tile_cols();
    return unit_tiles() == 1 || (line <= kLine && lines() >= kManyLines);
  }
};

struct Tile {
  int64_t begin_k, cols, begin_unit, end_unit;
};

// Calls rows(offset, cols, size), for each run of rows of a tile of one o, or where S = 1
// columns(offset, rows, cols) once.
template <class Rows, class Columns>
void walk(const Tiling& view, const Tile& tile, const Rows& rows, const Columns& columns) {
  const int64_t K = view.K, S = view.S;
  if (S == 1) {
    columns(tile.begin_unit * K + tile.begin_k, tile.end_unit - tile.begin_unit, tile.cols);
    return;
  }
  for (int64_t unit = tile.begin_unit; unit < tile.end_unit; ++unit) {
    const int64_t r = unit / view.stretches();
    const int64_t begin = unit % view.stretches() * view.stretch();
    const int64_t size = std::min(view.stretch(), S - begin);
    rows((r * K + tile.begin_k) * S + begin, tile.cols, size);
  }
}

template <class T>
void add_tile(const Tiling& view, const Tile& tile, const T* x, double* sums) {
  walk(
      view, tile,
      [&](int64_t at, int64_t rows, int64_t size) { add_rows(x + at, rows, size, sums); },
      [&](int64_t at, int64_t rows, int64_t cols) {
        add_columns(x + at, rows, view.K, cols, sums);
      });
}

template <class T>
void subtract_from_tile(const Tiling& view, const Tile& tile, const T* x, const Real<T>* means,
                        T* y) {
  walk(
      view, tile,
      [&](int64_t at, int64_t rows, int64_t size) {
        subtract_from_rows(x + at, rows, size, means, y + at, view.past_cache);
      },
      [&](int64_t at, int64_t rows, int64_t cols) {
        subtract_from_columns(x + at, rows, view.K, cols, means, y + at, view.past_cache);
      });
}

// Line by line: each is read from memory once.
template <class T>
void center_in_cache(const Tiling& view, const T* x, T* y) {
  const int64_t block = view.R * view.K * view.S, cols = view.tile_cols();
  const int64_t group = std::max<int64_t>(1, kGroup / block);  // several o, where each is small
  const auto center_block = [&](int64_t o, int64_t begin_k) {
    const Tile tile{begin_k, std::min(cols, view.K - begin_k), 0, view.units()};
    double sums[kColumns];
    Real<T> means[kColumns];
    std::fill_n(sums, tile.cols, 0.0);
    add_tile(view, tile, x + o * block, sums);
    for (int64_t k = 0; k < tile.cols; ++k)
      means[k] = static_cast<Real<T>>(sums[k] / (view.R * view.S));
    subtract_from_tile(view, tile, x + o * block, means, y + o * block);
  };
  const int64_t groups = ceil_div(view.O, group), col_tiles = view.col_tiles();
  at::parallel_for(0, groups * col_tiles, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = part / col_tiles * group, end = std::min(begin + group, view.O);
      if (view.R == 1 && view.K == 1) {
        center_rows(x + begin * view.S, end - begin, view.S, y + begin * view.S, view.past_cache);
      } else {
        for (int64_t o = begin; o < end; ++o) center_block(o, part % col_tiles * cols);
      }
    }
  });
}

template <class T>
void center_through_memory(const Tiling& view, const T* x, T* y) {
  const int64_t block = view.R * view.K * view.S, cols = view.tile_cols();
  const int64_t col_tiles = view.col_tiles(), unit_tiles = view.unit_tiles();
  const int64_t lines = view.lines(), tiles = lines * unit_tiles;
  const Buffer<double> sums(tiles * cols);    // by line and tile
  const Buffer<Real<T>> means(lines * cols);  // by line
  const auto tile_of = [&](int64_t index) {
    const int64_t begin_k = index / unit_tiles % col_tiles * cols;
    const int64_t begin_unit = index % unit_tiles * view.tile_units();
    return Tile{begin_k, std::min(cols, view.K - begin_k), begin_unit,
                std::min(begin_unit + view.tile_units(), view.units())};
  };
  const auto offset_of = [&](int64_t index) { return index / unit_tiles / col_tiles * block; };
  at::parallel_for(0, tiles, 1, [&](int64_t first, int64_t last) {
    for (int64_t index = first; index < last; ++index) {
      double* const own = sums.get() + index * cols;
      std::fill_n(own, cols, 0.0);
      add_tile(view, tile_of(index), x + offset_of(index), own);
    }
  });
  at::parallel_for(0, lines, 1, [&](int64_t first, int64_t last) {
    for (int64_t line = first; line < last; ++line) {
      double* const total = sums.get() + line * unit_tiles * cols;
      for (int64_t tile = 1; tile < unit_tiles; ++tile)
        for (int64_t k = 0; k < cols; ++k) total[k] += total[tile * cols + k];
      for (int64_t k = 0; k < cols; ++k)
        means.get()[line * cols + k] = static_cast<Real<T>>(total[k] / (view.R * view.S));
    }
  });
  at::parallel_for(0, tiles, 1, [&](int64_t first, int64_t last) {
    for (int64_t index = first; index < last; ++index) {
      const int64_t offset = offset_of(index);
      subtract_from_tile(view, tile_of(index), x + offset, means.get() + index / unit_tiles * cols,
                         y + offset);
    }
  });
}

Tensor center_cpu(const Tensor& x, at::OptionalIntArrayRef dim) {
  return center_by_view(x, dim, [](const View& view, const Tensor& x) {
    const Tensor y = result(x.sizes(), x.scalar_type());
    const Tiling tiling{view, is_past_cache(y.mutable_data_ptr(), y.nbytes())};
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, x.scalar_type(), "center", [&] {
      const auto center =
          tiling.in_cache() ? center_in_cache<scalar_t> : center_through_memory<scalar_t>;
      center(tiling, x.const_data_ptr<scalar_t>(), y.mutable_data_ptr<scalar_t>());
    });
    return y;
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(blockops, CPU, library) { library.impl("center", &center_cpu); }

}  // namespace blockops
