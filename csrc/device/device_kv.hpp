// Arguments of the operations on pages on a device. Plain data: every pointer is device memory
// unless said otherwise. Strides in bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/attention_task.hpp"
#include "glimprouter/kv_layout.hpp"
#include "glimprouter/types/host_device.hpp"
#include "glimprouter/types/kv_views.hpp"
#include "glimprouter/types/row_view.hpp"

namespace glimprouter {

// A layer of the pages of one layout. The arena begins at a multiple of KvLayout::kPageUnit.
struct DevicePages {
  std::byte* arena;
  LayerLayout layer;
  std::int64_t layer_stride = 0;  // to the next layers, where there are several, all of them alike
};

// Keys, values or queries outside of pages: [layers, tokens, heads, head_dim] with contiguous head
// elements that are aligned to their size.
struct DeviceHeads {
  std::byte* data;
  DataType dtype;
  std::int64_t layer_stride;
  std::int64_t token_stride;
  std::int64_t head_stride;
};

// New keys and values into their slot_mapping, cast to the pages' type.
struct AppendArguments {
  DevicePages pages;
  std::int32_t layers;               // how many, from that of `pages` on
  const std::int64_t* slot_mapping;  // [tokens] page * page_size + place; -1: the token is left out
  std::int64_t tokens;
  DeviceHeads keys;
  DeviceHeads values;  // no data: keys alone
};

// The first tokens of one sequence out of its pages, cast to the type of the targets.
struct GatherArguments {
  DevicePages pages;
  std::int32_t layers;
  const PageId* table;  // [ceil(tokens / page_size)]
  std::int64_t tokens;
  DeviceHeads keys;
  DeviceHeads values;  // no data: keys alone
};

// The tokens [begin, end) of one sequence, some layers, from the pages of one layout to those of
// another with the same layers, cast to the other's type.
struct CastCopyArguments {
  std::int32_t layers;
  DevicePages source;
  const PageId* source_table;  // from the sequence's first token on
  DevicePages target;
  const PageId* target_table;
  std::int64_t begin;
  std::int64_t end;
};

// Whole pages: fork and copy-on-write (both in the arena), reading and writing (the other side is
// pinned host memory, where pages lie side by side).
struct PageCopyArguments {
  const std::byte* source;
  const PageId* source_pages;  // [count], or null: side by side
  std::byte* target;
  const PageId* target_pages;  // [count], or null: side by side
  std::int64_t count;
  std::int64_t page_bytes;
};

// Scratch memory of one stream: launches that may overlap need their own.
struct AttentionWorkspace {
  float* out;              // [T, heads, chunks, value_dim]
  float* sums;             // [T, heads, chunks, 2]: maximum and sum
  std::uint32_t* tickets;  // [attention_tickets()], zero between launches
};

// How attention brings keys and values to a processor. No result depends on it.
enum class AttentionLoads : std::uint8_t {
  kDirect,  // a thread loads what it needs when it needs it
  kStaged,  // copied ahead into shared memory, where a layer's layout allows it
};

// Causal attention of the batch's tokens over the pages of their sequences.
struct AttentionArguments {
  DevicePages pages;          // head sizes: multiples of 16 up to 576; at most 256 tokens a page
  const PageId* block_table;  // [sequences, table_width]
  std::int32_t table_width;
  const std::int32_t* cu_seqlens;  // [sequences + 1]
  const std::int32_t* seq_lens;    // [sequences]
  std::int32_t sequences;
  std::int32_t tokens;       // T
  std::int32_t most_tokens;  // of one sequence in the batch, or more
  std::int32_t most_keys;    // of one sequence, or more
  std::int32_t heads;        // a multiple of the KV heads
  float scale;
  std::int32_t window;      // 0: off
  float softcap;            // 0: off
  RowView sinks;            // [heads]; no data: off
  std::int32_t chunk_size;  // 0: off
  DeviceHeads queries;      // [T, heads, head_dim]
  DeviceHeads out;          // [T, heads, value_dim]
  AttentionWorkspace workspace;
  AttentionLoads loads = AttentionLoads::kDirect;
};

// The latent vectors of multi-head latent attention (DeepSeek V3) have 576, Gemma 4 up to 512.
inline constexpr std::int32_t kMaxDeviceHeadDim = 576;
inline constexpr std::int32_t kMaxDevicePageSize = 256;

// Query rows of a block: (token, query head) pairs of one sequence that share a KV head.
GR_HOST_DEVICE inline std::int32_t attention_block_rows(const AttentionArguments& arguments) {
  const std::int32_t group = arguments.heads / arguments.pages.layer.num_kv_heads;
  return arguments.most_tokens * group <= 4 ? 4 : 8;
}
// Whether one block has room for all rows of a sequence, so that the groups are the sequences.
GR_HOST_DEVICE inline bool one_group_a_sequence(const AttentionArguments& arguments) {
  const std::int32_t group = arguments.heads / arguments.pages.layer.num_kv_heads;
  return arguments.most_tokens * group <= attention_block_rows(arguments);
}
// The first group of a sequence with so many tokens before it in the batch: each has as many groups
// as its rows need, or one more where groups may be part full, so a block finds its own without a
// list of them.
GR_HOST_DEVICE inline std::int64_t first_row_group(const AttentionArguments& arguments,
                                                   std::int32_t sequence,
                                                   std::int32_t tokens_before) {
  if (one_group_a_sequence(arguments)) return sequence;
  const std::int32_t group = arguments.heads / arguments.pages.layer.num_kv_heads;
  const std::int32_t rows = attention_block_rows(arguments);
  const std::int64_t full = static_cast<std::int64_t>(tokens_before) * group / rows;
  return group % rows == 0 ? full : sequence + full;
}
// Row groups of the batch, for one KV head.
inline std::int64_t attention_row_groups(const AttentionArguments& arguments) {
  return first_row_group(arguments, arguments.sequences, arguments.tokens);
}
// Chunks that one row group sees at most.
inline std::int32_t attention_chunks(const AttentionArguments& arguments) {
  const std::int32_t page_size = arguments.pages.layer.page_size;
  const std::int32_t tokens = page_size * attention_chunk_pages(page_size);
  const std::int32_t all = (arguments.most_keys + tokens - 1) / tokens;
  if (arguments.window == 0 && arguments.chunk_size == 0) return all;
  const std::int32_t narrowest =
      arguments.window == 0 || (arguments.chunk_size > 0 && arguments.chunk_size < arguments.window)
          ? arguments.chunk_size
          : arguments.window;
  const std::int64_t seen = static_cast<std::int64_t>(narrowest) + arguments.most_tokens - 1;
  const std::int64_t touched = (seen + tokens - 2) / tokens + 1;  // begins anywhere in a chunk
  return touched < all ? static_cast<std::int32_t>(touched) : all;
}
inline std::int64_t attention_tickets(const AttentionArguments& arguments) {
  return attention_row_groups(arguments) * arguments.pages.layer.num_kv_heads;
}
// Floats of the workspace, tickets aside; and the workspace in that memory.
inline std::int64_t attention_scratch(const AttentionArguments& arguments) {
  return static_cast<std::int64_t>(arguments.tokens) * arguments.heads *
         attention_chunks(arguments) * (arguments.pages.layer.value_dim + 2);
}
inline AttentionWorkspace attention_workspace(float* scratch, std::uint32_t* tickets,
                                              const AttentionArguments& arguments) {
  const std::int64_t rows =
      static_cast<std::int64_t>(arguments.tokens) * arguments.heads * attention_chunks(arguments);
  return {scratch, scratch + rows * arguments.pages.layer.value_dim, tickets};
}

}  // namespace glimprouter
