// For one token, two products: a matrix with a vector, and attention over the slots in use. For a
// compaction, three moves: of slots to the front, of regions, and of keys to other positions.
//
// All are bound by memory. A processor fetches ahead for each of several places that are read side
// by side, so a matrix is read in kParts parts at once, which a compiler's loop does not do.
//
// Vectors are those of GCC and Clang, so this is the same source for every processor.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

namespace {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "numbers lie lowest byte first");

constexpr int64_t kLanes = 8;
constexpr int64_t kParts = 4;
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

// Products of kNumber rows, read side by side, with one vector.
template <class T, int64_t kNumber>
void dots(const typename T::Stored* const* rows, const Vector<T>& vector, float* products) {
  Floats sums[kNumber] = {};
  const int64_t num_blocks = vector.size / kBlock<T>;
  for (int64_t block = 0; block < num_blocks; ++block)
    for (int64_t n = 0; n < kNumber; ++n) {
      const Words words = load(rows[n] + block * kBlock<T>);
      for (int64_t j = 0; j < T::kPer; ++j)
        sums[n] += T::widen(words, j) * vector.blocks[block * T::kPer + j];
    }
  for (int64_t n = 0; n < kNumber; ++n) {
    products[n] = total(sums[n]) * T::kUnit;
    for (int64_t i = num_blocks * kBlock<T>; i < vector.size; ++i)
      products[n] += T::widen(rows[n][i]) * vector.plain[i];
  }
}

template <class T>
void multiply(const void* weight, const Vector<T>& vector, float* products, int64_t num_rows) {
  using Row = const typename T::Stored*;
  const Row first = static_cast<Row>(weight);
  const int64_t size = vector.size, part = num_rows / kParts;
  const int threads = size * num_rows < kWorthAThread ? 1 : at::get_num_threads();
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t row = 0; row < part; ++row) {
    Row rows[kParts];
    float found[kParts];
    for (int64_t n = 0; n < kParts; ++n) rows[n] = first + (row + n * part) * size;
    dots<T, kParts>(rows, vector, found);
    for (int64_t n = 0; n < kParts; ++n) products[row + n * part] = found[n];
  }
  for (int64_t row = part * kParts; row < num_rows; ++row) {
    const Row last = first + row * size;
    dots<T, 1>(&last, vector, products + row);
  }
}

// weight [O, I] times vector [I] in float32: [O].
at::Tensor product(const at::Tensor& weight, const at::Tensor& vector) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() && vector.is_contiguous() &&
                  vector.scalar_type() == at::kFloat && vector.numel() == weight.size(1),
              "lacache::product: weight [O, I] and vector [I] in float32, both contiguous");
  const int64_t num_rows = weight.size(0), size = weight.size(1);
  at::Tensor products = at::empty({num_rows}, vector.options());
  const float* from = vector.const_data_ptr<float>();
  float* to = products.mutable_data_ptr<float>();
  const void* numbers = weight.const_data_ptr();
  switch (weight.scalar_type()) {
    case at::kFloat:
      multiply<Float32>(numbers, {from, size}, to, num_rows);
      break;
    case at::kBFloat16:
      multiply<BFloat16>(numbers, {from, size}, to, num_rows);
      break;
    case at::kChar:
      multiply<Int8>(numbers, {from, size}, to, num_rows);
      break;
    default:
      TORCH_CHECK(false, "lacache::product: weight is float32, bfloat16 or int8");
  }
  return products;
}

void softmax(float* scores, int64_t number) {
  float largest = scores[0], sum = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t n = 1; n < number; ++n) largest = std::max(largest, scores[n]);
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
  for (int64_t slot = 0; slot < head.number; ++slot) {
    const typename T::Stored* key = head.keys + slot * size;
    Floats sums[kQueries] = {};
    for (int64_t block = 0; block < num_blocks; ++block) {
      const Words words = load(key + block * kBlock<T>);
      for (int64_t j = 0; j < T::kPer; ++j) {
        const Floats wide = T::widen(words, j);
        for (int64_t n = 0; n < kQueries; ++n) sums[n] += wide * blocks[n][block * T::kPer + j];
      }
    }
    for (int64_t n = 0; n < kQueries; ++n) {
      float score = total(sums[n]);
      for (int64_t i = num_blocks * kBlock<T>; i < size; ++i)
        score += T::widen(key[i]) * queries[n * size + i];
      shares[n * head.number + slot] = score;
    }
  }
  for (int64_t n = 0; n < kQueries; ++n) softmax(shares + n * head.number, head.number);
}

