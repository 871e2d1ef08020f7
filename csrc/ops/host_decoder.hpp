// All layers of a decoder over pages in host memory, in one call: float32, on the library's
// threads.
//
// The decoder of Llama, Qwen and their like: RMS norm, attention with rotary embeddings over
// grouped heads, residual, RMS norm, gated MLP with SiLU, residual. Between a model's own
// operations a framework spends several microseconds each, some forty a layer; for a single token
// of a small model that is most of its time.
//
// A token's logits have the same bits whatever other tokens are in its pass, on every instruction
// set and any number of threads: all that is in here promises so (matrix_product.hpp,
// layer_ops.hpp, paged_attention in kv_ops.hpp). Internal.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "glimprouter/kv_ops.hpp"
#include "ops/layer_ops.hpp"
#include "ops/matrix_product.hpp"

namespace glimprouter {

// Weights are borrowed, and must live as long as the decoder.
struct DecoderLayer {
  RmsNorm attention_norm;
  Matrix query, key, value;
  RmsNorm query_norm, key_norm;  // of each head; no weight: none
  AttentionOptions attention;
  Matrix output;
  RmsNorm mlp_norm;
  Matrix gate, up, down;
};

struct DecoderWeights {
  const float* embedding = nullptr;  // [vocabulary, hidden], side by side
  std::int64_t vocabulary = 0;
  std::int64_t hidden = 0;
  std::vector<DecoderLayer> layers;
  RmsNorm norm;  // behind the last layer
  Matrix head;   // to logits
};

// Cosines and sines of the rotary embeddings by position, [positions, head size], side by side.
struct RotaryTables {
  const float* cosine;
  const float* sine;
  std::int64_t positions;
};

class HostDecoder {
 public:
  // layout: of the model's layers; pages may be of any size and type. Throws std::invalid_argument
  // for weights that do not fit together or to the layout.
  HostDecoder(DecoderWeights weights, const KvLayout& layout);

  std::int64_t vocabulary() const { return weights_.head.outputs; }

  // The batch's tokens through all layers; logits [rows, vocabulary] of some of them, side by side.
  // The caller completes or abandons the batch. Throws std::invalid_argument, before anything is
  // written, for tokens outside the vocabulary or the tables, rows outside the batch, or pages of
  // other layers. Not thread-safe.
  void run(PagePool& pool, const RaggedBatch& batch, const RotaryTables& angles,
           std::span<const std::int32_t> rows, float* logits);

 private:
  void check(const PagePool& pool, const RaggedBatch& batch, const RotaryTables& angles,
             std::span<const std::int32_t> rows) const;
  void begin(const RaggedBatch& batch, const RotaryTables& angles);
  void attend(PagePool& pool, const RaggedBatch& batch, std::int32_t index);
  void rotate(const DecoderLayer& layer);
  void apply_mlp(const DecoderLayer& layer);
  void norm_rows(const RmsNorm& norm);

  DecoderWeights weights_;
  KvLayout layout_;
  std::int64_t tokens_ = 0;  // of the pass at hand
  // Of the pass at hand; they grow with the longest one and stay.
  std::vector<float> hidden_, normed_, query_, key_, value_, turned_query_, turned_key_, attended_,
      gate_, up_, cosine_, sine_;
  ProductRows rows_;
};

}  // namespace glimprouter
