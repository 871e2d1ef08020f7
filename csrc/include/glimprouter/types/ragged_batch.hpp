// The hand-off to a model: exactly the tokens that it has not seen, of many sequences, side by
// side.
#pragma once

#include <cstdint>
#include <vector>

#include "glimprouter/kv_layout.hpp"

namespace glimprouter {

// B sequences with T tokens in all. A forward pass over it brings the model to the frontier of each
// sequence; the logits of last_rows are the glimpse, or the next token's.
struct RaggedBatch {
  std::int32_t model = 0;
  std::uint64_t ticket = 0;                // names this batch among those in flight
  std::vector<std::int32_t> sequences;     // [B]
  std::vector<std::int32_t> ids;           // [T]
  std::vector<std::int32_t> positions;     // [T] of the model's own sequence, prompt included
  std::vector<std::int32_t> cu_seqlens;    // [B + 1] where each sequence's tokens begin in ids
  std::vector<std::int32_t> seq_lens;      // [B] keys that the last token sees
  std::vector<std::int32_t> last_rows;     // [B] index of each sequence's last token in ids
  std::vector<std::int64_t> slot_mapping;  // [T] page * page_size + token within the page
  std::int32_t table_width = 0;            // pages of the longest sequence
  std::vector<PageId> block_table;         // [B, table_width], padded with kNullPage
  // Names the columns in device memory. The columns stay as they are once a device has seen them.
  mutable std::uint64_t upload = 0;
};

}  // namespace glimprouter
