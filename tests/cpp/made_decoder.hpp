// A decoder of two layers with made weights.
#pragma once

#include <cstdint>
#include <vector>

#include "glimprouter/kv_layout.hpp"
#include "made_values.hpp"
#include "ops/host_decoder.hpp"

namespace glimprouter {

inline constexpr std::int64_t kHidden = 192;
inline constexpr std::int64_t kInner = 448;
inline constexpr std::int64_t kHeadDim = 32;
inline constexpr std::int64_t kVocabulary = 70;
inline constexpr std::int64_t kPositions = 200;
inline constexpr std::int32_t kLayers = 2;

inline KvLayout layout_of(std::int32_t page_size) {
  return KvLayout::make(kLayers, 2, kHeadDim, page_size, DataType::kFloat32);
}

// Small weights, so that layers do not drown what they add to.
class MadeDecoder {
 public:
  MadeDecoder() {
    DecoderWeights weights;
    weights.embedding = values(kVocabulary * kHidden, 1.0f);
    weights.vocabulary = kVocabulary;
    weights.hidden = kHidden;
    for (std::int32_t layer = 0; layer < kLayers; ++layer) {
      DecoderLayer own;
      own.attention_norm = norm(kHidden);
      own.query = matrix(6 * kHeadDim, kHidden);
      own.query.bias = values(6 * kHeadDim, 0.1f);
      own.key = matrix(2 * kHeadDim, kHidden);
      own.value = matrix(2 * kHeadDim, kHidden);
      if (layer == 0) own.query_norm = own.key_norm = norm(kHeadDim);
      own.attention.scale = 0.18f;
      own.output = matrix(kHidden, 6 * kHeadDim);
      own.mlp_norm = norm(kHidden);
      own.gate = matrix(kInner, kHidden);
      own.up = matrix(kInner, kHidden);
      own.down = matrix(kHidden, kInner);
      weights.layers.push_back(own);
    }
    weights.norm = norm(kHidden);
    weights.head = matrix(kVocabulary, kHidden);
    angles = {values(kPositions * kHeadDim, 0.25f), values(kPositions * kHeadDim, 0.25f),
              kPositions};
    parts = weights;
  }

  DecoderWeights parts;
  RotaryTables angles;

 private:
  const float* values(std::int64_t count, float scale) {
    kept_.push_back(values_of(count, 1 + kept_.size()));
    for (float& value : kept_.back()) value *= scale;
    return kept_.back().data();
  }
  Matrix matrix(std::int64_t outputs, std::int64_t size) {
    return {values(outputs * size, 0.02f), nullptr, outputs, size};
  }
  RmsNorm norm(std::int64_t size) { return {values(size, 0.3f), 1e-6, 1.0f}; }

  std::vector<std::vector<float>> kept_;
};

}  // namespace glimprouter
