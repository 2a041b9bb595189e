// The product of a matrix with one vector, which is bound by memory. A processor fetches ahead for each
// of several places that are read side by side, so a matrix is read in kParts parts at once, which a
// compiler's loop does not do.

#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "numbers.h"

namespace {

constexpr int64_t kParts = 4;

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

}  // namespace
