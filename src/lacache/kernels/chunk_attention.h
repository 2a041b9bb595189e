// Attention of the queries of a chunk, each over the tokens that are there in its turn.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "tile.h"

namespace {

// Queries times query heads that are processed together: their scores stay in a processor's own cache.
constexpr int64_t kRowsTogether = 96;

int64_t round_up(int64_t number, int64_t unit) { return (number + unit - 1) / unit * unit; }

// A token that is visible to queries from `first` on, to before `end`: where its key and value are.
struct Visible {
  int32_t key, value, first, end;
};

// kTileColumns tokens side by side. All queries from `first_all` to `end_all` see each of them; none before
// `first` or from `end` on sees any.
struct TokenPanel {
  int32_t first, end, first_all, end_all;
};

// Keys and values of one KV head: those that are stored, those that count as the slots after them, and
// other keys that count as the slots after these.
template <class T>
struct ChunkHead {
  using Number = typename T::Stored;
  const Number *stored_keys, *stored_values, *new_keys, *new_values, *other_keys;
  int64_t num_stored, num_new, new_key_stride, new_value_stride, key_size, value_size;

  const Number* key(int64_t slot) const {
    if (slot < num_stored) return stored_keys + slot * key_size;
    slot -= num_stored;
    return slot < num_new ? new_keys + slot * new_key_stride : other_keys + (slot - num_new) * key_size;
  }
  const Number* value(int64_t slot) const {
    return slot < num_stored ? stored_values + slot * value_size
                             : new_values + (slot - num_stored) * new_value_stride;
  }
};

// The tokens of one KV head as products take them: panels of keys [D, kTileColumns], and values in rows that
// end with zeros.
struct PackedTokens {
  std::vector<TokenPanel> panels;
  std::vector<float> keys, values;
  int64_t value_width = 0;

  template <class T>
  void resize(const ChunkHead<T>& head, int64_t number) {
    const int64_t padded = round_up(number, kTileColumns);
    value_width = round_up(head.value_size, kTileColumns);
    panels.resize(padded / kTileColumns);
    keys.resize(padded * head.key_size);
    values.resize(padded * value_width);
  }

  template <class T>
  void pack(const ChunkHead<T>& head, const Visible* visible, int64_t number, int64_t index) {
    const int64_t start = index * kTileColumns, length = std::min(kTileColumns, number - start);
    float* to = keys.data() + start * head.key_size;
    float* value_to = values.data() + start * value_width;
    std::fill(to, to + kTileColumns * head.key_size, 0.f);
    std::fill(value_to, value_to + kTileColumns * value_width, 0.f);
    TokenPanel panel{INT32_MAX, 0, 0, length == kTileColumns ? INT32_MAX : 0};
    for (int64_t n = 0; n < length; ++n) {
      const Visible& token = visible[start + n];
      const auto* key = head.key(token.key);
      const auto* value = head.value(token.value);
      for (int64_t i = 0; i < head.key_size; ++i) to[i * kTileColumns + n] = T::widen(key[i]);
      for (int64_t i = 0; i < head.value_size; ++i) value_to[n * value_width + i] = T::widen(value[i]);
      panel.first = std::min(panel.first, token.first), panel.end = std::max(panel.end, token.end);
      panel.first_all = std::max(panel.first_all, token.first);
      panel.end_all = std::min(panel.end_all, token.end);
    }
    panels[index] = panel;
  }
};

// Of one thread, for one block of queries after the other.
struct Scratch {
  std::vector<int32_t> used;
  std::vector<float> wide, scores, sums, mixed;
};

// The queries `start` to `stop` of the query heads that share a KV head, one head after the other.
template <class T>
struct QueryBlock {
  const typename T::Stored* queries;
  typename T::Stored* found;
  int64_t start, stop, shared, query_stride, query_head_stride, found_stride;

  int64_t rows() const { return (stop - start) * shared; }

