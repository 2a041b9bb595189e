// A decode step of a decoder of the Llama kind: one token in each active batch slot, from its embedding
// to its logits, in float32 (docs/adr/0030).

#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/custom_class.h>

#include "attention.h"
#include "block_ops.h"
#include "matrix.h"

namespace {

using Tensors = std::vector<at::Tensor>;

// Where the keys and values of a layer are.
struct Slots {
  at::Tensor keys, values;        // [N, D]
  at::Tensor first, next, last;   // [B, Hkv]: first slot; those of the new token and the last seen, from it
};

struct DecoderLayer {
  const Matrix *query, *key, *value, *output, *gate, *up, *down;
  Norm before_attention, before_mlp, of_queries, of_keys;
  bool rotates = true;
  float scaling = 1;
  Slots slots;
};

class DecodeStep final : public torch::CustomClassHolder {
 public:
  DecodeStep(int64_t head_size, bool is_gelu)
      : head_size_(head_size), activation_(is_gelu ? kGelu : kSilu) {
    TORCH_CHECK(head_size > 0, "lacache::DecodeStep: size of a head");
  }

  // Adds a matrix [O, I] of numbers, or of int8 with scales [O]; returns its number.
  int64_t add_plain(at::Tensor weight, MaybeTensor scales, MaybeTensor bias) {
    return add(plain_matrix(weight, scales), bias);
  }

  // Adds a matrix as `PackedWeight` has it; returns its number.
  int64_t add_packed(at::Tensor low, MaybeTensor high, at::Tensor scales, MaybeTensor factors,
                     MaybeTensor offsets, MaybeTensor offset_factors, int64_t zero, int64_t rows,
                     MaybeTensor bias) {
    return add(packed_matrix(low, high, scales, factors, offsets, offset_factors, zero, rows), bias);
  }

  // Adds a layer: the numbers of q, k, v, o, gate, up and down; the norms before attention and MLP, and
  // those of queries and keys if there are any, each with its epsilon.
  void add_layer(std::vector<int64_t> numbers, Tensors norms, std::vector<double> eps, bool rotates,
                 double scaling) {
    TORCH_CHECK(numbers.size() == 7 && (norms.size() == 2 || norms.size() == 4) &&
                    eps.size() == norms.size(),
                "lacache::DecodeStep: 7 matrices, and 2 or 4 norms");
    const auto matrix = [&](size_t n) { return matrices_.at(numbers[n]).get(); };
    const auto norm = [&](size_t n) {
      return n < norms.size() ? Norm{norms[n], float(eps[n])} : Norm();
    };
    layers_.push_back({matrix(0), matrix(1), matrix(2), matrix(3), matrix(4), matrix(5), matrix(6),
                       norm(0), norm(1), norm(2), norm(3), rotates, float(scaling)});
    const DecoderLayer& layer = layers_.back();
    const auto fits = [](const Matrix* one, int64_t rows, int64_t columns) {
      return one->rows == rows && one->columns == columns;
    };
    const int64_t size = layer.output->rows, inner = layer.gate->rows, queries = layer.output->columns;
    const int64_t keys = layer.key->rows;
    TORCH_CHECK(
        fits(layer.query, queries, size) && fits(layer.key, keys, size) &&
            fits(layer.value, keys, size) && fits(layer.gate, inner, size) &&
            fits(layer.up, inner, size) && fits(layer.down, size, inner) &&
            norms[0].numel() == size && norms[1].numel() == size && queries % keys == 0 &&
            keys % head_size_ == 0 && head_size_ % 2 == 0 &&
            (norms.size() == 2 || (norms[2].numel() == head_size_ && norms[3].numel() == head_size_)),
        "lacache::DecodeStep: matrices and norms fit each other");
    for (const at::Tensor& each : norms) check_floats(each);
  }

  // Sets the matrix of the embeddings, and what comes after the layers: norm and matrix of the logits.
  void set_ends(int64_t embeddings, at::Tensor norm, double eps, int64_t head) {
    check_floats(norm);
    head_norm_ = {norm, float(eps)};
    embeddings_ = matrices_.at(embeddings).get(), head_ = matrices_.at(head).get();
    const int64_t size = norm.numel();
    TORCH_CHECK(head_->columns == size && embeddings_->columns == size &&
                    (layers_.empty() || layers_[0].output->rows == size),
                "lacache::DecodeStep: embeddings, layers, norm and head fit each other");
  }

