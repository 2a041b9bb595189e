// Products of packed weights: with few vectors straight from memory, with many by unpacked panels.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "packed_layout.h"
#include "tile.h"

namespace {

// Products of 16 rows with kVectors vectors, of which `first` is the first.
template <class K, int64_t kVectors>
void multiply_rows(const Packed& weight, const Rounded& vectors, int64_t rows, int64_t first,
                   float* products) {
  constexpr int64_t kPerGroup = K::kGroup / 4;
  const int64_t columns = weight.columns, groups = columns / K::kGroup;
  const RowBlock<K> block(weight, rows);
  const int8_t* numbers = vectors.numbers.data() + first * columns;
  const float* scales = vectors.scales.data() + first * columns / kShared;
  const float* totals = vectors.totals.data() + first * groups;
  RowFloats sums[kVectors] = {};
  Quad quads[kQuads];
  for (int64_t n = 0; n < columns / K::kEvery; ++n)
    block.each_group(n, [&](int64_t group, RowFloats scale, RowFloats offset) {
      const int64_t span = group * K::kGroup / kSpan, part = group % (kSpan / K::kGroup);
      if (part == 0) block.unpack(span, quads);
      const int64_t column = group * K::kGroup;
      RowFloats found[kVectors];
      multiply_group<K, kVectors>(quads + part * kPerGroup, numbers + column,
                                  scales + column / kShared, columns, found);
      for (int64_t v = 0; v < kVectors; ++v) {
        sums[v] = add_product(sums[v], found[v], scale);
        sums[v] = add_product(sums[v], offset, in_all_rows(totals[v * groups + group]));
      }
    });
  const int64_t number = std::min(kRows, weight.rows - rows * kRows);
  for (int64_t v = 0; v < kVectors; ++v)
    std::memcpy(products + (first + v) * weight.rows + rows * kRows, &sums[v],
                number * sizeof(float));
}

// Vectors that are multiplied together where there are few.
constexpr int64_t kTogether = 4;

// Columns that are unpacked at once: with kTileColumns rows, half of what a core's first cache holds.
constexpr int64_t kDepth = 256;

// Columns `first` to `last` of a block of 16 rows: [last - first, 16], rows of which are `stride` apart.
template <class K>
void unpack_columns(const RowBlock<K>& block, int64_t first, int64_t last, float* numbers,
                    int64_t stride) {
  Quad quads[kQuads];
  for (int64_t n = first / K::kEvery; n < last / K::kEvery; ++n)
    block.each_group(n, [&](int64_t group, RowFloats scale, RowFloats offset) {
      const int64_t span = group * K::kGroup / kSpan, part = group % (kSpan / K::kGroup);
      if (part == 0) block.unpack(span, quads);
      for (int64_t i = 0; i < K::kGroup; ++i) {
        RowInts bytes;
        each_piece([&](int64_t piece) {
          const Words four = quads[part * K::kGroup / 4 + i / 4].pieces[piece];
          bytes.pieces[piece] = (Ints)(four >> (8 * (i % 4)) & 255);
        });
        const RowFloats wide = add_product(offset, in_floats(bytes), scale);
        std::memcpy(numbers + (group * K::kGroup + i - first) * stride, &wide, sizeof wide);
      }
    });
}

// Products of all numbers as they are with many vectors: part by part they are unpacked, and stay in a
// core's own cache meanwhile.
template <class K>
void multiply_exact(const Packed& weight, const float* from, int64_t num_vectors, int threads,
                    float* products) {
  constexpr int64_t kBlocks = kTileColumns / kRows;
  const int64_t columns = weight.columns, blocks = (weight.rows + kRows - 1) / kRows;
  const int64_t num_tiles = (num_vectors + kTileRows - 1) / kTileRows;
  // The last tile may multiply vectors of the one before again.
  const auto first_vector = [&](int64_t n) { return std::min(n * kTileRows, num_vectors - kTileRows); };
  std::vector<float> vectors(num_tiles * kTileRows * columns);
  at::parallel_for(0, num_tiles, 1, [&](int64_t start, int64_t stop) {
    for (int64_t n = start; n < stop; ++n)
      for (int64_t row = 0; row < kTileRows; ++row)
        for (int64_t i = 0; i < columns; ++i)
          vectors[(n * columns + i) * kTileRows + row] = from[(first_vector(n) + row) * columns + i];
  });
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<float> panel(kDepth * kTileColumns);
    std::vector<Tile> tiles(num_tiles);
#pragma omp for
    for (int64_t block = 0; block < blocks; block += kBlocks) {
      std::fill(tiles.begin(), tiles.end(), Tile{});
      for (int64_t first = 0; first < columns; first += kDepth) {
        const int64_t last = std::min(first + kDepth, columns);
        for (int64_t b = 0; b < std::min(kBlocks, blocks - block); ++b)
          unpack_columns(RowBlock<K>(weight, block + b), first, last, panel.data() + b * kRows,
                         kTileColumns);
        for (size_t n = 0; n < tiles.size(); ++n)
          tiles[n].add_packed(vectors.data() + (n * columns + first) * kTileRows, panel.data(),
                              kTileColumns, last - first);
      }
      const int64_t row = block * kRows, number = std::min(kTileColumns, weight.rows - row);
      for (size_t n = 0; n < tiles.size(); ++n)
        tiles[n].store(products + first_vector(n) * weight.rows + row, weight.rows, number);
    }
  }
}

