// Where a head begins in a view of heads. Internal.
#pragma once

#include <cstddef>
#include <cstdint>

#include "glimprouter/types/kv_views.hpp"

namespace glimprouter {

inline std::byte* head_address(const HeadsView& view, std::int64_t token, std::int32_t head) {
  const std::int64_t offset = token * view.token_stride + head * view.head_stride;
  return static_cast<std::byte*>(view.data) + offset * element_size(view.dtype);
}

}  // namespace glimprouter
