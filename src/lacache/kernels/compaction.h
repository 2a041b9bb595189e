// The operations of a compaction: gather surviving slots, move regions, rotate keys.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "numbers.h"

namespace {

// Slots [N], increasing, of stored [H, C, ...] move to the front, those before `start` excepted.
void gather(const at::Tensor& stored, const at::Tensor& slots, int64_t start) {
  const int64_t number = slots.numel();
  TORCH_CHECK(stored.dim() >= 2 && stored.is_contiguous() && slots.is_contiguous() &&
                  slots.scalar_type() == at::kLong && number <= stored.size(1) && start >= 0,
              "lacache::gather: contiguous stored [H, C, ...] and slots [N] in int64");
  const int64_t* from = slots.const_data_ptr<int64_t>();
  for (int64_t n = start; n < number; ++n)
    TORCH_CHECK(from[n] >= n && from[n] < stored.size(1) && (n == start || from[n] > from[n - 1]),
                "lacache::gather: slots increase and are there");
  const int64_t heads = stored.size(0), head = stored.stride(0) * stored.element_size();
  const int64_t slot = stored.stride(1) * stored.element_size();
  char* first = static_cast<char*>(stored.mutable_data_ptr());
  for (int64_t h = 0; h < heads; ++h, first += head)
    for (int64_t n = start, end; n < number; n = end) {
      // Slots side by side move together.
      for (end = n + 1; end < number && from[end] == from[end - 1] + 1;) ++end;
      if (from[n] != n) std::memmove(first + n * slot, first + from[n] * slot, (end - n) * slot);
    }
}

// Runs of rows of stored [P, ...] move one after the other: moves [M, 3] are the first row, the row
// that it becomes and the number of rows.
void move(const at::Tensor& stored, const at::Tensor& moves) {
  TORCH_CHECK(stored.dim() >= 1 && stored.is_contiguous() && moves.dim() == 2 && moves.size(1) == 3 &&
                  moves.is_contiguous() && moves.scalar_type() == at::kLong,
              "lacache::move: contiguous stored [P, ...] and moves [M, 3] in int64");
  const int64_t row = stored.stride(0) * stored.element_size(), rows = stored.size(0);
  const int64_t* move = moves.const_data_ptr<int64_t>();
  for (int64_t n = 0; n < 3 * moves.size(0); n += 3)
    for (int64_t i = 0; i < 2; ++i)
      TORCH_CHECK(move[n + i] >= 0 && move[n + 2] >= 0 && move[n + i] + move[n + 2] <= rows,
                  "lacache::move: runs are among the rows");
  char* first = static_cast<char*>(stored.mutable_data_ptr());
  for (int64_t n = 0; n < moves.size(0); ++n, move += 3)
    std::memmove(first + move[1] * row, first + move[0] * row, move[2] * row);
}

// Numbers side by side whose partners are side by side too.
struct Run {
  int64_t first, partner, length;
};

std::vector<Run> runs_of(const int64_t* partners, int64_t size) {
  std::vector<Run> runs;
  for (int64_t i = 0; i < size; ++i)
    if (i > 0 && partners[i] == partners[i - 1] + 1)
      ++runs.back().length;
    else
      runs.push_back({i, partners[i], 1});
  return runs;
}

template <class T>
void rotate_heads(const at::Tensor& keys, const float* cosines, const float* sines,
                const std::vector<Run>& runs, at::Tensor& rotated) {
  using Number = typename T::Stored;
  const int64_t heads = keys.size(1), number = keys.size(2), size = keys.size(3);
  Number* to = static_cast<Number*>(rotated.mutable_data_ptr());
  std::vector<float> wide(size), stays(size), comes(size);
  for (int64_t h = 0; h < heads; ++h) {
    const Number* head = static_cast<const Number*>(keys.const_data_ptr()) + h * keys.stride(1);
    for (int64_t n = 0; n < number; ++n, to += size) {
      const Number* key = head + n * keys.stride(2);
      const float *cosine = cosines + n * size, *sine = sines + n * size;
      for (int64_t i = 0; i < size; ++i) wide[i] = T::widen(key[i]);
      for (int64_t i = 0; i < size; ++i) stays[i] = wide[i] * cosine[i];
      for (const Run& run : runs)
        for (int64_t i = 0; i < run.length; ++i)
          comes[run.first + i] = wide[run.partner + i] * sine[run.first + i];
      // Through memory, so that both products are rounded before they are added, as torch does it.
      asm volatile("" ::: "memory");
      for (int64_t i = 0; i < size; ++i) to[i] = narrow(stays[i] + comes[i], Number());
    }
  }
}

// keys [1, H, N, D], cosines and sines [N, D] in float32, partners [D] of int64: [1, H, N, D].
at::Tensor rotate(const at::Tensor& keys, const at::Tensor& cosines, const at::Tensor& sines,
                const at::Tensor& partners) {
  TORCH_CHECK(keys.dim() == 4 && keys.size(0) == 1 && keys.stride(3) == 1, "lacache::rotate: keys [1, H, N, D]");
  const int64_t number = keys.size(2), size = keys.size(3);
  for (const at::Tensor* table : {&cosines, &sines})
    TORCH_CHECK(table->scalar_type() == at::kFloat && table->is_contiguous() &&
                    table->sizes() == at::IntArrayRef({number, size}),
                "lacache::rotate: tables [N, D] in float32");
  TORCH_CHECK(partners.scalar_type() == at::kLong && partners.is_contiguous() && partners.numel() == size, "lacache::rotate: partners [D] in int64");
  const int64_t* other = partners.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < size; ++i)
    TORCH_CHECK(other[i] >= 0 && other[i] < size, "lacache::rotate: partners are among the D numbers");
  const std::vector<Run> runs = runs_of(other, size);
  at::Tensor rotated = at::empty(keys.sizes(), keys.options());
  const float* cosine = cosines.const_data_ptr<float>();
  const float* sine = sines.const_data_ptr<float>();
  if (keys.scalar_type() == at::kFloat)
    rotate_heads<Float32>(keys, cosine, sine, runs, rotated);
  else if (keys.scalar_type() == at::kBFloat16)
    rotate_heads<BFloat16>(keys, cosine, sine, runs, rotated);
  else
    TORCH_CHECK(false, "lacache::rotate: keys are float32 or bfloat16");
  return rotated;
}

}  // namespace