// Products of a few vectors, rounded to 8 bits.
template <class K>
void multiply_rounded(const Packed& weight, const float* from, int64_t num_vectors, int threads,
                      float* products) {
  const Rounded vectors(from, num_vectors, weight.columns, K::kGroup);
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t rows = 0; rows < (weight.rows + kRows - 1) / kRows; ++rows) {
    int64_t v = 0;
    for (; v + kTogether <= num_vectors; v += kTogether)
      multiply_rows<K, kTogether>(weight, vectors, rows, v, products);
    for (; v < num_vectors; ++v) multiply_rows<K, 1>(weight, vectors, rows, v, products);
  }
}

// Numbers of a block of 16 rows: [16, I].
template <class K, class Number>
void unpack_rows(const Packed& weight, int64_t rows, Number* numbers) {
  const RowBlock<K> block(weight, rows);
  Quad quads[kQuads];
  for (int64_t n = 0; n < weight.columns / K::kEvery; ++n)
    block.each_group(n, [&](int64_t group, RowFloats scale, RowFloats offset) {
      const int64_t span = group * K::kGroup / kSpan, part = group % (kSpan / K::kGroup);
      if (part == 0) block.unpack(span, quads);
      float tile[K::kGroup][kRows], offsets[kRows];
      std::memcpy(offsets, &offset, sizeof offsets);
      for (int64_t i = 0; i < K::kGroup; ++i) {
        RowInts bytes;
        each_piece([&](int64_t piece) {
          const Words four = quads[part * K::kGroup / 4 + i / 4].pieces[piece];
          bytes.pieces[piece] = (Ints)(four >> (8 * (i % 4)) & 255);
          if (!K::kHasOffsets) bytes.pieces[piece] -= int32_t(weight.zero);
        });
        const RowFloats scaled = in_floats(bytes) * scale;
        std::memcpy(tile[i], &scaled, sizeof tile[i]);
      }
      // Through memory, so that products are rounded before they are added, as elsewhere.
      asm volatile("" ::: "memory");
      for (int64_t row = 0; row < kRows; ++row) {
        float wide[K::kGroup];
        for (int64_t i = 0; i < K::kGroup; ++i)
          wide[i] = K::kHasOffsets ? tile[i][row] + offsets[row] : tile[i][row];
        narrow_all(wide, K::kGroup, numbers + row * weight.columns + group * K::kGroup);
      }
    });
}

using MaybeTensor = c10::optional<at::Tensor>;

