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

// A number for each row, in vectors as wide as the processor's: compilers divide wider ones badly.
constexpr int64_t kPieces = kRows / kLanes;

template <class V>
struct Rowwise {
  V pieces[kPieces];
};

typedef Rowwise<Floats> RowFloats;
typedef Rowwise<Ints> RowInts;
typedef Rowwise<Words> Quad;

template <class Use>
void each_piece(Use use) {
#pragma GCC unroll 4
  for (int64_t n = 0; n < kPieces; ++n) use(n);
}

RowFloats in_all_rows(float number) {
  RowFloats all;
  each_piece([&](int64_t n) { all.pieces[n] = Floats{} + number; });
  return all;
}

RowFloats operator*(RowFloats left, const RowFloats& right) {
  each_piece([&](int64_t n) { left.pieces[n] *= right.pieces[n]; });
  return left;
}

RowFloats operator*(RowFloats left, float right) {
  each_piece([&](int64_t n) { left.pieces[n] *= right; });
  return left;
}

// sum + left * right, rounded once wherever it is compiled: a vector has the same product among others.
RowFloats add_product(RowFloats sum, const RowFloats& left, const RowFloats& right) {
  each_piece([&](int64_t n) {
#if defined(__AVX512F__)
    sum.pieces[n] = (Floats)_mm512_fmadd_ps((__m512)left.pieces[n], (__m512)right.pieces[n],
                                            (__m512)sum.pieces[n]);
#elif defined(__AVX2__)
    sum.pieces[n] = (Floats)_mm256_fmadd_ps((__m256)left.pieces[n], (__m256)right.pieces[n],
                                            (__m256)sum.pieces[n]);
#else
    for (int64_t lane = 0; lane < kLanes; ++lane)
      sum.pieces[n][lane] =
          __builtin_fmaf(left.pieces[n][lane], right.pieces[n][lane], sum.pieces[n][lane]);
#endif
  });
  return sum;
}

RowFloats load_halves(const c10::Half* from) {
  RowFloats wide;
  each_piece([&](int64_t n) {
    const c10::Half* piece = from + n * kLanes;
#if defined(__AVX512F__)
    wide.pieces[n] =
        (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(piece)));
#elif defined(__AVX2__)
    wide.pieces[n] =
        (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(piece)));
#else
    for (int64_t lane = 0; lane < kLanes; ++lane) wide.pieces[n][lane] = float(piece[lane]);
#endif
  });
  return wide;
}

RowFloats load_bytes(const int8_t* from) {
  RowFloats wide;
  each_piece([&](int64_t n) {
    const int8_t* piece = from + n * kLanes;
#if defined(__AVX2__) && !defined(__AVX512F__)
    wide.pieces[n] = (Floats)_mm256_cvtepi32_ps(
        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(piece))));
#else
    typedef int8_t Bytes __attribute__((vector_size(kLanes)));
    Bytes bytes;
    std::memcpy(&bytes, piece, sizeof bytes);
    wide.pieces[n] = __builtin_convertvector(bytes, Floats);
#endif
  });
  return wide;
}

