// The operations of a compaction: gather surviving slots, move regions, rotate keys.

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "numbers.h"

namespace {

// Slots that move together: from where, to where, and how many.
struct Move {
  int64_t from, to, length;
};

// What lets slot n become slot slots[n] >= n, of `number` slots from `start` on.
std::vector<Move> moves_of(const int64_t* slots, int64_t number, int64_t start, int64_t capacity) {
  TORCH_CHECK(start >= 0 && number <= capacity, "lacache::gather: slots are there");
  std::vector<Move> moves;
  for (int64_t n = start, end; n < number; n = end) {
    TORCH_CHECK(slots[n] >= n && slots[n] < capacity,
                "lacache::gather: slots are there, and none moves to a later one");
    // Slots side by side move together.
    for (end = n + 1; end < number && slots[end] == slots[end - 1] + 1 && slots[end] < capacity;) ++end;
    if (slots[n] != n) moves.push_back({slots[n], n, end - n});
  }
  return moves;
}

void apply_moves(const std::vector<Move>& moves, char* first, int64_t size) {
  for (const Move& move : moves)
    std::memmove(first + move.to * size, first + move.from * size, move.length * size);
}

// Slot n of stored [H, C, ...] becomes slot slots[n] >= n, from `start` on; slots [N].
void gather(const at::Tensor& stored, const at::Tensor& slots, int64_t start) {
  TORCH_CHECK(stored.dim() >= 2 && stored.is_contiguous() && slots.is_contiguous() &&
                  slots.scalar_type() == at::kLong,
              "lacache::gather: contiguous stored [H, C, ...] and slots [N] in int64");
  const std::vector<Move> moves =
      moves_of(slots.const_data_ptr<int64_t>(), slots.numel(), start, stored.size(1));
  const int64_t head = stored.stride(0) * stored.element_size();
  char* first = static_cast<char*>(stored.mutable_data_ptr());
  for (int64_t h = 0; h < stored.size(0); ++h, first += head)
    apply_moves(moves, first, stored.stride(1) * stored.element_size());
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

// Single slots of heads move within stored [R, W]: `first` [H] is each head's first slot, `patterns` [H]
// its pattern, and moves [3, M] are pattern, slot and former slot of each, by pattern.
void move_few(const at::Tensor& stored, const at::Tensor& first, const at::Tensor& patterns,
              const at::Tensor& moves) {
  const int64_t heads = first.numel(), number = moves.dim() == 2 ? moves.size(1) : -1;
  for (const at::Tensor* each : {&first, &patterns, &moves})
    TORCH_CHECK(each->is_contiguous() && each->scalar_type() == at::kLong, "lacache::move_few: int64");
  TORCH_CHECK(stored.dim() == 2 && stored.is_contiguous() && patterns.numel() == heads && number >= 0 &&
                  moves.size(0) == 3,
              "lacache::move_few: contiguous stored [R, W], first and patterns [H], moves [3, M]");
  const int64_t rows = stored.size(0), size = stored.stride(0) * stored.element_size();
  const int64_t *pattern = moves.const_data_ptr<int64_t>(), *slots = pattern + number,
                *former = slots + number;
  char* all = static_cast<char*>(stored.mutable_data_ptr());
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t row = first.const_data_ptr<int64_t>()[h];
    const auto mine = std::equal_range(pattern, pattern + number, patterns.const_data_ptr<int64_t>()[h]);
    for (int64_t n = mine.first - pattern; n < mine.second - pattern; ++n) {
      TORCH_CHECK(row + slots[n] >= 0 && row + slots[n] < rows && row + former[n] >= 0 &&
                      row + former[n] < rows,
                  "lacache::move_few: slots are among the rows");
      std::memcpy(all + (row + slots[n]) * size, all + (row + former[n]) * size, size);
    }
  }
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

// Rotates keys, and rounds each number once.
template <class T>
struct Rotator {
  using Number = typename T::Stored;
  const std::vector<Run>& runs;
  const int64_t size;
  std::vector<float> wide, stays, comes;

  Rotator(const std::vector<Run>& partners, int64_t length)
      : runs(partners), size(length), wide(length), stays(length), comes(length) {}

  void rotate(const Number* key, const float* cosine, const float* sine, Number* to) {
    for (int64_t i = 0; i < size; ++i) wide[i] = T::widen(key[i]);
    for (int64_t i = 0; i < size; ++i) stays[i] = wide[i] * cosine[i];
    for (const Run& run : runs)
      for (int64_t i = 0; i < run.length; ++i)
        comes[run.first + i] = wide[run.partner + i] * sine[run.first + i];
    // Through memory, so that both products are rounded before they are added, as torch does it.
    asm volatile("" ::: "memory");
    for (int64_t i = 0; i < size; ++i) to[i] = narrow(stays[i] + comes[i], Number());
  }
};

template <class T>
void rotate_heads(const at::Tensor& keys, const float* cosines, const float* sines,
                const std::vector<Run>& runs, at::Tensor& rotated) {
  using Number = typename T::Stored;
  const int64_t heads = keys.size(1), number = keys.size(2), size = keys.size(3);
  Number* to = static_cast<Number*>(rotated.mutable_data_ptr());
  Rotator<T> rotator(runs, size);
  for (int64_t h = 0; h < heads; ++h) {
    const Number* head = static_cast<const Number*>(keys.const_data_ptr()) + h * keys.stride(1);
    for (int64_t n = 0; n < number; ++n, to += size)
      rotator.rotate(head + n * keys.stride(2), cosines + n * size, sines + n * size, to);
  }
}

// partners [D] of int64.
std::vector<Run> checked_runs(const at::Tensor& partners, int64_t size) {
  TORCH_CHECK(partners.scalar_type() == at::kLong && partners.is_contiguous() && partners.numel() == size, "lacache::rotate: partners [D] in int64");
  const int64_t* other = partners.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < size; ++i)
    TORCH_CHECK(other[i] >= 0 && other[i] < size, "lacache::rotate: partners are among the D numbers");
  return runs_of(other, size);
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
  const std::vector<Run> runs = checked_runs(partners, size);
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

template <class T>
void rotate_slots_of(const at::Tensor& stored, const int64_t* first, const int64_t* patterns,
                     const at::Tensor& copies, const at::Tensor& first_copies, const int64_t* ranges,
                     const std::vector<int64_t>& begins, const float* cosines, const float* sines,
                     const std::vector<Run>& runs) {
  using Number = typename T::Stored;
  const int64_t heads = first_copies.numel(), size = stored.size(1);
  const Number* from = static_cast<const Number*>(copies.const_data_ptr());
  Number* to = static_cast<Number*>(stored.mutable_data_ptr());
  Rotator<T> rotator(runs, size);
  for (int64_t h = 0; h < heads; ++h) {
    const int64_t* range = ranges + 2 * patterns[h];
    const int64_t source = first_copies.const_data_ptr<int64_t>()[h];
    for (int64_t slot = range[0]; slot < range[1]; ++slot) {
      const int64_t table = (begins[patterns[h]] + slot - range[0]) * size;
      rotator.rotate(from + (source + slot) * size, cosines + table, sines + table,
                     to + (first[h] + slot) * size);
    }
  }
}

void check_heads(const at::Tensor& first, const at::Tensor& patterns, int64_t number) {
  for (const at::Tensor* each : {&first, &patterns})
    TORCH_CHECK(each->scalar_type() == at::kLong && each->is_contiguous() && each->dim() == 1 &&
                    each->numel() == first.numel(),
                "lacache: first slots and patterns [H] in int64");
  for (int64_t h = 0; h < first.numel(); ++h)
    TORCH_CHECK(patterns.const_data_ptr<int64_t>()[h] >= 0 &&
                    patterns.const_data_ptr<int64_t>()[h] < number,
                "lacache: there is no such pattern");
}

// As `gather`, for heads in stored [R, W]: `first` [H] is each head's first slot, `patterns` [H] its
// pattern; sources [patterns, N] and starts [patterns] are those of the patterns.
void gather_slots(const at::Tensor& stored, const at::Tensor& first, const at::Tensor& patterns,
                  const at::Tensor& sources, const at::Tensor& starts) {
  TORCH_CHECK(stored.dim() == 2 && stored.is_contiguous() && sources.dim() == 2 &&
                  sources.is_contiguous() && sources.scalar_type() == at::kLong &&
                  starts.scalar_type() == at::kLong && starts.is_contiguous() &&
                  starts.numel() == sources.size(0),
              "lacache::gather_slots: stored [R, W], sources [patterns, N], starts [patterns]");
  check_heads(first, patterns, sources.size(0));
  const int64_t rows = stored.size(0), size = stored.stride(0) * stored.element_size();
  std::vector<std::vector<Move>> moves;
  for (int64_t p = 0; p < sources.size(0); ++p)
    moves.push_back(moves_of(sources.const_data_ptr<int64_t>() + p * sources.size(1), sources.size(1),
                             starts.const_data_ptr<int64_t>()[p], rows));
  for (int64_t h = 0; h < first.numel(); ++h) {
    const std::vector<Move>& mine = moves[patterns.const_data_ptr<int64_t>()[h]];
    const int64_t row = first.const_data_ptr<int64_t>()[h];
    for (const Move& move : mine)
      TORCH_CHECK(row >= 0 && row + move.from + move.length <= rows,
                  "lacache::gather_slots: slots are among the rows");
    apply_moves(mine, static_cast<char*>(stored.mutable_data_ptr()) + row * size, size);
  }
}

// Slots of heads in stored [R, D] become rotated copies [C, D]: `first` and `first_copies` [H] are each
// head's first slot and copy, `patterns` [H] its pattern. Ranges [patterns, 2] are the slots of each
// pattern, and cosines and sines [T, D] are for those of one pattern after the other, in float32.
void rotate_slots(const at::Tensor& stored, const at::Tensor& first, const at::Tensor& patterns,
                  const at::Tensor& copies, const at::Tensor& first_copies, const at::Tensor& ranges,
                  const at::Tensor& cosines, const at::Tensor& sines, const at::Tensor& partners) {
  TORCH_CHECK(stored.dim() == 2 && stored.is_contiguous() && copies.dim() == 2 &&
                  copies.is_contiguous() && stored.size(1) == copies.size(1) &&
                  stored.scalar_type() == copies.scalar_type() && ranges.dim() == 2 &&
                  ranges.size(1) == 2 && ranges.is_contiguous() && ranges.scalar_type() == at::kLong,
              "lacache::rotate_slots: stored [R, D] and copies [C, D] of one type, ranges [patterns, 2]");
  check_heads(first, patterns, ranges.size(0));
  check_heads(first_copies, patterns, ranges.size(0));
  const int64_t *range = ranges.const_data_ptr<int64_t>(), *kinds = patterns.const_data_ptr<int64_t>();
  const int64_t *rows = first.const_data_ptr<int64_t>(), size = stored.size(1);
  std::vector<int64_t> begins(ranges.size(0) + 1);
  for (int64_t p = 0; p < ranges.size(0); ++p) {
    TORCH_CHECK(0 <= range[2 * p] && range[2 * p] <= range[2 * p + 1], "lacache::rotate_slots: ranges");
    begins[p + 1] = begins[p] + range[2 * p + 1] - range[2 * p];
  }
  for (const at::Tensor* table : {&cosines, &sines})
    TORCH_CHECK(table->scalar_type() == at::kFloat && table->is_contiguous() &&
                    table->sizes() == at::IntArrayRef({begins.back(), size}),
                "lacache::rotate_slots: tables [T, D] in float32");
  for (int64_t h = 0; h < first.numel(); ++h) {
    const int64_t stop = range[2 * kinds[h] + 1], copy = first_copies.const_data_ptr<int64_t>()[h];
    TORCH_CHECK(rows[h] >= 0 && rows[h] + stop <= stored.size(0) && copy >= 0 &&
                    copy + stop <= copies.size(0),
                "lacache::rotate_slots: slots are among the rows");
  }
  const std::vector<Run> runs = checked_runs(partners, size);
  const float *cosine = cosines.const_data_ptr<float>(), *sine = sines.const_data_ptr<float>();
  if (stored.scalar_type() == at::kFloat)
    rotate_slots_of<Float32>(stored, rows, kinds, copies, first_copies, range, begins, cosine, sine, runs);
  else if (stored.scalar_type() == at::kBFloat16)
    rotate_slots_of<BFloat16>(stored, rows, kinds, copies, first_copies, range, begins, cosine, sine, runs);
  else
    TORCH_CHECK(false, "lacache::rotate_slots: keys are float32 or bfloat16");
}

// Stores tokens of heads in stored [R, W]: `first` [H] is each head's first slot. Moved and added [2, M]
// are, for each head, slots and what they get: former slots, and indices of new tokens [H, Q, W].
void store_left(const at::Tensor& stored, const at::Tensor& first, at::TensorList moved,
                at::TensorList added, const at::Tensor& tokens) {
  TORCH_CHECK(stored.dim() == 2 && stored.is_contiguous() && tokens.dim() == 3 &&
                  tokens.size(2) == stored.size(1) && tokens.stride(2) == 1 &&
                  tokens.scalar_type() == stored.scalar_type() &&
                  first.scalar_type() == at::kLong && first.is_contiguous() &&
                  first.numel() == tokens.size(0) && int64_t(moved.size()) == tokens.size(0) &&
                  added.size() == moved.size(),
              "lacache::store_left: stored [R, W], and for each head a first slot and tokens [Q, W]");
  const int64_t rows = stored.size(0), bytes = stored.element_size(), size = stored.size(1) * bytes;
  char* all = static_cast<char*>(stored.mutable_data_ptr());
  const char* from = static_cast<const char*>(tokens.const_data_ptr());
  // Calls use(slot, source) for each pair.
  const auto each = [](const at::Tensor& pairs, const auto& use) {
    TORCH_CHECK(pairs.dim() == 2 && pairs.size(0) == 2 && pairs.is_contiguous() &&
                    pairs.scalar_type() == at::kLong,
                "lacache::store_left: pairs [2, M] in int64");
    const int64_t* slots = pairs.const_data_ptr<int64_t>();
    for (int64_t n = 0; n < pairs.size(1); ++n) use(slots[n], slots[pairs.size(1) + n]);
  };
  for (int64_t h = 0; h < tokens.size(0); ++h) {
    const int64_t start = first.const_data_ptr<int64_t>()[h];
    const auto row = [&](int64_t slot) {
      TORCH_CHECK(start >= 0 && slot >= 0 && start + slot < rows,
                  "lacache::store_left: slots are among the rows");
      return all + (start + slot) * size;
    };
    each(moved[h], [&](int64_t slot, int64_t former) { std::memmove(row(slot), row(former), size); });
    each(added[h], [&](int64_t slot, int64_t token) {
      TORCH_CHECK(token >= 0 && token < tokens.size(1), "lacache::store_left: there is such a token");
      std::memcpy(row(slot), from + (h * tokens.stride(0) + token * tokens.stride(1)) * bytes, size);
    });
  }
}

}  // namespace
