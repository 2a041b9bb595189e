// Products of packed weights: with few vectors straight from memory, with many by unpacked panels.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "packed_layout.h"

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
      const Quad* of_group = quads + part * kPerGroup;
      const int64_t column = group * K::kGroup;
      RowFloats found[kVectors][1];
      multiply_group<K, kVectors, 1>(&of_group, numbers + column, scales + column / kShared,
                                     columns, found);
      for (int64_t v = 0; v < kVectors; ++v) {
        sums[v] = add_product(sums[v], found[v][0], scale);
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

constexpr int64_t kPanel = 512;

// Up to kPanel columns of 16 rows.
struct Panel {
  Quad quads[kPanel / 4];
  RowFloats scales[kPanel / 16], offsets[kPanel / 16];

  template <class K>
  void fill(const Packed& weight, int64_t rows, int64_t first, int64_t last) {
    const RowBlock<K> block(weight, rows);
    for (int64_t span = first / kSpan; span < last / kSpan; ++span)
      block.unpack(span, quads + span * kQuads - first / 4);
    for (int64_t n = first / K::kEvery; n < last / K::kEvery; ++n)
      block.each_group(n, [&](int64_t group, RowFloats scale, RowFloats offset) {
        scales[group - first / K::kGroup] = scale;
        offsets[group - first / K::kGroup] = offset;
      });
  }
};

// Adds products of kVectors vectors with the columns from `first` to `last` of kBlocks panels.
template <class K, int64_t kVectors, int64_t kBlocks>
void multiply_panels(const Panel* panels, const Rounded& vectors, int64_t columns, int64_t first,
                     int64_t last, int64_t vector, RowFloats (*sums)[kBlocks]) {
  constexpr int64_t kPerGroup = K::kGroup / 4;
  const int64_t groups = columns / K::kGroup;
  const int8_t* numbers = vectors.numbers.data() + vector * columns;
  const float* scales = vectors.scales.data() + vector * columns / kShared;
  const float* totals = vectors.totals.data() + vector * groups;
  RowFloats all[kVectors][kBlocks];
  std::memcpy(all, sums, sizeof all);
  for (int64_t group = first / K::kGroup, n = 0; group < last / K::kGroup; ++group, ++n) {
    const Quad* quads[kBlocks];
    for (int64_t b = 0; b < kBlocks; ++b) quads[b] = panels[b].quads + n * kPerGroup;
    const int64_t column = group * K::kGroup;
    RowFloats found[kVectors][kBlocks];
    multiply_group<K, kVectors, kBlocks>(quads, numbers + column, scales + column / kShared,
                                         columns, found);
    for (int64_t v = 0; v < kVectors; ++v)
      for (int64_t b = 0; b < kBlocks; ++b) {
        const RowFloats total = in_all_rows(totals[v * groups + group]);
        all[v][b] = add_product(all[v][b], found[v][b], panels[b].scales[n]);
        all[v][b] = add_product(all[v][b], panels[b].offsets[n], total);
      }
  }
  std::memcpy(sums, all, sizeof all);
}

template <class K>
void multiply_many(const Packed& weight, const Rounded& vectors, int64_t num_vectors, int threads,
                   float* products) {
  // As many as the processor has registers for.
  constexpr int64_t kVectors = kLanes == 16 ? 6 : 2, kBlocks = 2;
  const int64_t columns = weight.columns, blocks = (weight.rows + kRows - 1) / kRows;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    std::vector<RowFloats> memory(num_vectors * kBlocks);
    std::vector<Panel> panels(kBlocks);
    auto* sums = reinterpret_cast<RowFloats(*)[kBlocks]>(memory.data());
#pragma omp for
    for (int64_t block = 0; block < blocks; block += kBlocks) {
      std::fill(memory.begin(), memory.end(), RowFloats{});
      for (int64_t first = 0; first < columns; first += kPanel) {
        const int64_t last = std::min(first + kPanel, columns);
        for (int64_t b = 0; b < std::min(kBlocks, blocks - block); ++b)
          panels[b].fill<K>(weight, block + b, first, last);
        int64_t v = 0;
        for (; v + kVectors <= num_vectors; v += kVectors)
          multiply_panels<K, kVectors, kBlocks>(panels.data(), vectors, columns, first, last, v,
                                                sums + v);
        for (; v < num_vectors; ++v)
          multiply_panels<K, 1, kBlocks>(panels.data(), vectors, columns, first, last, v, sums + v);
      }
      const int64_t row = block * kRows, number = std::min(kBlocks * kRows, weight.rows - row);
      for (int64_t v = 0; v < num_vectors; ++v)
        std::memcpy(products + v * weight.rows + row, sums + v, number * sizeof(float));
    }
  }
}

template <class K>
void multiply_packed(const Packed& weight, const float* from, int64_t num_vectors,
                     float* products) {
  constexpr int64_t kFew = 8;
  const Rounded vectors(from, num_vectors, weight.columns, K::kGroup);
  const int64_t work = num_vectors * weight.rows * weight.columns;
  const int threads = work < kWorthAThread ? 1 : at::get_num_threads();
  if (num_vectors > kFew) return multiply_many<K>(weight, vectors, num_vectors, threads, products);
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

// Packed weights [O, I] times states [T, I] in float32: [T, O].
at::Tensor packed_product(const at::Tensor& low, const MaybeTensor& high, const at::Tensor& scales,
                          const MaybeTensor& factors, const MaybeTensor& offsets,
                          const MaybeTensor& offset_factors, int64_t zero, int64_t rows,
                          const at::Tensor& states) {
  at::Tensor products = at::empty({states.size(0), rows}, states.options());
  with_packed(low, high, scales, factors, offsets, offset_factors, zero, rows,
              [&]<class K>(K, const Packed& weight) {
    TORCH_CHECK(states.dim() == 2 && states.is_contiguous() &&
                    states.scalar_type() == at::kFloat && states.size(1) == weight.columns,
                "lacache::packed_product: states [T, I] in float32");
    multiply_packed<K>(weight, states.const_data_ptr<float>(), states.size(0),
                       products.mutable_data_ptr<float>());
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
