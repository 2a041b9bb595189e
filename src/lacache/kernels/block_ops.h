// What a decoder block computes between its products: norms, rotations and gates, of vectors in float32.

#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>

namespace {

struct Norm {
  at::Tensor weight;  // [N] in float32
  float eps = 0;

  // Normalises each of the vectors [B, N].
  void apply(const float* from, int64_t number, float* to) const {
    const float* factors = weight.const_data_ptr<float>();
    const int64_t size = weight.numel();
    for (; number > 0; --number, from += size, to += size) {
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t i = 0; i < size; ++i) sum += from[i] * from[i];
      const float scale = 1 / std::sqrt(sum / size + eps);
      for (int64_t i = 0; i < size; ++i) to[i] = from[i] * scale * factors[i];
    }
  }
};

// How gates are activated.
enum Activation { kSilu, kGelu };

// values [N] become themselves times the activated gates.
void activate(Activation activation, const float* gates, int64_t size, float* values) {
  if (activation == kSilu) {
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) values[i] *= gates[i] / (1 + std::exp(-gates[i]));
  } else {
    // GELU by tanh, written with an exponential.
    constexpr float kFactor = 2 * 0.7978845608028654f;
#pragma omp simd
    for (int64_t i = 0; i < size; ++i) {
      const float x = gates[i], cubic = x + 0.044715f * x * x * x;
      values[i] *= x / (1 + std::exp(-kFactor * cubic));
    }
  }
}

// heads [H, D] are rotated in place: the halves of each are pairs. cosines and sines [D].
void rotate_halves(float* heads, int64_t number, int64_t size, const float* cosines,
                   const float* sines) {
  const int64_t half = size / 2;
  for (; number > 0; --number, heads += size)
    for (int64_t i = 0; i < half; ++i) {
      const float low = heads[i], high = heads[half + i];
      heads[i] = low * cosines[i] - high * sines[i];
      heads[half + i] = high * cosines[half + i] + low * sines[half + i];
    }
}

}  // namespace