  // Sets where each layer reads and writes; memory that stays in place.
  void set_slots(Tensors keys, Tensors values, Tensors first, Tensors next, Tensors last) {
    for (size_t n = 0; n < layers_.size(); ++n) {
      Slots& slots = layers_[n].slots = {keys.at(n), values.at(n), first.at(n), next.at(n), last.at(n)};
      for (const at::Tensor* states : {&slots.keys, &slots.values})
        TORCH_CHECK(states->dim() == 2 && states->is_contiguous() && states->size(1) == head_size_ &&
                        states->size(0) == slots.keys.size(0) &&
                        states->scalar_type() == slots.keys.scalar_type() &&
                        (states->scalar_type() == at::kFloat ||
                         states->scalar_type() == at::kBFloat16),
                    "lacache::DecodeStep: slots [N, D] in float32 or bfloat16");
      for (const at::Tensor* indices : {&slots.first, &slots.next, &slots.last})
        TORCH_CHECK(indices->dim() == 2 && indices->scalar_type() == at::kLong &&
                        indices->sizes() == slots.first.sizes() &&
                        indices->size(1) == layers_[n].key->rows / head_size_,
                    "lacache::DecodeStep: indices [B, Hkv] in int64");
    }
  }

  // tokens [B] of int64, cosines and sines [B, D] in float32, active [B] of bool: logits [B, V]. What
  // is not active has logits 0, and changes no slot.
  at::Tensor step(at::Tensor tokens, at::Tensor cosines, at::Tensor sines, at::Tensor active) {
    const int64_t number = tokens.numel(), size = head_->columns;
    check_floats(cosines), check_floats(sines);
    TORCH_CHECK(tokens.scalar_type() == at::kLong && tokens.is_contiguous() &&
                    cosines.numel() == number * head_size_ && sines.numel() == cosines.numel() &&
                    active.numel() == number && active.scalar_type() == at::kBool &&
                    active.is_contiguous(),
                "lacache::DecodeStep: tokens [B], tables [B, D], active [B]");
    number_ = number;
    active_ = active.const_data_ptr<bool>();
    hidden_.resize(number * size);
    for (int64_t b = 0; b < number; ++b) {
      const int64_t token = tokens.const_data_ptr<int64_t>()[b];
      TORCH_CHECK_INDEX(token >= 0 && token < embeddings_->rows, "lacache::DecodeStep: token ", token);
      embeddings_->read(token, hidden_.data() + b * size);
    }
    at::Tensor logits = at::zeros({number, head_->rows}, cosines.options());
    for (const DecoderLayer& layer : layers_) {
      normalize(layer.before_attention);
      attend(layer, cosines.const_data_ptr<float>(), sines.const_data_ptr<float>());
      multiply(attended_, {{layer.output, &added_}});
      add_to_hidden();
      normalize(layer.before_mlp);
      multiply(normed_, {{layer.gate, &gates_}, {layer.up, &inner_}});
      activate(activation_, gates_.data(), inner_.size(), inner_.data());
      multiply(inner_, {{layer.down, &added_}});
      add_to_hidden();
    }
    normalize(head_norm_);
    multiply_all({{head_, logits.mutable_data_ptr<float>()}}, {normed_.data(), number, size, active_});
    return logits;
  }

 private:
  using Numbers32 = std::vector<float>;

  int64_t head_size_;
  Activation activation_;
  std::vector<std::unique_ptr<Matrix>> matrices_;
  std::vector<DecoderLayer> layers_;
  Norm head_norm_;
  const Matrix *embeddings_ = nullptr, *head_ = nullptr;
  // Of the step that runs: batch slots, and vectors for each.
  int64_t number_ = 0;
  const bool* active_ = nullptr;
  Numbers32 hidden_, normed_, queries_, keys_, values_, attended_, added_, gates_, inner_;

  static void check_floats(const at::Tensor& tensor) {
    TORCH_CHECK(tensor.scalar_type() == at::kFloat && tensor.is_contiguous(),
                "lacache::DecodeStep: contiguous float32");
  }

  int64_t add(std::unique_ptr<Matrix> matrix, const MaybeTensor& bias) {
    if (bias) {
      check_floats(*bias);
      TORCH_CHECK(bias->numel() == matrix->rows, "lacache::DecodeStep: bias [O]");
      matrix->bias = *bias;
    }
    matrices_.push_back(std::move(matrix));
    return matrices_.size() - 1;
  }

