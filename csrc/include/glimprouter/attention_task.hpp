// One piece of attention over pages: some query rows of one sequence against one KV head.
#pragma once

#include <cstddef>
#include <cstdint>

#include "glimprouter/kv_layout.hpp"

namespace glimprouter {

// Rows are (query token, query head) pairs that share the KV head. Row r sees the keys
// [first_keys[r], end_keys[r]) of the sequence; at least one.
struct AttentionTask {
  const std::byte* arena;
  const PageId* pages;  // of the sequence
  const KvLayout* layout;
  std::int32_t layer;
  std::int32_t kv_head;
  std::int32_t rows;
  const float* queries;            // [rows, head_size], multiplied by the scale
  const std::int32_t* first_keys;  // [rows]
  const std::int32_t* end_keys;    // [rows]
  float softcap;                   // 0: off; else scores become softcap tanh(score / softcap)
  float* out;                      // [rows, head_size]
};

// Rows of a task at most, and scratch elements that a task needs.
inline constexpr std::int32_t kMaxAttentionRows = 32;
inline constexpr std::int32_t kAttentionLanes = 16;  // head_size is a multiple of this
constexpr std::int64_t attention_scratch_size(std::int32_t head_size, std::int32_t page_tokens) {
  const std::int64_t padded =
      (page_tokens + kAttentionLanes - 1) / kAttentionLanes * kAttentionLanes;
  return 2 * padded * head_size + padded * kMaxAttentionRows;
}

}  // namespace glimprouter