  void attend(const PackedTokens& packed, const Visible* visible, int64_t number, int64_t key_size, int64_t value_size,
              float scaling, Scratch& scratch) const {
    auto& [used, wide, scores, sums, mixed] = scratch;
    used.clear();
    for (size_t n = 0; n < packed.panels.size(); ++n)
      if (packed.panels[n].first < stop && packed.panels[n].end > start) used.push_back(n);
    if (used.empty()) return;
    const int64_t padded = round_up(rows(), kTileRows), width = used.size() * kTileColumns;
    wide.resize(padded * key_size), scores.resize(padded * width), sums.resize(padded);
    mixed.resize(padded * packed.value_width);
    for (int64_t row = 0; row < rows(); ++row) {
      const auto* query = at(queries, row, query_head_stride, query_stride);
      for (int64_t i = 0; i < key_size; ++i) wide[row * key_size + i] = T::widen(query[i]) * scaling;
    }
    for (size_t n = 0; n < used.size(); ++n)
      for (int64_t row = 0; row < padded; row += kTileRows) {
        Tile tile;
        tile.add(wide.data() + row * key_size, key_size,
                 packed.keys.data() + used[n] * kTileColumns * key_size, kTileColumns, key_size);
        tile.store(scores.data() + row * width + n * kTileColumns, width);
      }
    hide(packed, used, visible, number, scores.data(), width);
    for (int64_t row = 0; row < rows(); ++row) sums[row] = weigh(scores.data() + row * width, width);
    for (int64_t column = 0; column < packed.value_width; column += kTileColumns)
      for (int64_t row = 0; row < padded; row += kTileRows) {
        Tile tile;
        for (size_t n = 0; n < used.size(); ++n)
          tile.add(scores.data() + row * width + n * kTileColumns, width,
                   packed.values.data() + used[n] * kTileColumns * packed.value_width + column,
                   packed.value_width, kTileColumns);
        tile.store(mixed.data() + row * packed.value_width + column, packed.value_width);
      }
    for (int64_t row = 0; row < rows(); ++row) {
      float* mine = mixed.data() + row * packed.value_width;
      for (int64_t i = 0; i < value_size; ++i) mine[i] /= sums[row];
      narrow_all(mine, value_size, at(found, row, value_size, found_stride));
    }
  }

 private:
  template <class Number>
  Number* at(Number* first, int64_t row, int64_t head_stride, int64_t stride) const {
    const int64_t length = stop - start;
    return first + row / length * head_stride + (start + row % length) * stride;
  }

  // Scores of tokens that are not visible to a query become so small that they count for nothing.
  void hide(const PackedTokens& packed, const std::vector<int32_t>& used, const Visible* visible, int64_t number,
            float* scores, int64_t width) const {
    for (size_t n = 0; n < used.size(); ++n) {
      const TokenPanel& panel = packed.panels[used[n]];
      if (panel.first_all <= start && panel.end_all >= stop) continue;
      for (int64_t column = 0; column < kTileColumns; ++column) {
        const int64_t token = used[n] * kTileColumns + column;
        const Visible mine = token < number ? visible[token] : Visible{};
        float* mine_of = scores + n * kTileColumns + column;
        for (int64_t row = 0; row < rows();)
          for (int64_t query = start; query < stop; ++query, ++row)
            if (query < mine.first || query >= mine.end) mine_of[row * width] = -1e30f;
      }
    }
  }

  // Scores become exponentials; returns their sum.
  static float weigh(float* scores, int64_t number) {
    float largest = scores[0], sum = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t n = 1; n < number; ++n) largest = scores[n] > largest ? scores[n] : largest;
#pragma omp simd
    // Smaller exponentials count for nothing, and those below the smallest number are slow.
    for (int64_t n = 0; n < number; ++n) scores[n] = std::exp(std::max(scores[n] - largest, -80.f));
#pragma omp simd reduction(+ : sum)
    for (int64_t n = 0; n < number; ++n) sum += scores[n];
    return sum;
  }
};

template <class T>
at::Tensor attend_chunk_of(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                           const int64_t* first_slots, at::IntArrayRef num_stored,
                           const at::Tensor& new_keys, const at::Tensor& new_values,
                           at::TensorList other_keys, at::TensorList visible, float scaling) {
  using Number = typename T::Stored;
  const int64_t kv_heads = new_keys.size(1), shared = query.size(1) / kv_heads, length = query.size(2);
  const int64_t key_size = keys.size(1), value_size = values.size(1);
  // Heads are next to each other, as the model's output layer takes them.
  at::Tensor found = at::zeros({1, length, query.size(1), value_size}, query.options());
  const auto of = [](const at::Tensor& tensor) { return static_cast<const Number*>(tensor.const_data_ptr()); };
  Number* all_found = static_cast<Number*>(found.mutable_data_ptr());
  const int64_t together = std::max<int64_t>(1, kRowsTogether / shared);
  const int64_t num_blocks = (length + together - 1) / together;
  PackedTokens packed;
  for (int64_t h = 0; h < kv_heads; ++h) {
    const ChunkHead<T> head{of(keys) + first_slots[h] * key_size,
                            of(values) + first_slots[h] * value_size,
                            of(new_keys) + h * new_keys.stride(1),
                            of(new_values) + h * new_values.stride(1),
                            of(other_keys[h]),
                            num_stored[h],
                            new_keys.size(2),
                            new_keys.stride(2),
                            new_values.stride(2),
                            key_size,
                            value_size};
    const int64_t number = visible[h].size(0);
    const Visible* tokens = static_cast<const Visible*>(visible[h].const_data_ptr());
    packed.resize(head, number);
    const int64_t num_panels = packed.panels.size();
    const int threads = number * length * key_size < kWorthAThread ? 1 : at::get_num_threads();
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      Scratch scratch;
#pragma omp for
      for (int64_t n = 0; n < num_panels; ++n) packed.pack(head, tokens, number, n);
#pragma omp for schedule(dynamic)
      for (int64_t n = 0; n < num_blocks; ++n) {
        const int64_t first_head = h * shared;
        const QueryBlock<T> block{of(query) + first_head * query.stride(1),
                                  all_found + first_head * value_size,
                                  n * together,
                                  std::min(length, (n + 1) * together),
                                  shared,
                                  query.stride(2),
                                  query.stride(1),
                                  query.size(1) * value_size};
        block.attend(packed, tokens, number, key_size, value_size, scaling, scratch);
      }
    }
  }
  return found.transpose(1, 2);
}

