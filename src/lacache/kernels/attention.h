// Attention of one token over the slots in use, which are rows side by side for each KV head.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "numbers.h"

namespace {

void softmax(float* scores, int64_t number) {
  float largest = scores[0], sum = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t n = 1; n < number; ++n) largest = scores[n] > largest ? scores[n] : largest;
#pragma omp simd
  for (int64_t n = 0; n < number; ++n) scores[n] = std::exp(scores[n] - largest);
#pragma omp simd reduction(+ : sum)
  for (int64_t n = 0; n < number; ++n) sum += scores[n];
  for (int64_t n = 0; n < number; ++n) scores[n] /= sum;
}

// The slots of one KV head.
template <class T>
struct Head {
  const typename T::Stored *keys, *values;
  int64_t number, key_size, value_size;
};

// shares [kQueries, N] become how much each of the queries [kQueries, D] attends to each slot.
template <class T, int64_t kQueries>
void weigh(const Head<T>& head, const float* queries, float* shares) {
  static_assert(T::kUnit == 1, "states are numbers as they are");
  const int64_t size = head.key_size, num_blocks = size / kBlock<T>;
  std::vector<Vector<T>> vectors;
  for (int64_t n = 0; n < kQueries; ++n) vectors.emplace_back(queries + n * size, size);
  const Floats* blocks[kQueries];
  for (int64_t n = 0; n < kQueries; ++n) blocks[n] = vectors[n].blocks.data();
  Floats sums[kQueries][kLanes] = {};
  for (int64_t first = 0; first < head.number; first += kLanes) {
    const int64_t together = std::min(kLanes, head.number - first);
    for (int64_t slot = 0; slot < together; ++slot) {
      const typename T::Stored* key = head.keys + (first + slot) * size;
      Floats found[kQueries] = {};
      for (int64_t block = 0; block < num_blocks; ++block) {
        const Words words = load(key + block * kBlock<T>);
        for (int64_t j = 0; j < T::kPer; ++j) {
          const Floats wide = T::widen(words, j);
          for (int64_t n = 0; n < kQueries; ++n) found[n] += wide * blocks[n][block * T::kPer + j];
        }
      }
      for (int64_t n = 0; n < kQueries; ++n) sums[n][slot] = found[n];
    }
    for (int64_t n = 0; n < kQueries; ++n) {
      const Floats scores = totals(sums[n]);
      std::memcpy(shares + n * head.number + first, &scores, together * sizeof(float));
    }
  }
  const int64_t whole = num_blocks * kBlock<T>;
  for (int64_t slot = 0; slot < head.number; ++slot)
    for (int64_t n = 0; n < kQueries && whole < size; ++n) {
      float score = 0;
      for (int64_t i = whole; i < size; ++i)
        score += T::widen(head.keys[slot * size + i]) * queries[n * size + i];
      shares[n * head.number + slot] += score;
    }
  for (int64_t n = 0; n < kQueries; ++n) softmax(shares + n * head.number, head.number);
}

// Adds up kBlocks blocks of all values from `start` on, each value times its share.
template <class T, int64_t kQueries, int64_t kBlocks>
void mix_blocks(const Head<T>& head, const float* shares, int64_t start, float* found) {
  const int64_t size = head.value_size;
  Floats sums[kQueries][kBlocks][T::kPer] = {};
  for (int64_t slot = 0; slot < head.number; ++slot)
    for (int64_t block = 0; block < kBlocks; ++block) {
      const Words words = load(head.values + slot * size + start + block * kBlock<T>);
      for (int64_t j = 0; j < T::kPer; ++j) {
        const Floats wide = T::widen(words, j);
        for (int64_t n = 0; n < kQueries; ++n)
          sums[n][block][j] += wide * shares[n * head.number + slot];
      }
    }
  for (int64_t n = 0; n < kQueries; ++n)
    for (int64_t block = 0; block < kBlocks; ++block)
      for (int64_t i = 0; i < kBlock<T>; ++i)
        found[n * size + start + block * kBlock<T> + i] = sums[n][block][i % T::kPer][i / T::kPer];
}

// found [kQueries, D] becomes the sum of all values, each times its share.
template <class T, int64_t kQueries>
void mix(const Head<T>& head, const float* shares, float* found) {
  // As many as the processor's registers hold.
  constexpr int64_t kBlocks = kLanes / 8;
  const int64_t size = head.value_size, whole = size / kBlock<T> * kBlock<T>;
  int64_t start = 0;
  for (; start + kBlocks * kBlock<T> <= whole; start += kBlocks * kBlock<T>)
    mix_blocks<T, kQueries, kBlocks>(head, shares, start, found);
  for (; start < whole; start += kBlock<T>)
    mix_blocks<T, kQueries, 1>(head, shares, start, found);
  for (int64_t n = 0; n < kQueries; ++n) std::fill(found + n * size + whole, found + (n + 1) * size, 0.f);
  for (int64_t slot = 0; slot < head.number; ++slot)
    for (int64_t n = 0; n < kQueries; ++n)
      for (int64_t i = whole; i < size; ++i)
        found[n * size + i] +=
            shares[n * head.number + slot] * T::widen(head.values[slot * size + i]);
}

