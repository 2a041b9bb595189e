// Matrices of any kind of weights, several of which are multiplied with the same vectors in one parallel
// region.
//
// What a vector becomes never depends on the others, on how many of them are active, or on threads.

#pragma once

#include <memory>
#include <tuple>

#include "packed.h"
#include "products.h"

namespace {

// Vectors [B, I], and the forms that kinds of weights want them in, each made once. Only active ones
// count.
struct Activations {
  const float* from;
  int64_t number, columns;
  const bool* active;
  std::unique_ptr<Rounded> by_16, by_32;
  std::tuple<std::vector<Vector<Float32>>, std::vector<Vector<BFloat16>>, std::vector<Vector<Int8>>>
      plain;

  Activations(const float* vectors, int64_t size, int64_t length, const bool* is_active)
      : from(vectors), number(size), columns(length), active(is_active) {}

  bool any_active(int64_t first, int64_t last) const {
    return std::find(active + first, active + last, true) != active + last;
  }

  std::unique_ptr<Rounded>& rounded(int64_t group) { return group == 16 ? by_16 : by_32; }
};

struct Matrix {
  int64_t rows = 0, columns = 0;
  at::Tensor bias;  // [O] in float32, or undefined.

  virtual ~Matrix() = default;
  // Makes the form of the vectors that `multiply` reads.
  virtual void prepare(Activations& vectors) const = 0;
  // Row blocks, which can be multiplied in any order.
  virtual int64_t num_blocks() const = 0;
  // Sets products [B, O] of the rows of a block with each active vector.
  virtual void multiply(Activations& vectors, int64_t block, float* products) const = 0;
  // Sets numbers [I] to those of a row.
  virtual void read(int64_t row, float* numbers) const = 0;
};

template <class K>
struct PackedMatrix final : Matrix {
  std::vector<MaybeTensor> tensors;  // Whose memory the weight is.
  Packed weight;

  PackedMatrix(std::vector<MaybeTensor> from, const Packed& packed)
      : tensors(std::move(from)), weight(packed) {
    rows = weight.rows, columns = weight.columns;
  }

  void prepare(Activations& vectors) const override {
    auto& rounded = vectors.rounded(K::kGroup);
    if (!rounded)
      rounded = std::make_unique<Rounded>(vectors.from, vectors.number, columns, K::kGroup);
  }

  int64_t num_blocks() const override { return (rows + kRows - 1) / kRows; }

  void multiply(Activations& vectors, int64_t block, float* products) const override {
    const Rounded& rounded = *vectors.rounded(K::kGroup);
    int64_t v = 0;
    for (; v + kTogether <= vectors.number; v += kTogether)
      if (vectors.any_active(v, v + kTogether))
        multiply_rows<K, kTogether>(weight, rounded, block, v, products);
    for (; v < vectors.number; ++v)
      if (vectors.active[v]) multiply_rows<K, 1>(weight, rounded, block, v, products);
  }

  void read(int64_t row, float* numbers) const override {
    std::vector<float> block(kRows * columns);
    unpack_rows<K>(weight, row / kRows, block.data());
    std::copy_n(block.data() + row % kRows * columns, columns, numbers);
  }
};

// Weights as numbers, or as integers times a scale for each row.
template <class T>
struct PlainMatrix final : Matrix {
  at::Tensor weight, scales;  // Scales [O] in float32, or undefined.
  int64_t part;

  PlainMatrix(const at::Tensor& numbers, const MaybeTensor& of_rows)
      : weight(numbers), scales(of_rows.value_or(at::Tensor())), part(numbers.size(0) / kParts) {
    rows = weight.size(0), columns = weight.size(1);
  }

  void prepare(Activations& vectors) const override {
    auto& plain = std::get<std::vector<Vector<T>>>(vectors.plain);
    if (plain.empty())
      for (int64_t v = 0; v < vectors.number; ++v)
        plain.emplace_back(vectors.from + v * columns, columns);
  }

  // A row of each part, and one block of those left over.
  int64_t num_blocks() const override { return part + 1; }