// query [1, Hq, Q, D]; keys and values [N, D], of which each KV head has num_stored [Hkv] from first_slots
// [Hkv] on; new keys and values [1, Hkv, M, D] count as the slots after them, and other keys [K, D] of each
// KV head as those after these. For each KV head, visible [T, 4] in int32: slot of the key, slot of the value,
// first query and the query after the last. [1, Hq, Q, D]; undefined for queries that see nothing.
at::Tensor attend_chunk(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                        const at::Tensor& first_slots, at::IntArrayRef num_stored,
                        const at::Tensor& new_keys, const at::Tensor& new_values,
                        at::TensorList other_keys, at::TensorList visible, double scaling) {
  const int64_t heads = new_keys.dim() == 4 ? new_keys.size(1) : 0;
  TORCH_CHECK(query.dim() == 4 && query.size(0) == 1 && query.stride(3) == 1 && heads > 0 &&
                  query.size(1) % heads == 0 && query.size(3) == keys.size(1) && keys.dim() == 2 &&
                  values.dim() == 2 && values.size(0) == keys.size(0) && keys.is_contiguous() &&
                  values.is_contiguous(),
              "lacache::attend_chunk: query [1, Hq, Q, D], contiguous keys and values [N, D]");
  TORCH_CHECK(new_values.dim() == 4 && new_keys.size(0) == 1 && new_values.size(0) == 1 &&
                  new_values.size(1) == heads && new_values.size(2) == new_keys.size(2) &&
                  new_keys.size(3) == keys.size(1) && new_values.size(3) == values.size(1) &&
                  new_keys.stride(3) == 1 && new_values.stride(3) == 1,
              "lacache::attend_chunk: new keys and values [1, Hkv, M, D]");
  for (const at::Tensor* each : {&keys, &values, &new_keys, &new_values})
    TORCH_CHECK(each->scalar_type() == query.scalar_type(), "lacache::attend_chunk: one type");
  TORCH_CHECK(first_slots.scalar_type() == at::kLong && first_slots.is_contiguous() &&
                  first_slots.numel() == heads && int64_t(num_stored.size()) == heads &&
                  int64_t(other_keys.size()) == heads && int64_t(visible.size()) == heads,
              "lacache::attend_chunk: first slots, counts, keys and tokens of each KV head");
  const int64_t* first = first_slots.const_data_ptr<int64_t>();
  for (int64_t h = 0; h < heads; ++h) {
    const at::Tensor &others = other_keys[h], &tokens = visible[h];
    TORCH_CHECK(others.dim() == 2 && others.size(1) == keys.size(1) && others.is_contiguous() &&
                    others.scalar_type() == query.scalar_type() && tokens.dim() == 2 &&
                    tokens.size(1) == 4 && tokens.is_contiguous() && tokens.scalar_type() == at::kInt,
                "lacache::attend_chunk: keys [K, D] of one type and tokens [T, 4] in int32");
    TORCH_CHECK(first[h] >= 0 && num_stored[h] >= 0 && first[h] + num_stored[h] <= keys.size(0),
                "lacache::attend_chunk: stored slots are among the rows");
    const int64_t values_there = num_stored[h] + new_keys.size(2), keys_there = values_there + others.size(0);
    const Visible* token = static_cast<const Visible*>(tokens.const_data_ptr());
    for (int64_t n = 0; n < tokens.size(0); ++n)
      TORCH_CHECK(0 <= token[n].key && token[n].key < keys_there && 0 <= token[n].value &&
                      token[n].value < values_there && 0 <= token[n].first,
                  "lacache::attend_chunk: tokens are in slots that are there");
  }
  if (query.scalar_type() == at::kFloat)
    return attend_chunk_of<Float32>(query, keys, values, first, num_stored, new_keys, new_values,
                                    other_keys, visible, scaling);
  TORCH_CHECK(query.scalar_type() == at::kBFloat16, "lacache::attend_chunk: float32 or bfloat16");
  return attend_chunk_of<BFloat16>(query, keys, values, first, num_stored, new_keys, new_values, other_keys,
                                   visible, scaling);
}

}  // namespace
