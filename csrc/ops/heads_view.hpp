// What the operations on pages share: checks of their arguments, and where a head begins. Internal.
#pragma once

#include <cstddef>
#include <cstdint>

#include "glimprouter/kv_ops.hpp"

namespace glimprouter {

// Both throw std::invalid_argument.
void check_layer(const KvLayout& layout, std::int32_t layer);
void check_heads(const HeadsView& view, const char* what, std::int64_t tokens, std::int32_t heads,
                 std::int32_t head_dim);

inline std::byte* head_address(const HeadsView& view, std::int64_t token, std::int32_t head) {
  const std::int64_t offset = token * view.token_stride + head * view.head_stride;
  return static_cast<std::byte*>(view.data) + offset * element_size(view.dtype);
}

}  // namespace glimprouter
