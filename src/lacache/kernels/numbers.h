// Numbers as they are stored, and vectors of them. Vectors are those of GCC and Clang, so this is the
// same source for every processor.

#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers lie lowest byte first");

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#else
constexpr int64_t kLanes = 8;
#endif
// Fewer numbers than this are not worth a second thread.
constexpr int64_t kWorthAThread = 1 << 16;

typedef float Floats __attribute__((vector_size(4 * kLanes)));
typedef int32_t Ints __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

// How numbers lie in 32-bit words, kPer in each: `widen` makes the j-th of every word a float, which
// times kUnit is the number.

struct Float32 {
  using Stored = float;
  static constexpr int64_t kPer = 1;
  static constexpr float kUnit = 1;
  static Floats widen(Words words, int64_t) { return (Floats)words; }
  static float widen(float number) { return number; }
};

struct BFloat16 {
  using Stored = uint16_t;
  static constexpr int64_t kPer = 2;
  static constexpr float kUnit = 1;
  static Floats widen(Words words, int64_t j) {
    return (Floats)(j ? words & 0xffff0000u : words << 16);
  }
  static float widen(uint16_t number) {
    const uint32_t bits = uint32_t(number) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
  }
};

struct Int8 {
  using Stored = int8_t;
  static constexpr int64_t kPer = 4;
  // Left in the highest byte: to shift it down would cost as much as all the rest.
  static constexpr float kUnit = 1.0f / (1 << 24);
  static Floats widen(Words words, int64_t j) {
    const Words highest = j == 3 ? words : words << (24 - 8 * j);
    return __builtin_convertvector((Ints)(j == 0 ? highest : highest & 0xff000000u), Floats);
  }
  static float widen(int8_t number) { return number; }
};

uint16_t round_to_bfloat16(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return is_nan ? 0x7fc0 : (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
}

float narrow(float number, float) { return number; }
uint16_t narrow(float number, uint16_t) { return round_to_bfloat16(number); }

// As `narrow`, of many finite numbers at once.
void narrow_all(const float* from, int64_t number, float* to) { std::memcpy(to, from, number * sizeof *to); }
void narrow_all(const float* from, int64_t number, uint16_t* to) {
  for (int64_t i = 0; i < number; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    to[i] = (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
  }
}

template <class T>
constexpr int64_t kBlock = kLanes * T::kPer;

Words load(const void* from) {
  Words words;
  std::memcpy(&words, from, sizeof words);
  return words;
}

float total(Floats lanes) {
  float sum = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

// Lane n becomes the total of the n-th of 2 * kWidth vectors, which are overwritten.
template <int64_t kWidth = kLanes / 2>
Floats totals(Floats* vectors) {
  Ints lower{}, upper{};
#pragma GCC unroll 16
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    lower[lane] = lane & kWidth ? kLanes + lane - kWidth : lane;
    upper[lane] = lane & kWidth ? kLanes + lane : lane + kWidth;
  }
  for (int64_t n = 0; n < kWidth; ++n) {
    const Floats one = vectors[n], other = vectors[n + kWidth];
    vectors[n] = __builtin_shuffle(one, other, lower) + __builtin_shuffle(one, other, upper);
  }
  if constexpr (kWidth > 1)
    return totals<kWidth / 2>(vectors);
  else
    return vectors[0];
}

// A vector, and its whole blocks in the order in which `widen` brings what they are multiplied with.
template <class T>
struct Vector {
  const float* plain;
  int64_t size;
  std::vector<Floats> blocks;

  Vector(const float* from, int64_t length)
      : plain(from), size(length), blocks(length / kBlock<T> * T::kPer) {
    for (size_t n = 0; n < blocks.size(); ++n) {
      const int64_t block = n / T::kPer, j = n % T::kPer;
      for (int64_t lane = 0; lane < kLanes; ++lane)
        blocks[n][lane] = from[(block * kLanes + lane) * T::kPer + j];
    }
  }
};

}  // namespace
