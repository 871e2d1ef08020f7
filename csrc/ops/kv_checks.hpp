// What every operation on pages asks of its arguments, wherever the pages are. Internal.
#pragma once

#include <cstdint>

#include "glimprouter/kv_layout.hpp"
#include "glimprouter/types/kv_views.hpp"

namespace glimprouter {

// All throw std::invalid_argument. tokens: of the pass.

// Keys and values [layers, tokens, KV heads, head_dim] of layers that the layout has.
void check_keys_and_values(const KvLayout& layout, const LayerRange& layers, std::int64_t tokens,
                           const HeadsView& keys, const HeadsView& values);
// Queries and out [tokens, heads, head_dim] of attention in one layer, and a sink for each head.
void check_attention(const KvLayout& layout, std::int32_t layer, std::int64_t tokens,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out);

}  // namespace glimprouter
