#include "ops/host_decoder.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#include "cpu/cpu_backend.hpp"
#include "cpu/product_task.hpp"
#include "glimprouter/thread_pool.hpp"

namespace glimprouter {
namespace {

constexpr std::int64_t kActivatedTogether = 256;  // elements whose exponentials are on the stack

void require(bool fits, const std::string& what) {
  if (!fits) throw std::invalid_argument(what);
}

void check_matrix(const Matrix& matrix, std::int64_t outputs, std::int64_t size, const char* name) {
  require(matrix.weights != nullptr && matrix.outputs == outputs && matrix.size == size,
          std::string(name) + " must be [" + std::to_string(outputs) + ", " + std::to_string(size) +
              "], got [" + std::to_string(matrix.outputs) + ", " + std::to_string(matrix.size) +
              "]");
  require(size % kProductLanes == 0, std::string(name) + " must have a multiple of " +
                                         std::to_string(kProductLanes) + " columns, got " +
                                         std::to_string(size));
}

// SiLU of the gate, times what it lets through; e^-|x| cannot overflow.
void activate(const float* gate, const float* up, std::int64_t count, float* out) {
  const auto exponentials = active_backend().exponentials;
  float decay[kActivatedTogether];
  for (std::int64_t begin = 0; begin < count; begin += kActivatedTogether) {
    const std::int64_t size = std::min(kActivatedTogether, count - begin);
    for (std::int64_t i = 0; i < size; ++i) decay[i] = -std::fabs(gate[begin + i]);
    exponentials(decay, size, 0.0f, 1.0f, decay);
    for (std::int64_t i = 0; i < size; ++i) {
      const float x = gate[begin + i];
      const float share = (x >= 0.0f ? 1.0f : decay[i]) / (1.0f + decay[i]);
      out[begin + i] = (x * share) * up[begin + i];
    }
  }
}

FloatTensor rows_of(const std::vector<float>& values, std::int64_t rows, std::int64_t size) {
  return {values.data(), {1, 1, rows, size}, {rows * size, rows * size, size, 1}};
}

// [T, heads, size], side by side, as [1, heads, T, size].
FloatTensor heads_of(const std::vector<float>& values, std::int64_t tokens, std::int64_t heads,
                     std::int64_t size) {
  return {values.data(), {1, heads, tokens, size}, {tokens * heads * size, size, heads * size, 1}};
}

HeadsView view_of(std::vector<float>& values, std::int64_t tokens, std::int64_t heads,
                  std::int64_t size, std::int64_t token_stride, std::int64_t head_stride) {
  return {values.data(),
          DataType::kFloat32,
          tokens,
          static_cast<std::int32_t>(heads),
          static_cast<std::int32_t>(size),
          token_stride,
          head_stride};
}

void reserve(std::vector<float>& values, std::int64_t count) {
  if (values.size() < static_cast<std::size_t>(count)) {
    values.resize(static_cast<std::size_t>(count));
  }
}

}  // namespace

HostDecoder::HostDecoder(DecoderWeights weights, const KvLayout& layout)
    : weights_(std::move(weights)), layout_(layout) {
  const std::int64_t hidden = weights_.hidden;
  require(static_cast<std::int64_t>(weights_.layers.size()) == layout_.num_layers(),
          "as many layers as the layout has, " + std::to_string(layout_.num_layers()) + ", got " +
              std::to_string(weights_.layers.size()));
  for (std::int32_t index = 0; index < layout_.num_layers(); ++index) {
    const DecoderLayer& layer = weights_.layers[static_cast<std::size_t>(index)];
    const LayerShape& shape = layout_.shape(index);
    require(!shape.latent && shape.shares < 0 && shape.head_dim == shape.value_dim &&
                shape.head_dim == layout_.shape(0).head_dim,
            "layers must keep keys and values of their own, all of one head size");
    const std::int64_t keys = shape.num_kv_heads * shape.head_dim;
    require(layer.query.outputs > 0 && layer.query.outputs % keys == 0,
            "query must have a multiple of " + std::to_string(keys) + " rows, got " +
                std::to_string(layer.query.outputs));
    check_matrix(layer.query, layer.query.outputs, hidden, "query");
    check_matrix(layer.key, keys, hidden, "key");
    check_matrix(layer.value, keys, hidden, "value");
    check_matrix(layer.output, hidden, layer.query.outputs, "output");
    check_matrix(layer.gate, layer.gate.outputs, hidden, "gate");
    check_matrix(layer.up, layer.gate.outputs, hidden, "up");
    check_matrix(layer.down, hidden, layer.gate.outputs, "down");
  }
  check_matrix(weights_.head, weights_.head.outputs, hidden, "head");
}

void HostDecoder::check(const PagePool& pool, const RaggedBatch& batch, const RotaryTables& angles,
                        std::span<const std::int32_t> rows) const {
  require(batch.model >= 0 && batch.model < pool.num_models(), "the pool has no such model");
  require(pool.layout(batch.model).same_layers(layout_), "the pool's pages have other layers");
  require(pool.arena().name() == "cpu", "pages must be in host memory");
  require(batch.ids.size() == batch.slot_mapping.size(), "the batch has no ids of its tokens");
  for (const std::int32_t id : batch.ids) {
    require(id >= 0 && id < weights_.vocabulary,
            "token " + std::to_string(id) + " lies outside the embedding of " +
                std::to_string(weights_.vocabulary) + " tokens");
  }
  for (const std::int32_t position : batch.positions) {
    require(position >= 0 && position < angles.positions, "position " + std::to_string(position) +
                                                              " lies outside the tables of " +
                                                              std::to_string(angles.positions));
  }
  for (const std::int32_t row : rows) {
    require(row >= 0 && static_cast<std::size_t>(row) < batch.ids.size(),
            "row " + std::to_string(row) + " lies outside the batch of " +
                std::to_string(batch.ids.size()) + " tokens");
  }
}

// Embeddings of the tokens, and the angles of their positions.
void HostDecoder::begin(const RaggedBatch& batch, const RotaryTables& angles) {
  const std::int64_t hidden = weights_.hidden;
  const std::int64_t size = layout_.shape(0).head_dim;
  tokens_ = static_cast<std::int64_t>(batch.ids.size());
  reserve(hidden_, tokens_ * hidden);
  reserve(cosine_, tokens_ * size);
  reserve(sine_, tokens_ * size);
  for (std::int64_t token = 0; token < tokens_; ++token) {
    const auto index = static_cast<std::size_t>(token);
    std::copy_n(weights_.embedding + batch.ids[index] * hidden, hidden,
                hidden_.data() + token * hidden);
    std::copy_n(angles.cosine + batch.positions[index] * size, size, cosine_.data() + token * size);
    std::copy_n(angles.sine + batch.positions[index] * size, size, sine_.data() + token * size);
  }
}

void HostDecoder::norm_rows(const RmsNorm& norm) {
  rms_norm(rows_of(hidden_, tokens_, weights_.hidden), norm, normed_.data());
}

// Queries and keys, normed where the layer does so, turned by their angles: [heads, T, size].
void HostDecoder::rotate(const DecoderLayer& layer) {
  const std::int64_t size = layout_.shape(0).head_dim;
  const FloatTensor cosine = rows_of(cosine_, tokens_, size);
  const FloatTensor sine = rows_of(sine_, tokens_, size);
  auto turn = [&](std::vector<float>& heads, const Matrix& matrix, const RmsNorm& norm,
                  std::vector<float>& turned) {
    const std::int64_t count = matrix.outputs / size;
    reserve(turned, tokens_ * matrix.outputs);
    if (norm.weight != nullptr) {
      rms_norm(rows_of(heads, tokens_ * count, size), norm, turned.data());
      std::swap(heads, turned);
    }
    rotate_heads(heads_of(heads, tokens_, count, size), cosine, sine, turned.data());
  };
  turn(query_, layer.query, layer.query_norm, turned_query_);
  turn(key_, layer.key, layer.key_norm, turned_key_);
}

void HostDecoder::attend(PagePool& pool, const RaggedBatch& batch, std::int32_t index) {
  const DecoderLayer& layer = weights_.layers[static_cast<std::size_t>(index)];
  const std::int64_t size = layout_.shape(0).head_dim;
  const std::int64_t heads = layer.query.outputs / size;
  const std::int64_t kv_heads = layer.key.outputs / size;
  reserve(normed_, tokens_ * weights_.hidden);
  reserve(query_, tokens_ * layer.query.outputs);
  reserve(key_, tokens_ * layer.key.outputs);
  reserve(value_, tokens_ * layer.value.outputs);
  reserve(attended_, tokens_ * layer.query.outputs);
  norm_rows(layer.attention_norm);
  rows_.arrange(normed_.data(), tokens_, weights_.hidden);
  multiply_rows(layer.query, rows_, nullptr, query_.data());
  multiply_rows(layer.key, rows_, nullptr, key_.data());
  multiply_rows(layer.value, rows_, nullptr, value_.data());
  rotate(layer);
  append_kv(pool, {index}, batch,
            view_of(turned_key_, tokens_, kv_heads, size, size, tokens_ * size),
            view_of(value_, tokens_, kv_heads, size, kv_heads * size, size));
  paged_attention(pool, index, batch, layer.attention,
                  view_of(turned_query_, tokens_, heads, size, size, tokens_ * size),
                  view_of(attended_, tokens_, heads, size, heads * size, size));
  rows_.arrange(attended_.data(), tokens_, layer.output.size);
  multiply_rows(layer.output, rows_, hidden_.data(), hidden_.data());
}

void HostDecoder::apply_mlp(const DecoderLayer& layer) {
  const std::int64_t inner = layer.gate.outputs;
  reserve(gate_, tokens_ * inner);
  reserve(up_, tokens_ * inner);
  norm_rows(layer.mlp_norm);
  rows_.arrange(normed_.data(), tokens_, weights_.hidden);
  multiply_rows(layer.gate, rows_, nullptr, gate_.data());
  multiply_rows(layer.up, rows_, nullptr, up_.data());
  auto body = [&](std::int64_t token, int) noexcept {
    float* const own = gate_.data() + token * inner;
    activate(own, up_.data() + token * inner, inner, own);
  };
  parallel_tasks(tokens_, tokens_ * inner, TaskBody(body));
  rows_.arrange(gate_.data(), tokens_, inner);
  multiply_rows(layer.down, rows_, hidden_.data(), hidden_.data());
}

void HostDecoder::run(PagePool& pool, const RaggedBatch& batch, const RotaryTables& angles,
                      std::span<const std::int32_t> rows, float* logits) {
  check(pool, batch, angles, rows);
  begin(batch, angles);
  for (std::int32_t index = 0; index < layout_.num_layers(); ++index) {
    attend(pool, batch, index);
    apply_mlp(weights_.layers[static_cast<std::size_t>(index)]);
  }
  const std::int64_t hidden = weights_.hidden;
  const auto count = static_cast<std::int64_t>(rows.size());
  reserve(gate_, count * hidden);
  for (std::int64_t row = 0; row < count; ++row) {
    std::copy_n(hidden_.data() + rows[static_cast<std::size_t>(row)] * hidden, hidden,
                gate_.data() + row * hidden);
  }
  reserve(normed_, count * hidden);
  rms_norm(rows_of(gate_, count, hidden), weights_.norm, normed_.data());
  rows_.arrange(normed_.data(), count, hidden);
  multiply_rows(weights_.head, rows_, nullptr, logits);
}

}  // namespace glimprouter
