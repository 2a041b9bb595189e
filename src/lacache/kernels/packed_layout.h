// Weights of 4 to 8 bits in groups, as `PackedWeight` lays them out (docs/adr/0029), and activations in
// 8 bits, so that a product with a group is a sum of integers.
//
// 16 rows lie side by side: a `Quad` is 4 columns of them, a byte for each number.

#pragma once

#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "numbers.h"

namespace {

constexpr int64_t kRows = 16, kSpan = 32, kQuads = kSpan / 4, kSuper = 256;
// Activations that share a scale. With 32, as in llama.cpp, perplexity suffers three times as much.
constexpr int64_t kShared = 16, kSharedQuads = kShared / 4;

// Bytes that are fetched ahead: the processor fetches too late by itself.
constexpr int64_t kAhead = 4096;

typedef uint32_t Quad __attribute__((vector_size(4 * kRows)));
typedef int32_t RowInts __attribute__((vector_size(4 * kRows)));
typedef float RowFloats __attribute__((vector_size(4 * kRows)));

// Adds to each row's sum its 4 numbers times 4 activations. kWide: numbers have more than 7 bits.
#if defined(__AVX512VNNI__)
template <bool kWide>
RowInts add_quad(RowInts sums, Quad quad, int32_t activations) {
  return (RowInts)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)quad, _mm512_set1_epi32(activations));
}
#elif defined(__AVX2__)
__m256i products(__m256i numbers, __m256i activations) {
  return _mm256_madd_epi16(_mm256_maddubs_epi16(numbers, activations), _mm256_set1_epi16(1));
}

template <bool kWide>
RowInts add_quad(RowInts sums, Quad quad, int32_t activations) {
  const __m256i broadcast = _mm256_set1_epi32(activations), mask = _mm256_set1_epi8(15);
  __m256i halves[2], found[2];
  std::memcpy(halves, &quad, sizeof quad);
  for (int64_t n = 0; n < 2; ++n) {
    if (!kWide) {
      found[n] = products(halves[n], broadcast);
      continue;
    }
    // Two products of 8 bits would exceed the 16 bits that they are added up in.
    const __m256i low = _mm256_and_si256(halves[n], mask);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(halves[n], 4), mask);
    found[n] = _mm256_add_epi32(products(low, broadcast),
                                _mm256_slli_epi32(products(high, broadcast), 4));
  }
  RowInts all;
  std::memcpy(&all, found, sizeof all);
  return sums + all;
}
#else
template <bool kWide>
RowInts add_quad(RowInts sums, Quad quad, int32_t activations) {
  for (int64_t j = 0; j < 4; ++j)
    sums += (RowInts)(quad >> (8 * j) & 255) * int32_t(int8_t(activations >> (8 * j)));
  return sums;
}
#endif

// sum + left * right, rounded once wherever it is compiled: a vector has the same product among others.
RowFloats add_product(RowFloats sum, RowFloats left, RowFloats right) {
#if defined(__AVX512F__)
  return (RowFloats)_mm512_fmadd_ps((__m512)left, (__m512)right, (__m512)sum);
#else
  for (int64_t row = 0; row < kRows; ++row)
    sum[row] = __builtin_fmaf(left[row], right[row], sum[row]);
  return sum;
#endif
}