// Calls use(kind, weight) with weights [O, I] as `PackedWeight` has them.
template <class Use>
void with_packed(const at::Tensor& low, const MaybeTensor& high, const at::Tensor& scales,
                 const MaybeTensor& factors, const MaybeTensor& offsets,
                 const MaybeTensor& offset_factors, int64_t zero, int64_t rows, const Use& use) {
  const int64_t blocks = (rows + kRows - 1) / kRows;
  const auto fits = [&](const at::Tensor& part, at::ScalarType type, int64_t dims) {
    return part.is_contiguous() && part.scalar_type() == type && part.dim() == dims &&
           part.size(0) == blocks && part.size(2) == kRows;
  };
  TORCH_CHECK(fits(low, at::kByte, 4) && (!high || fits(*high, at::kByte, 4)),
              "lacache::packed: weights [R, I / 8, 16, 4]");
  const int64_t columns = low.size(1) * 8;
  const auto numbers = [&](const at::Tensor& all, const MaybeTensor& small) {
    TORCH_CHECK(fits(all, at::kShort, 3) && (!small || fits(*small, at::kChar, 3)),
                "lacache::packed: scales and offsets [R, N, 16]");
    return Numbers{reinterpret_cast<const c10::Half*>(all.const_data_ptr<int16_t>()),
                   small ? small->const_data_ptr<int8_t>() : nullptr};
  };
  const Packed weight{low.const_data_ptr<uint8_t>(),
                      high ? high->const_data_ptr<uint8_t>() : nullptr,
                      numbers(scales, factors),
                      offsets ? numbers(*offsets, offset_factors) : Numbers(),
                      float(zero),
                      rows,
                      columns};
  bool found = false;
  const auto try_kind = [&]<class K>(K kind) {
    if (found || (high ? high->size(1) * kSpan : 0) != K::kHigh * columns ||
        factors.has_value() != K::kHasFactors || offsets.has_value() != K::kHasOffsets ||
        offset_factors.has_value() != (K::kHasFactors && K::kHasOffsets) ||
        scales.size(1) * K::kEvery != columns || columns % kSpan ||
        (factors && factors->size(1) * K::kGroup != columns) ||
        (offsets && offsets->sizes() != scales.sizes()) ||
        (offset_factors && offset_factors->sizes() != factors->sizes()))
      return;
    found = true;
    use(kind, weight);
  };
  try_kind(Kind<0, 32, false, false>());
  try_kind(Kind<0, 32, false, true>());
  try_kind(Kind<0, 32, true, true>());
  try_kind(Kind<1, 32, false, false>());
  try_kind(Kind<1, 32, false, true>());
  try_kind(Kind<1, 32, true, true>());
  try_kind(Kind<2, 16, true, false>());
  try_kind(Kind<4, 32, false, false>());
  TORCH_CHECK(found, "lacache::packed: no such kind of weights");
}

// Packed weights [O, I] times states [T, I] in float32: [T, O]. States are rounded to 8 bits, or
// `exact`, of which there must be as many as a tile has rows.
at::Tensor packed_product(const at::Tensor& low, const MaybeTensor& high, const at::Tensor& scales,
                          const MaybeTensor& factors, const MaybeTensor& offsets,
                          const MaybeTensor& offset_factors, int64_t zero, int64_t rows,
                          const at::Tensor& states, bool exact) {
  at::Tensor products = at::empty({states.size(0), rows}, states.options());
  with_packed(low, high, scales, factors, offsets, offset_factors, zero, rows,
              [&]<class K>(K, const Packed& weight) {
    TORCH_CHECK(states.dim() == 2 && states.is_contiguous() &&
                    states.scalar_type() == at::kFloat && states.size(1) == weight.columns &&
                    (!exact || states.size(0) >= kTileRows),
                "lacache::packed_product: states [T, I] in float32, at least 12 if exact");
    const int64_t num_vectors = states.size(0), work = num_vectors * weight.rows * weight.columns;
    const int threads = work < kWorthAThread ? 1 : at::get_num_threads();
    const float* from = states.const_data_ptr<float>();
    float* to = products.mutable_data_ptr<float>();
    if (exact) multiply_exact<K>(weight, from, num_vectors, threads, to);
    else multiply_rounded<K>(weight, from, num_vectors, threads, to);
  });
  return products;
}

// Numbers of `num_blocks` blocks of 16 rows from `first_block` on: [16 * num_blocks, I].
at::Tensor packed_numbers(const at::Tensor& low, const MaybeTensor& high, const at::Tensor& scales,
                          const MaybeTensor& factors, const MaybeTensor& offsets,
                          const MaybeTensor& offset_factors, int64_t zero, int64_t rows,
                          int64_t first_block, int64_t num_blocks, at::ScalarType dtype) {
  TORCH_CHECK(first_block >= 0 && num_blocks >= 0 && first_block + num_blocks <= low.size(0) &&
                  (dtype == at::kFloat || dtype == at::kBFloat16),
              "lacache::packed_numbers: blocks that there are, as float32 or bfloat16");
  at::Tensor numbers =
      at::empty({num_blocks * kRows, low.size(1) * 8}, low.options().dtype(dtype));
  with_packed(low, high, scales, factors, offsets, offset_factors, zero, rows,
              [&]<class K>(K, const Packed& weight) {
    const auto unpack = [&](auto* to) {
      at::parallel_for(0, num_blocks, 4, [&](int64_t first, int64_t last) {
        for (int64_t n = first; n < last; ++n)
          unpack_rows<K>(weight, first_block + n, to + n * kRows * weight.columns);
      });
    };
    if (dtype == at::kFloat) unpack(numbers.mutable_data_ptr<float>());
    else unpack(reinterpret_cast<uint16_t*>(numbers.mutable_data_ptr<at::BFloat16>()));
  });
  return numbers;
}

}  // namespace
