// Attention over pages in host memory. Internal.
#pragma once

#include <cstddef>
#include <cstdint>

#include "glimprouter/kv_layout.hpp"
#include "glimprouter/types/kv_views.hpp"
#include "glimprouter/types/page_tables.hpp"

namespace glimprouter {

// The tokens of the tables in one layer; checked. Non-owning, for the duration of a call.
struct HostAttention {
  const std::byte* arena;
  const LayerLayout& layer;
  const PageTables& tables;
  const AttentionOptions& options;
  const HeadsView& queries;  // [T, heads, head_dim]
  const HeadsView& out;      // [T, heads, value_dim]
};

// On the library's threads. What it promises is said at paged_attention() (kv_ops.hpp).
void attend_on_host(const HostAttention& attention);

}  // namespace glimprouter