RowFloats load_halves(const c10::Half* from) {
#if defined(__AVX512F__)
  return (RowFloats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#else
  RowFloats wide;
  for (int64_t row = 0; row < kRows; ++row) wide[row] = float(from[row]);
  return wide;
#endif
}

RowFloats load_bytes(const int8_t* from) {
  typedef int8_t RowBytes __attribute__((vector_size(kRows)));
  RowBytes bytes;
  std::memcpy(&bytes, from, sizeof bytes);
  return __builtin_convertvector(bytes, RowFloats);
}

// What a kind of weights has: bits above 4, columns of a group, and whether scales and offsets are one
// number for each 256 columns times a small integer for each group, not a number for each group.
template <int64_t kHighBits, int64_t kGroupSize, bool kFactors, bool kOffsets>
struct Kind {
  static constexpr int64_t kHigh = kHighBits, kGroup = kGroupSize;
  static constexpr int64_t kEvery = kFactors ? kSuper : kGroup;
  static constexpr bool kHasFactors = kFactors, kHasOffsets = kOffsets;
};

// [R, I / kEvery, 16], and factors [R, I / kGroup, 16].
struct Numbers {
  const c10::Half* numbers = nullptr;
  const int8_t* factors = nullptr;

  template <class K>
  Numbers of_rows(int64_t rows, int64_t columns) const {
    return {numbers + rows * (columns / K::kEvery) * kRows,
            factors + rows * (columns / K::kGroup) * kRows};
  }
};

struct Packed {
  const uint8_t *low, *high;  // [R, I / 8, 16, 4] and [R, I * kHigh / 32, 16, 4]
  Numbers scales, offsets;
  float zero;
  int64_t rows, columns;
};

// A row block of a weight: what a loop over columns reads.
template <class K>
struct RowBlock {
  const uint8_t *low, *high;
  Numbers scales, offsets;
  float zero;

  RowBlock(const Packed& weight, int64_t rows)
      : low(weight.low + rows * weight.columns * 8),
        high(weight.high + rows * weight.columns * 2 * K::kHigh),
        scales(weight.scales.of_rows<K>(rows, weight.columns)),
        offsets(weight.offsets.of_rows<K>(rows, weight.columns)),
        zero(weight.zero) {}

  // The 8 quads of 32 columns.
  void unpack(int64_t span, Quad* quads) const {
    const auto in_bytes = [](uint32_t byte) { return 0x01010101u * byte; };
    const auto load = [](const uint8_t* from, int64_t n) {
      Quad quad;
      std::memcpy(&quad, from + n * sizeof quad, sizeof quad);
      return quad;
    };
    for (int64_t n = 0; n < 4; ++n) {
      const Quad both = load(low, span * 4 + n);
      __builtin_prefetch(low + (span * 4 + n) * sizeof both + kAhead);
      quads[2 * n] = both & in_bytes(15);
      quads[2 * n + 1] = both >> 4 & in_bytes(15);
    }
    if constexpr (K::kHigh > 0) {
      constexpr int64_t kPer = 8 / K::kHigh;
      const uint32_t mask = in_bytes(((1 << K::kHigh) - 1) << 4);
      for (int64_t n = 0; n < K::kHigh; ++n) {
        __builtin_prefetch(high + (span * K::kHigh + n) * sizeof(Quad) + kAhead / 4 * K::kHigh);
        const Quad all = load(high, span * K::kHigh + n);
        for (int64_t i = 0; i < kPer; ++i) {
          const int64_t left = 4 - K::kHigh * i;
          quads[n * kPer + i] |= (left < 0 ? all >> -left : all << left) & mask;
        }
      }
    }
  }

  // Calls take(group, scale, offset) for each group of kEvery columns, the n-th of such.
  template <class Take>
  void each_group(int64_t n, Take take) const {
    constexpr int64_t kGroups = K::kEvery / K::kGroup;
    const RowFloats common_scale = load_halves(scales.numbers + n * kRows);
    RowFloats common_offset{};
    if constexpr (K::kHasOffsets) common_offset = load_halves(offsets.numbers + n * kRows);
    for (int64_t group = n * kGroups; group < (n + 1) * kGroups; ++group) {
      RowFloats scale = common_scale, offset = common_offset;
      if constexpr (K::kHasFactors) {
        scale *= load_bytes(scales.factors + group * kRows);
        if constexpr (K::kHasOffsets) offset *= load_bytes(offsets.factors + group * kRows);
      }
      if constexpr (!K::kHasOffsets) offset = -zero * scale;
      take(group, scale, offset);
    }
  }
};

// Activations [T, I] in 8 bits, the scale of each kShared, and what those of each group add up to.
struct Rounded {
  std::vector<int8_t> numbers;
  std::vector<float> scales, totals;

  Rounded(const float* from, int64_t num_vectors, int64_t columns, int64_t group)
      : numbers(num_vectors * columns),
        scales(num_vectors * columns / kShared),
        totals(num_vectors * columns / group) {
    const int64_t parts = group / kShared;
    at::parallel_for(0, int64_t(totals.size()), 1024, [&](int64_t first, int64_t last) {
      for (int64_t n = first; n < last; ++n) {
        totals[n] = 0;
        for (int64_t part = n * parts; part < (n + 1) * parts; ++part) {
          float largest = 0;
          for (int64_t i = part * kShared; i < (part + 1) * kShared; ++i)
            largest = std::max(largest, std::abs(from[i]));
          scales[part] = largest / 127;
          const float inverse = largest > 0 ? 127 / largest : 0;
          int32_t sum = 0;
          for (int64_t i = part * kShared; i < (part + 1) * kShared; ++i) {
            const int32_t rounded = int32_t(std::nearbyint(from[i] * inverse));
            numbers[i] = rounded;
            sum += rounded;
          }
          totals[n] += scales[part] * sum;
        }
      }
    });
  }
};

// The products of a group's columns, before the weights' scale and offset, with kVectors vectors. Their
// numbers lie `columns` apart, their scales `columns / kShared`.
template <class K, int64_t kVectors, int64_t kBlocks>
void multiply_group(const Quad* const* quads, const int8_t* numbers, const float* scales,
                    int64_t columns, RowFloats (*products)[kBlocks]) {
  for (int64_t part = 0; part < K::kGroup / kShared; ++part) {
    RowInts sums[kVectors][kBlocks] = {};
    for (int64_t quad = part * kSharedQuads; quad < (part + 1) * kSharedQuads; ++quad)
      for (int64_t v = 0; v < kVectors; ++v) {
        int32_t four;
        std::memcpy(&four, numbers + v * columns + 4 * quad, sizeof four);
        for (int64_t b = 0; b < kBlocks; ++b)
          sums[v][b] = add_quad<K::kHigh == 4>(sums[v][b], quads[b][quad], four);
      }
    for (int64_t v = 0; v < kVectors; ++v)
      for (int64_t b = 0; b < kBlocks; ++b) {
        const RowFloats wide = __builtin_convertvector(sums[v][b], RowFloats);
        const RowFloats scale = RowFloats{} + scales[v * (columns / kShared) + part];
        products[v][b] = part ? add_product(products[v][b], wide, scale) : wide * scale;
      }
  }
}

}  // namespace
