// One piece of attention over pages: some query rows of one sequence against one KV head.
#pragma once

#include <cstddef>
#include <cstdint>

#include "glimprouter/kv_layout.hpp"
#include "glimprouter/types/host_device.hpp"

namespace glimprouter {

// Rows are (query token, query head) pairs that share the KV head. Row r sees the keys
// [first_keys[r], end_keys[r]) of the sequence; at least one.
struct AttentionTask {
  const std::byte* arena;
  const PageId* pages;  // of the sequence
  const LayerLayout* layer;
  std::int32_t kv_head;
  std::int32_t rows;
  const float* queries;            // [rows, head_dim], multiplied by the scale
  const std::int32_t* first_keys;  // [rows]
  const std::int32_t* end_keys;    // [rows]
  float softcap;                   // 0: off; else scores become softcap tanh(score / softcap)
  const float* sinks;              // [rows], or null: scores without values, beside those of keys
  float* out;                      // [rows, value_dim]
};

// The context is cut in chunks of whole pages, from the sequence's first token on: at most 128
// tokens and 32 pages, at least a page. A row is summed page by page within a chunk; its chunks are
// merged in order. So a device can share a long context among its processors and still give the
// same bits.
inline constexpr std::int32_t kAttentionChunkTokens = 128;
inline constexpr std::int32_t kAttentionChunkPages = 32;
GR_HOST_DEVICE constexpr std::int32_t attention_chunk_pages(std::int32_t page_size) {
  const std::int32_t pages = kAttentionChunkTokens / page_size;
  return pages < 1 ? 1 : pages > kAttentionChunkPages ? kAttentionChunkPages : pages;
}

// Rows of a task at most, and scratch elements that a task needs.
inline constexpr std::int32_t kMaxAttentionRows = 32;
inline constexpr std::int32_t kAttentionBlockRows = 16;  // rows that are computed side by side
inline constexpr std::int32_t kAttentionLanes = 16;      // head sizes are multiples of this
constexpr std::int64_t attention_scratch_size(const LayerLayout& layer) {
  const std::int64_t padded =
      (layer.page_size + kAttentionLanes - 1) / kAttentionLanes * kAttentionLanes;
  // A page's keys, values and scores, then the columns of the blocks: queries, chunks and totals.
  return padded * (layer.head_dim + layer.value_dim + kMaxAttentionRows) +
         kMaxAttentionRows * (layer.head_dim + 2 * layer.value_dim);
}

}  // namespace glimprouter