// found [kQueries, D] becomes the sum of all values, each times its share.
template <class T, int64_t kQueries>
void mix(const Head<T>& head, const float* shares, float* found) {
  const int64_t size = head.value_size, whole = size / kBlock<T> * kBlock<T>;
  for (int64_t start = 0; start < whole; start += kBlock<T>) {
    Floats sums[kQueries][T::kPer] = {};
    for (int64_t slot = 0; slot < head.number; ++slot) {
      const Words words = load(head.values + slot * size + start);
      for (int64_t j = 0; j < T::kPer; ++j) {
        const Floats wide = T::widen(words, j);
        for (int64_t n = 0; n < kQueries; ++n) sums[n][j] += wide * shares[n * head.number + slot];
      }
    }
    for (int64_t n = 0; n < kQueries; ++n)
      for (int64_t i = 0; i < kBlock<T>; ++i)
        found[n * size + start + i] = sums[n][i % T::kPer][i / T::kPer];
  }
  for (int64_t n = 0; n < kQueries; ++n)
    for (int64_t i = whole; i < size; ++i) {
      float sum = 0;
      for (int64_t slot = 0; slot < head.number; ++slot)
        sum += shares[n * head.number + slot] * T::widen(head.values[slot * size + i]);
      found[n * size + i] = sum;
    }
}

template <class T, int64_t kQueries>
void attend_head(const Head<T>& head, const float* queries, float* found) {
  std::vector<float> shares(kQueries * head.number);
  weigh<T, kQueries>(head, queries, shares.data());
  mix<T, kQueries>(head, shares.data(), found);
}