  void normalize(const Norm& norm) {
    normed_.resize(hidden_.size());
    norm.apply(hidden_.data(), number_, normed_.data());
  }

  void add_to_hidden() {
    for (size_t i = 0; i < hidden_.size(); ++i) hidden_[i] += added_[i];
  }

  struct Found {
    const Matrix* matrix;
    Numbers32* products;
  };

  // Multiplies vectors [B, I] with up to three matrices.
  void multiply(const Numbers32& vectors, std::initializer_list<Found> all) {
    std::vector<Product> products;
    for (const auto& [matrix, found] : all) {
      found->resize(number_ * matrix->rows);
      products.push_back({matrix, found->data()});
    }
    multiply_all(products, {vectors.data(), number_, all.begin()->matrix->columns, active_});
  }

  void attend(const DecoderLayer& layer, const float* cosines, const float* sines) {
    const Slots& slots = layer.slots;
    const int64_t queries = layer.query->rows / head_size_, keys = layer.key->rows / head_size_;
    TORCH_CHECK(slots.first.defined() && slots.first.size(0) == number_,
                "lacache::DecodeStep: slots of each batch slot");
    multiply(normed_, {{layer.query, &queries_}, {layer.key, &keys_}, {layer.value, &values_}});
    attended_.resize(queries_.size());
    for (int64_t b = 0; b < number_; ++b) {
      if (!active_[b]) continue;
      float* query = queries_.data() + b * layer.query->rows;
      float* key = keys_.data() + b * layer.key->rows;
      if (layer.of_queries.weight.defined()) {
        layer.of_queries.apply(query, queries, query);
        layer.of_keys.apply(key, keys, key);
      }
      if (layer.rotates) {
        const float *cosine = cosines + b * head_size_, *sine = sines + b * head_size_;
        rotate_halves(query, queries, head_size_, cosine, sine);
        rotate_halves(key, keys, head_size_, cosine, sine);
      }
      for (int64_t i = 0; i < layer.query->rows; ++i) query[i] *= layer.scaling;
    }
    if (slots.keys.scalar_type() == at::kFloat)
      attend_slots<Float32>(slots, keys, queries / keys);
    else
      attend_slots<BFloat16>(slots, keys, queries / keys);
  }

  // Stores the new keys and values, and attends to all up to them.
  template <class T>
  void attend_slots(const Slots& slots, int64_t kv_heads, int64_t shared) {
    using States = typename T::Stored*;
    const auto first = slots.first.accessor<int64_t, 2>(), next = slots.next.accessor<int64_t, 2>();
    const auto last = slots.last.accessor<int64_t, 2>();
    const States all_keys = static_cast<States>(slots.keys.mutable_data_ptr());
    const States all_values = static_cast<States>(slots.values.mutable_data_ptr());
    const int64_t size = head_size_, heads = number_ * kv_heads;
    int64_t most = 0;
    for (int64_t n = 0; n < heads; ++n) {
      const int64_t b = n / kv_heads, head = n % kv_heads, row = first[b][head];
      if (!active_[b]) continue;
      TORCH_CHECK(row >= 0 && next[b][head] >= 0 && last[b][head] >= next[b][head] &&
                      row + last[b][head] < slots.keys.size(0),
                  "lacache::DecodeStep: each head's slots are among the rows");
      most = std::max(most, last[b][head] + 1);
      const int64_t to = (row + next[b][head]) * size;
      for (int64_t i = 0; i < size; ++i) {
        all_keys[to + i] = narrow(keys_[n * size + i], typename T::Stored());
        all_values[to + i] = narrow(values_[n * size + i], typename T::Stored());
      }
    }
    const int threads = heads * most * size < kWorthAThread ? 1 : at::get_num_threads();
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t n = 0; n < heads; ++n) {
      const int64_t b = n / kv_heads, head = n % kv_heads, row = first[b][head];
      if (!active_[b]) continue;
      const Head<T> states{all_keys + row * size, all_values + row * size, last[b][head] + 1, size, size};
      attend_heads(states, queries_.data() + n * shared * size, shared,
                   attended_.data() + n * shared * size);
    }
  }
};

}  // namespace