template <class T, int64_t kQueries>
void attend_head(const Head<T>& head, const float* queries, float* found) {
  std::vector<float> shares(kQueries * head.number);
  weigh<T, kQueries>(head, queries, shares.data());
  mix<T, kQueries>(head, shares.data(), found);
}

// Query heads [N, D] that share the keys and values, a few at once.
template <class T>
void attend_heads(const Head<T>& head, const float* queries, int64_t number, float* found) {
  const auto next = [&]<int64_t kQueries>() {
    attend_head<T, kQueries>(head, queries, found);
    queries += kQueries * head.key_size, found += kQueries * head.value_size, number -= kQueries;
  };
  while (number >= 4) next.template operator()<4>();
  if (number == 3) next.template operator()<3>();
  if (number == 2) next.template operator()<2>();
  if (number == 1) next.template operator()<1>();
}

// Calls attend(first row, number of slots, first query head, number of query heads) for each KV head
// of each sequence.
template <class Attend>
void for_each_head(const at::Tensor& query, int64_t num_slots, const at::Tensor& first_slots,
                   const at::Tensor& last_slots, const Attend& attend) {
  const int64_t kv_heads = first_slots.size(1), heads = query.size(0) * kv_heads;
  const int64_t shared = query.size(1) / kv_heads;
  const auto first = first_slots.accessor<int64_t, 2>(), last = last_slots.accessor<int64_t, 2>();
  int64_t most = 0;
  for (int64_t n = 0; n < heads; ++n) {
    const int64_t row = first[n / kv_heads][n % kv_heads], number = last[n / kv_heads][n % kv_heads] + 1;
    TORCH_CHECK(row >= 0 && number > 0 && row + number <= num_slots,
                "lacache::attend: each head's slots are among the rows");
    most = std::max(most, number);
  }
  const int threads = heads * most * query.size(3) < kWorthAThread ? 1 : at::get_num_threads();
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t n = 0; n < heads; ++n)
    attend(first[n / kv_heads][n % kv_heads], last[n / kv_heads][n % kv_heads] + 1, n * shared,
           shared);
}

template <class T>
void attend_in_place(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                 const at::Tensor& first_slots, const at::Tensor& last_slots, at::Tensor& found) {
  using States = const typename T::Stored*;
  const int64_t key_size = keys.size(1), value_size = values.size(1);
  const States all_keys = static_cast<States>(keys.const_data_ptr());
  const States all_values = static_cast<States>(values.const_data_ptr());
  const float* queries = query.const_data_ptr<float>();
  float* all_found = found.mutable_data_ptr<float>();
  for_each_head(query, keys.size(0), first_slots, last_slots,
                [&](int64_t row, int64_t number, int64_t q, int64_t shared) {
    const Head<T> head{all_keys + row * key_size, all_values + row * value_size, number, key_size,
                       value_size};
    attend_heads(head, queries + q * key_size, shared, all_found + q * value_size);
  });
}

void check_query(const at::Tensor& query, const at::Tensor& first_slots,
                 const at::Tensor& last_slots) {
  TORCH_CHECK(query.dim() == 4 && first_slots.dim() == 2 && first_slots.size(1) > 0 &&
                  query.size(0) == first_slots.size(0) && query.size(1) % first_slots.size(1) == 0 &&
                  query.size(2) == 1 && last_slots.sizes() == first_slots.sizes() &&
                  first_slots.scalar_type() == at::kLong && last_slots.scalar_type() == at::kLong &&
                  query.scalar_type() == at::kFloat && query.is_contiguous(),
              "lacache::attend: one query a head in float32, with rows and slots in int64");
}