// Calls attend(first row, number of slots, first query head, number of query heads) for each KV head
// of each sequence.
template <class Attend>
void for_each_head(const at::Tensor& query, int64_t num_rows, const at::Tensor& first_rows,
                   const at::Tensor& last_slots, const Attend& attend) {
  const int64_t kv_heads = first_rows.size(1), heads = query.size(0) * kv_heads;
  const int64_t shared = query.size(1) / kv_heads;
  const auto first = first_rows.accessor<int64_t, 2>(), last = last_slots.accessor<int64_t, 2>();
  int64_t most = 0;
  for (int64_t n = 0; n < heads; ++n) {
    const int64_t row = first[n / kv_heads][n % kv_heads], number = last[n / kv_heads][n % kv_heads] + 1;
    TORCH_CHECK(row >= 0 && number > 0 && row + number <= num_rows,
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
void attend_rows(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                 const at::Tensor& first_rows, const at::Tensor& last_slots, at::Tensor& found) {
  using States = const typename T::Stored*;
  const int64_t key_size = keys.size(1), value_size = values.size(1);
  const States all_keys = static_cast<States>(keys.const_data_ptr());
  const States all_values = static_cast<States>(values.const_data_ptr());
  const float* queries = query.const_data_ptr<float>();
  float* all_found = found.mutable_data_ptr<float>();
  for_each_head(query, keys.size(0), first_rows, last_slots,
                [&](int64_t row, int64_t number, int64_t q, int64_t shared) {
    const Head<T> head{all_keys + row * key_size, all_values + row * value_size, number, key_size,
                       value_size};
    // Query heads that share the keys and values, a few at once.
    for (const int64_t end = q + shared; q < end;) {
      const float* from = queries + q * key_size;
      float* to = all_found + q * value_size;
      if (end - q >= 4) {
        attend_head<T, 4>(head, from, to), q += 4;
      } else if (end - q == 3) {
        attend_head<T, 3>(head, from, to), q += 3;
      } else if (end - q == 2) {
        attend_head<T, 2>(head, from, to), q += 2;
      } else {
        attend_head<T, 1>(head, from, to), q += 1;
      }
    }
  });
}

void check_query(const at::Tensor& query, const at::Tensor& first_rows,
                 const at::Tensor& last_slots) {
  TORCH_CHECK(query.dim() == 4 && first_rows.dim() == 2 && first_rows.size(1) > 0 &&
                  query.size(0) == first_rows.size(0) && query.size(1) % first_rows.size(1) == 0 &&
                  query.size(2) == 1 && last_slots.sizes() == first_rows.sizes() &&
                  first_rows.scalar_type() == at::kLong && last_slots.scalar_type() == at::kLong &&
                  query.scalar_type() == at::kFloat && query.is_contiguous(),
              "lacache::attend: one query a head in float32, with rows and slots in int64");
}

// query [B, Hq, 1, D] in float32 and scaled, keys and values [N, D]; each KV head has the rows from
// first_rows [B, Hkv] on, up to its slot last_slots [B, Hkv]: [B, Hq, 1, D] in float32.
at::Tensor attend(const at::Tensor& query, const at::Tensor& keys, const at::Tensor& values,
                  const at::Tensor& first_rows, const at::Tensor& last_slots) {
  check_query(query, first_rows, last_slots);
  TORCH_CHECK(keys.dim() == 2 && values.dim() == 2 && query.size(3) == keys.size(1) &&
                  values.size(0) == keys.size(0) && keys.is_contiguous() &&
                  values.is_contiguous() && keys.scalar_type() == values.scalar_type(),
              "lacache::attend: contiguous rows of one type");
  at::Tensor found =
      at::empty({query.size(0), query.size(1), 1, values.size(1)}, query.options());
  if (keys.scalar_type() == at::kFloat)
    attend_rows<Float32>(query, keys, values, first_rows, last_slots, found);
  else if (keys.scalar_type() == at::kBFloat16)
    attend_rows<BFloat16>(query, keys, values, first_rows, last_slots, found);
  else
    TORCH_CHECK(false, "lacache::attend: states are float32 or bfloat16");
  return found;
}

// Rows of integers in 8 bits, or two in a byte of which the low one belongs to the first half, times
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
                        const at::Tensor& value_scales, const at::Tensor& first_rows,
                        const at::Tensor& last_slots) {
  check_query(query, first_rows, last_slots);
  const Coded all_keys(keys, key_scales), all_values(values, value_scales);
  const int64_t key_size = all_keys.size, value_size = all_values.size;
  TORCH_CHECK(query.size(3) == key_size && values.size(0) == keys.size(0),
              "lacache::attend_coded: keys as long as queries, and as many values");
  at::Tensor found = at::zeros({query.size(0), query.size(1), 1, value_size}, query.options());
  const float* queries = query.const_data_ptr<float>();
  float* all_found = found.mutable_data_ptr<float>();
  for_each_head(query, keys.size(0), first_rows, last_slots,
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

uint16_t round_to_bfloat16(float number) {
  uint32_t bits;
  std::memcpy(&bits, &number, sizeof bits);
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return is_nan ? 0x7fc0 : (bits + 0x7fffu + ((bits >> 16) & 1)) >> 16;
}

float narrow(float number, float) { return number; }
uint16_t narrow(float number, uint16_t) { return round_to_bfloat16(number); }

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

TORCH_LIBRARY(lacache, library) {
  library.def("product(Tensor weight, Tensor vector) -> Tensor");
  library.def(
      "attend(Tensor query, Tensor keys, Tensor values, Tensor first_rows, Tensor last_slots) -> Tensor");
  library.def(
      "attend_coded(Tensor query, Tensor keys, Tensor key_scales, Tensor values, "
      "Tensor value_scales, Tensor first_rows, Tensor last_slots) -> Tensor");
  library.def("gather(Tensor(a!) stored, Tensor slots, int start) -> ()");
  library.def("move(Tensor(a!) stored, Tensor moves) -> ()");
  library.def("rotate(Tensor keys, Tensor cosines, Tensor sines, Tensor partners) -> Tensor");
}

TORCH_LIBRARY_IMPL(lacache, CPU, library) {
  library.impl("product", product);
  library.impl("attend", attend);
  library.impl("attend_coded", attend_coded);
  library.impl("gather", gather);
  library.impl("move", move);
  library.impl("rotate", rotate);
}
