// A tile of a product of matrices, as large as the processor's registers hold.

#pragma once

#include "numbers.h"

namespace {

constexpr int64_t kTileRows = kLanes == 16 ? 12 : 6;
constexpr int64_t kTileColumns = 2 * kLanes;

// Not inlined, as the caller's numbers would take registers.
struct Tile {
  Floats sums[kTileRows][2] = {};

  // Adds left [kTileRows, depth] times right [depth, kTileColumns], whose rows are so far apart.
  [[gnu::noinline]] void add(const float* left, int64_t left_stride, const float* right, int64_t right_stride,
           int64_t depth) {
    add_columns(left, left_stride, 1, right, right_stride, depth);
  }

  // Likewise, with left [depth, kTileRows] side by side.
  [[gnu::noinline]] void add_packed(const float* left, const float* right, int64_t right_stride, int64_t depth) {
    add_columns(left, 1, kTileRows, right, right_stride, depth);
  }

  // Sets `columns` columns of [kTileRows, ...].
  void store(float* to, int64_t stride, int64_t columns = kTileColumns) const {
    for (int64_t row = 0; row < kTileRows; ++row)
      std::memcpy(to + row * stride, sums[row], columns * sizeof(float));
  }

 private:
  [[gnu::always_inline]] void add_columns(const float* left, int64_t row_stride, int64_t stride,
                                                  const float* right, int64_t right_stride,
                                                  int64_t depth) {
    // In registers: through memory a compiler would carry arrays that are copied at once.
    Floats added[kTileRows][2];
#pragma GCC unroll 12
    for (int64_t row = 0; row < kTileRows; ++row) {
      added[row][0] = sums[row][0];
      added[row][1] = sums[row][1];
    }
    for (int64_t k = 0; k < depth; ++k, right += right_stride, left += stride) {
      const Floats one = (Floats)load(right), other = (Floats)load(right + kLanes);
#pragma GCC unroll 12
      for (int64_t row = 0; row < kTileRows; ++row) {
        added[row][0] += left[row * row_stride] * one;
        added[row][1] += left[row * row_stride] * other;
      }
    }
#pragma GCC unroll 12
    for (int64_t row = 0; row < kTileRows; ++row) {
      sums[row][0] = added[row][0];
      sums[row][1] = added[row][1];
    }
  }
};

}  // namespace