  void multiply(Activations& vectors, int64_t block, float* products) const override {
    if (block < part) return multiply_rows<kParts>(vectors, block, products);
    for (int64_t row = part * kParts; row < rows; ++row) multiply_rows<1>(vectors, row, products);
  }

  void read(int64_t row, float* numbers) const override {
    const auto* from = static_cast<const typename T::Stored*>(weight.const_data_ptr()) + row * columns;
    const float scale = scales.defined() ? scales.const_data_ptr<float>()[row] : 1;
    for (int64_t i = 0; i < columns; ++i) numbers[i] = T::widen(from[i]) * scale;
  }

 private:
  template <int64_t kNumber>
  void multiply_rows(const Activations& vectors, int64_t row, float* products) const {
    using Row = const typename T::Stored*;
    Row parts[kNumber];
    for (int64_t n = 0; n < kNumber; ++n)
      parts[n] = static_cast<Row>(weight.const_data_ptr()) + (row + n * part) * columns;
    for (int64_t v = 0; v < vectors.number; ++v) {
      if (!vectors.active[v]) continue;
      float found[kNumber];
      dots<T, kNumber>(parts, std::get<std::vector<Vector<T>>>(vectors.plain)[v], found);
      for (int64_t n = 0; n < kNumber; ++n) {
        const int64_t at = row + n * part;
        const float scale = scales.defined() ? scales.const_data_ptr<float>()[at] : 1;
        products[v * rows + at] = found[n] * scale;
      }
    }
  }
};

std::unique_ptr<Matrix> plain_matrix(const at::Tensor& weight, const MaybeTensor& scales) {
  TORCH_CHECK(weight.dim() == 2 && weight.is_contiguous() &&
                  (!scales || (scales->scalar_type() == at::kFloat && scales->is_contiguous() &&
                               scales->numel() == weight.size(0))),
              "lacache: weight [O, I], contiguous, and scales [O] in float32");
  switch (weight.scalar_type()) {
    case at::kFloat:
      return std::make_unique<PlainMatrix<Float32>>(weight, scales);
    case at::kBFloat16:
      return std::make_unique<PlainMatrix<BFloat16>>(weight, scales);
    case at::kChar:
      return std::make_unique<PlainMatrix<Int8>>(weight, scales);
    default:
      TORCH_CHECK(false, "lacache: weight is float32, bfloat16 or int8");
  }
}

std::unique_ptr<Matrix> packed_matrix(const at::Tensor& low, const MaybeTensor& high,
                                      const at::Tensor& scales, const MaybeTensor& factors,
                                      const MaybeTensor& offsets, const MaybeTensor& offset_factors,
                                      int64_t zero, int64_t rows) {
  std::unique_ptr<Matrix> made;
  with_packed(low, high, scales, factors, offsets, offset_factors, zero, rows,
              [&]<class K>(K, const Packed& weight) {
    const std::vector<MaybeTensor> all{low, high, scales, factors, offsets, offset_factors};
    made = std::make_unique<PackedMatrix<K>>(all, weight);
  });
  return made;
}

struct Product {
  const Matrix* matrix;
  float* products;  // [B, O]
};

// Multiplies the same vectors [B, I] with several matrices.
void multiply_all(const std::vector<Product>& all, Activations vectors) {
  int64_t blocks = 0, work = 0;
  for (const auto& [matrix, products] : all) {
    matrix->prepare(vectors);
    blocks += matrix->num_blocks();
    work += vectors.number * matrix->rows * matrix->columns;
  }
  const int threads = work < kWorthAThread ? 1 : at::get_num_threads();
#pragma omp parallel for num_threads(threads) if (threads > 1)
  for (int64_t n = 0; n < blocks; ++n) {
    int64_t block = n;
    auto each = all.begin();
    for (; block >= each->matrix->num_blocks(); ++each) block -= each->matrix->num_blocks();
    each->matrix->multiply(vectors, block, each->products);
  }
  for (const auto& [matrix, products] : all)
    if (matrix->bias.defined())
      for (int64_t v = 0; v < vectors.number; ++v)
        for (int64_t row = 0; row < matrix->rows; ++row)
          products[v * matrix->rows + row] += matrix->bias.const_data_ptr<float>()[row];
}

}  // namespace