RowFloats in_floats(const RowInts& numbers) {
  RowFloats wide;
  each_piece([&](int64_t n) {
    wide.pieces[n] = __builtin_convertvector(numbers.pieces[n], Floats);
  });
  return wide;
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
    // A piece at a time: a whole quad would be copied in parts that a vector cannot be read from yet.
    const auto load_quad = [](const uint8_t* from, int64_t n) {
      Quad quad;
      each_piece([&](int64_t piece) {
        quad.pieces[piece] = load(from + n * sizeof quad + piece * sizeof(Words));
      });
      return quad;
    };
    for (int64_t n = 0; n < 4; ++n) {
      const Quad both = load_quad(low, span * 4 + n);
      __builtin_prefetch(low + (span * 4 + n) * sizeof both + kAhead);
      each_piece([&](int64_t piece) {
        quads[2 * n].pieces[piece] = both.pieces[piece] & in_bytes(15);
        quads[2 * n + 1].pieces[piece] = both.pieces[piece] >> 4 & in_bytes(15);
      });
    }
    if constexpr (K::kHigh > 0) {
      constexpr int64_t kPer = 8 / K::kHigh;
      const uint32_t mask = in_bytes(((1 << K::kHigh) - 1) << 4);
      for (int64_t n = 0; n < K::kHigh; ++n) {
        __builtin_prefetch(high + (span * K::kHigh + n) * sizeof(Quad) + kAhead / 4 * K::kHigh);
        const Quad all = load_quad(high, span * K::kHigh + n);
        for (int64_t i = 0; i < kPer; ++i) {
          const int64_t left = 4 - K::kHigh * i;
          each_piece([&](int64_t piece) {
            const Words bits = all.pieces[piece];
            quads[n * kPer + i].pieces[piece] |= (left < 0 ? bits >> -left : bits << left) & mask;
          });
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
        scale = scale * load_bytes(scales.factors + group * kRows);
        if constexpr (K::kHasOffsets)
          offset = offset * load_bytes(offsets.factors + group * kRows);
      }
      if constexpr (!K::kHasOffsets) offset = scale * -zero;
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

// The products of `kSharedQuads` quads with activations, added up: what kVectors vectors, whose numbers
// lie `columns` apart, have in each row.
#if defined(__AVX512VNNI__)
template <class K, int64_t kVectors>
void multiply_quads(const Quad* quads, const int8_t* numbers, int64_t columns, RowInts* sums) {
  for (int64_t v = 0; v < kVectors; ++v) sums[v] = {};
  for (int64_t quad = 0; quad < kSharedQuads; ++quad)
    for (int64_t v = 0; v < kVectors; ++v) {
      int32_t four;
      std::memcpy(&four, numbers + v * columns + 4 * quad, sizeof four);
      sums[v].pieces[0] = (Ints)_mm512_dpbusd_epi32((__m512i)sums[v].pieces[0],
                                                    (__m512i)quads[quad].pieces[0],
                                                    _mm512_set1_epi32(four));
    }
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
template <class K, int64_t kVectors>
void multiply_quads(const Quad* quads, const int8_t* numbers, int64_t columns, RowInts* sums) {
  // Pairs of products are added up in 16 bits. So many fit: 127 times twice the largest number each.
  constexpr int64_t kBits = 4 + K::kHigh, kFit = kBits == 8 ? 8 : 32767 / (254 * ((1 << kBits) - 1));
  constexpr int64_t kParts = std::min(kFit, kSharedQuads);
  const __m256i ones = _mm256_set1_epi16(1), mask = _mm256_set1_epi8(15);
  const auto add_up = [&](const __m256i* of_rows, const int8_t* of_vector) {
    __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int64_t first = 0; first < kSharedQuads; first += kParts) {
      __m256i pairs = _mm256_setzero_si256();
#pragma GCC unroll 4
      for (int64_t quad = first; quad < first + kParts; ++quad) {
        int32_t four;
        std::memcpy(&four, of_vector + 4 * quad, sizeof four);
        pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(of_rows[quad], _mm256_set1_epi32(four)));
      }
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    return sum;
  };
  each_piece([&](int64_t n) {
    __m256i low[kSharedQuads], high[kSharedQuads];
#pragma GCC unroll 4
    for (int64_t quad = 0; quad < kSharedQuads; ++quad) {
      low[quad] = (__m256i)quads[quad].pieces[n];
      if constexpr (kBits == 8) {
        // Not even one pair of 8 bits fits.
        high[quad] = _mm256_and_si256(_mm256_srli_epi16(low[quad], 4), mask);
        low[quad] = _mm256_and_si256(low[quad], mask);
      }
    }
    for (int64_t v = 0; v < kVectors; ++v) {
      __m256i sum = add_up(low, numbers + v * columns);
      if constexpr (kBits == 8)
        sum = _mm256_add_epi32(sum, _mm256_slli_epi32(add_up(high, numbers + v * columns), 4));
      sums[v].pieces[n] = (Ints)sum;
    }
  });
}
#else
template <class K, int64_t kVectors>
void multiply_quads(const Quad* quads, const int8_t* numbers, int64_t columns, RowInts* sums) {
  for (int64_t v = 0; v < kVectors; ++v)
    each_piece([&](int64_t n) {
      Ints sum{};
      for (int64_t i = 0; i < 4 * kSharedQuads; ++i)
        sum += (Ints)(quads[i / 4].pieces[n] >> (8 * (i % 4)) & 255) * numbers[v * columns + i];
      sums[v].pieces[n] = sum;
    });
}
#endif

// The products of a group's columns, before the weights' scale and offset, with kVectors vectors. Their
// numbers lie `columns` apart, their scales `columns / kShared`.
template <class K, int64_t kVectors>
void multiply_group(const Quad* quads, const int8_t* numbers, const float* scales, int64_t columns,
                    RowFloats* products) {
  for (int64_t part = 0; part < K::kGroup / kShared; ++part) {
    RowInts sums[kVectors];
    multiply_quads<K, kVectors>(quads + part * kSharedQuads, numbers + part * kShared, columns, sums);
    for (int64_t v = 0; v < kVectors; ++v) {
      const RowFloats wide = in_floats(sums[v]);
      const float scale = scales[v * (columns / kShared) + part];
      products[v] = part ? add_product(products[v], wide, in_all_rows(scale)) : wide * scale;
    }
  }
}

}  // namespace
