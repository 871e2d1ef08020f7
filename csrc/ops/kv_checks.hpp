// What every operation on pages asks of its arguments, wherever the pages are. Internal.
#pragma once

#include <cstdint>

#include "glimprouter/kv_layout.hpp"
#include "glimprouter/types/kv_views.hpp"

namespace glimprouter {

// All throw std::invalid_argument. tokens: of the pass.

// Keys and values [layers, tokens, KV heads, head_dim or value_dim] of layers that the layout has,
// several only where they are alike. Values may be absent where the layers are latent.
void check_keys_and_values(const KvLayout& layout, const LayerRange& layers, std::int64_t tokens,
                           const HeadsView& keys, const HeadsView& values);
// Besides, that these layers may be written: they share no other's keys, and latent ones come
// without values.
void check_written(const KvLayout& layout, const LayerRange& layers, std::int64_t tokens,
                   const HeadsView& keys, const HeadsView& values);
// Queries [tokens, heads, head_dim] and out [tokens, heads, value_dim] of attention in one layer,
// and a sink for each head.
void check_attention(const KvLayout& layout, std::int32_t layer, std::int64_t tokens,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out);
// That so many query heads can attend in every layer.
void check_query_heads(const KvLayout& layout, std::int32_t heads);

}  // namespace glimprouter
