// Arguments of the operations on pages on a device. Plain data: every pointer is device memory
// unless said otherwise. Strides in bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "glimprouter/attention_task.hpp"
#include "glimprouter/kv_layout.hpp"
#include "glimprouter/row_view.hpp"

namespace glimprouter {

// Pages of one layout. The arena begins at a multiple of KvLayout::kPageUnit.
struct DevicePages {
  std::byte* arena;
  KvLayout layout;
};

// Keys, values or queries outside of pages: [layers, tokens, heads, head_size] with contiguous head
// elements that are aligned to their size.
struct DeviceHeads {
  std::byte* data;
  DataType dtype;
  std::int64_t layer_stride;
  std::int64_t token_stride;
  std::int64_t head_stride;
};

// The layers of an operation: one inside a forward pass, all of them elsewhere.
struct LayerRange {
  std::int32_t first;
  std::int32_t count;
};

// New keys and values into their slots, cast to the pages' type.
struct AppendArguments {
  DevicePages pages;
  LayerRange layers;
  const std::int64_t* slots;  // [tokens] page * page_tokens + place; -1: the token is left out
  std::int64_t tokens;
  DeviceHeads keys;  // layer 0 of it is layers.first
  DeviceHeads values;
};

// The first tokens of one sequence out of its pages, cast to the type of the targets.
struct GatherArguments {
  DevicePages pages;
  LayerRange layers;
  const PageId* table;  // [ceil(tokens / page_tokens)]
  std::int64_t tokens;
  DeviceHeads keys;
  DeviceHeads values;
};

// The tokens [begin, end) of one sequence, all layers, from the pages of one layout to those of
// another with the same layers, heads and head size, cast to the other's type.
struct CastCopyArguments {
  DevicePages source;
  const PageId* source_table;  // from the sequence's first token on
  DevicePages target;
  const PageId* target_table;
  std::int64_t begin;
  std::int64_t end;
};

// Whole pages: fork and copy-on-write (both in the arena), offload and fetch (the other side is
// pinned host memory, where pages lie side by side).
struct PageCopyArguments {
  const std::byte* source;
  const PageId* source_pages;  // [count], or null: side by side
  std::byte* target;
  const PageId* target_pages;  // [count], or null: side by side
  std::int64_t count;
  std::int64_t page_bytes;
};

// Tables of all sequences, of one model. Row s belongs to sequence s.
struct SequenceTables {
  const std::int32_t* prompts;  // [num_sequences, prompt_stride]
  std::int64_t prompt_stride;   // elements
  const std::int32_t* prompt_lengths;
  const std::int32_t* generated;  // [num_sequences, generated_stride]
  std::int64_t generated_stride;
  const std::int32_t* generated_lengths;
  const std::int32_t* committed;  // tokens that the model has computed
  const PageId* pages;            // [num_sequences, page_stride], enough for all tokens
  std::int64_t page_stride;
  std::int32_t page_tokens;
  // Ids of the model for the ids of `generated`, or null: the same ids. -1: there is none.
  const std::int32_t* vocabulary_map;  // [vocabulary]
  std::int32_t vocabulary;
};

// The columns of a RaggedBatch. Tokens that are missing to `capacity` get id 0, position 0 and slot
// -1, so that a captured graph may run over all of them.
struct HandoffArguments {
  SequenceTables tables;
  const std::int32_t* sequences;  // [count] distinct
  std::int32_t count;
  std::int64_t capacity;      // tokens
  std::int32_t table_width;   // pages
  std::int32_t* ids;          // [capacity]
  std::int32_t* positions;    // [capacity]
  std::int64_t* slots;        // [capacity]
  std::int32_t* cu_seqlens;   // [count + 1]; its last beyond capacity: what is beyond is missing
  std::int32_t* key_lengths;  // [count]
  std::int32_t* last_rows;    // [count]
  PageId* block_table;        // [count, table_width], padded with kNullPage
  // Zero before: counts the tokens without an id of the model, which become id 0.
  std::uint32_t* unmapped;
};

// Scratch memory of one stream: launches that may overlap need their own.
struct AttentionWorkspace {
  float* out;              // [T, heads, chunks, head_size]
  float* sums;             // [T, heads, chunks, 2]: maximum and sum
  std::uint32_t* tickets;  // [attention_tickets()], zero between launches
};

// Causal attention of the batch's tokens over the pages of their sequences.
struct AttentionArguments {
  DevicePages pages;  // head_size a multiple of 16 up to 256, at most 256 tokens a page
  std::int32_t layer;
  const PageId* block_table;  // [sequences, table_width]
  std::int32_t table_width;
  const std::int32_t* cu_seqlens;   // [sequences + 1]
  const std::int32_t* key_lengths;  // [sequences]
  std::int32_t sequences;
  std::int32_t most_tokens;  // of one sequence in the batch, or more
  std::int32_t most_keys;    // of one sequence, or more
  std::int32_t heads;        // a multiple of the KV heads
  float scale;
  std::int32_t window;  // 0: off
  float softcap;        // 0: off
  DeviceHeads queries;  // [T, heads, head_size]
  DeviceHeads out;
  AttentionWorkspace workspace;
};

inline constexpr std::int32_t kMaxDeviceHeadSize = 256;
inline constexpr std::int32_t kMaxDevicePageTokens = 256;

// Query rows of a block: (token, query head) pairs that share a KV head.
inline std::int32_t attention_block_rows(const AttentionArguments& arguments) {
  const std::int32_t group = arguments.heads / arguments.pages.layout.num_kv_heads;
  return arguments.most_tokens * group <= 4 ? 4 : 8;
}
// Row groups of one sequence and KV head.
inline std::int32_t attention_row_groups(const AttentionArguments& arguments) {
  const std::int32_t group = arguments.heads / arguments.pages.layout.num_kv_heads;
  const std::int32_t rows = attention_block_rows(arguments);
  return (arguments.most_tokens * group + rows - 1) / rows;
}
// Chunks that one row group sees at most.
inline std::int32_t attention_chunks(const AttentionArguments& arguments) {
  const std::int32_t page_tokens = arguments.pages.layout.page_tokens;
  const std::int32_t tokens = page_tokens * attention_chunk_pages(page_tokens);
  const std::int32_t all = (arguments.most_keys + tokens - 1) / tokens;
  if (arguments.window == 0) return all;
  const std::int64_t seen = static_cast<std::int64_t>(arguments.window) + arguments.most_tokens - 1;
  const std::int64_t touched = (seen + tokens - 2) / tokens + 1;  // begins anywhere in a chunk
  return touched < all ? static_cast<std::int32_t>(touched) : all;
}
inline std::int64_t attention_tickets(const AttentionArguments& arguments) {
  return static_cast<std::int64_t>(arguments.sequences) * arguments.pages.layout.num_kv_heads *
         attention_row_groups(arguments);
}
// Floats of the workspace for so many tokens, tickets aside; and the workspace in that memory.
inline std::int64_t attention_scratch(const AttentionArguments& arguments, std::int64_t tokens) {
  return tokens * arguments.heads * attention_chunks(arguments) *
         (arguments.pages.layout.head_size + 2);
}
inline AttentionWorkspace attention_workspace(float* scratch, std::uint32_t* tickets,
                                              const AttentionArguments& arguments,
                                              std::int64_t tokens) {
  const std::int64_t rows = tokens * arguments.heads * attention_chunks(arguments);
  return {scratch, scratch + rows * arguments.pages.layout.head_size, tickets};
}

}  // namespace glimprouter
