// What an operation on pages works on: keys, values or queries outside of them, and which layers.
#pragma once

#include <cstdint>

#include "glimprouter/kv_layout.hpp"
#include "glimprouter/types/host_device.hpp"
#include "glimprouter/types/row_view.hpp"

namespace glimprouter {

// [tokens, heads, head_dim] with contiguous head elements; strides in elements. Non-owning.
struct HeadsView {
  void* data;
  DataType dtype;
  std::int64_t tokens;
  std::int32_t heads;
  std::int32_t head_dim;
  std::int64_t token_stride;
  std::int64_t head_stride;
  std::int64_t layer_stride = 0;  // where there are several, [layers, tokens, heads, head_dim]

  // No tensor: values of a layer that keeps them within its keys (LayerShape::latent).
  bool absent() const { return heads == 0; }
};

// The layers of an operation: one inside a forward pass, elsewhere all of them, if they are alike.
struct LayerRange {
  std::int32_t first;
  std::int32_t count = 1;
};
inline LayerRange all_layers(const KvLayout& layout) { return {0, layout.num_layers()}; }

struct AttentionOptions {
  float scale = 1.0f;
  std::int32_t window = 0;  // keys that a token sees, itself included; 0: all before it
  float softcap = 0.0f;     // 0: off; else scores become softcap tanh(score / softcap)
  // Attention sinks: a score of each query head, [heads], that takes its share of the softmax and
  // has no value. Neither scaled nor capped. No data: off.
  RowView sinks{nullptr, DataType::kFloat32, 0};
  // Chunked attention (Llama 4): a sequence is cut every so many tokens, and a token sees none that
  // is before its own cut. 0: off.
  std::int32_t chunk_size = 0;
};

// The first key that a token sees whose keys end at `end`, itself the last of them.
GR_HOST_DEVICE inline std::int32_t first_key_seen(std::int32_t end, std::int32_t window,
                                                  std::int32_t chunk_size) {
  const std::int32_t in_window = window > 0 && end > window ? end - window : 0;
  const std::int32_t in_chunk = chunk_size > 0 ? (end - 1) / chunk_size * chunk_size : 0;
  return in_window > in_chunk ? in_window : in_chunk;
}

}  // namespace glimprouter