// query [B, Hq, 1, D] in float32 and scaled, keys and values [N, D]; each KV head has the rows from
// first_slots [B, Hkv] on, up to its slot last_slots [B, Hkv]: [B, Hq, 1, D] in float32.
at::Tensor attend(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                  const at::Tensor& first_slots, const at::Tensor& last_slots) {
  check_query(query, first_slots, last_slots);
  TORCH_CHECK(keys.dim() == 2 && values.dim() == 2 && query.size(3) == keys.size(1) &&
                  values.size(0) == keys.size(0) && keys.is_contiguous() &&
                  values.is_contiguous() && keys.scalar_type() == values.scalar_type(),
              "lacache::attend: contiguous rows of one type");
  at::Tensor found =
      at::empty({query.size(0), query.size(1), 1, values.size(1)}, query.options());
  if (keys.scalar_type() == at::kFloat)
    attend_in_place<Float32>(query, keys, values, first_slots, last_slots, found);
  else if (keys.scalar_type() == at::kBFloat16)
    attend_in_place<BFloat16>(query, keys, values, first_slots, last_slots, found);
  else
    TORCH_CHECK(false, "lacache::attend: states are float32 or bfloat16");
  return found;
}

// LayerStates of integers in 8 bits, or two in a byte of which the low one belongs to the first half, times
// scales in bfloat16 of as many equal groups.
struct Coded {
  const void* integers;
  const uint16_t* scales;
  bool is_packed;
  int64_t size, num_scales;

  Coded(const at::Tensor& rows, const at::Tensor& of_rows)
      : integers(rows.const_data_ptr()),
        scales(static_cast<const uint16_t*>(of_rows.const_data_ptr())),
        is_packed(rows.scalar_type() == at::kByte),
        size(rows.size(1) * (is_packed ? 2 : 1)),
        num_scales(of_rows.size(1)) {
    TORCH_CHECK(rows.dim() == 2 && of_rows.dim() == 2 && rows.size(0) == of_rows.size(0) &&
                    rows.is_contiguous() && of_rows.is_contiguous() &&
                    (is_packed || rows.scalar_type() == at::kChar) &&
                    of_rows.scalar_type() == at::kBFloat16 && num_scales > 0 &&
                    size % num_scales == 0,
                "lacache::attend_coded: contiguous integers, and scales in bfloat16");
  }

  void widen(int64_t row, float* wide) const {
    if (is_packed) {
      const int64_t half = size / 2;
      const uint8_t* from = static_cast<const uint8_t*>(integers) + row * half;
      for (int64_t i = 0; i < half; ++i) wide[i] = int32_t(from[i] & 15) - 8;
      for (int64_t i = 0; i < half; ++i) wide[half + i] = int32_t(from[i] >> 4) - 8;
    } else {
      const int8_t* from = static_cast<const int8_t*>(integers) + row * size;
      for (int64_t i = 0; i < size; ++i) wide[i] = from[i];
    }
    const int64_t group = size / num_scales;
    for (int64_t n = 0; n < num_scales; ++n) {
      const float scale = BFloat16::widen(scales[row * num_scales + n]);
      for (int64_t i = n * group; i < (n + 1) * group; ++i) wide[i] *= scale;
    }
  }
};

// As `attend`, but keys and values are integers [N, W] times scales [N, G].
at::Tensor attend_coded(const at::Tensor& query, const at::Tensor& keys,
                        const at::Tensor& key_scales, const at::Tensor& values,
                        const at::Tensor& value_scales, const at::Tensor& first_slots,
                        const at::Tensor& last_slots) {
  check_query(query, first_slots, last_slots);
  const Coded all_keys(keys, key_scales), all_values(values, value_scales);
  const int64_t key_size = all_keys.size, value_size = all_values.size;
  TORCH_CHECK(query.size(3) == key_size && values.size(0) == keys.size(0),
              "lacache::attend_coded: keys as long as queries, and as many values");
  at::Tensor found = at::zeros({query.size(0), query.size(1), 1, value_size}, query.options());
  const float* queries = query.const_data_ptr<float>();
  float* all_found = found.mutable_data_ptr<float>();
  for_each_head(query, keys.size(0), first_slots, last_slots,
                [&](int64_t row, int64_t number, int64_t q, int64_t shared) {
    std::vector<float> wide(std::max(key_size, value_size)), shares(shared * number);
    for (int64_t slot = 0; slot < number; ++slot) {
      all_keys.widen(row + slot, wide.data());
      for (int64_t n = 0; n < shared; ++n) {
        const float* one = queries + (q + n) * key_size;
        float score = 0;
#pragma omp simd reduction(+ : score)
        for (int64_t i = 0; i < key_size; ++i) score += wide[i] * one[i];
        shares[n * number + slot] = score;
      }
    }
    for (int64_t n = 0; n < shared; ++n) softmax(shares.data() + n * number, number);
    for (int64_t slot = 0; slot < number; ++slot) {
      all_values.widen(row + slot, wide.data());
      for (int64_t n = 0; n < shared; ++n) {
        const float share = shares[n * number + slot];
        float* to = all_found + (q + n) * value_size;
        for (int64_t i = 0; i < value_size; ++i) to[i] += share * wide[i];
      }
    }
  });
  return found;
}

}  // namespace
