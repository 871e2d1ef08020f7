// What a forward pass does with the pages of one layer: write new keys and values, attend, gather.
// Where the pool's pages are on a device, so is every tensor, and the work is enqueued on `stream`
// (null: the default stream), after all earlier work on the pool. Every function checks its
// arguments before it touches anything and throws std::invalid_argument.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "device/device_backend.hpp"
#include "glimprouter/page_pool.hpp"
#include "glimprouter/ragged_batch.hpp"
#include "kv/page_tables.hpp"

namespace glimprouter {

// [tokens, heads, head_dim] with contiguous head elements; strides in elements. Non-owning.
struct HeadsView {
  void* data;
  DataType dtype;
  std::int64_t tokens;
  std::int32_t heads;
  std::int32_t head_dim;
  std::int64_t token_stride;
  std::int64_t head_stride;
  std::int64_t layer_stride = 0;  // where there are several, [layers, tokens, heads, head_dim]
};

// Pages of one layout, wherever their arena comes from. Non-owning.
struct PagedMemory {
  std::byte* arena;
  const KvLayout& layout;
};

// Writes keys and values [T, KV heads, head size] of the batch's tokens into one layer of their
// pages, cast to the pages' type.
void append_kv(PagePool& pool, std::int32_t layer, const RaggedBatch& batch, const HeadsView& keys,
               const HeadsView& values, DeviceStream stream = nullptr);
// The same for tables that check_tables() has accepted.
void append_kv(const PagedMemory& pages, std::int32_t layer, const PageTables& tables,
               const HeadsView& keys, const HeadsView& values);

struct AttentionOptions {
  float scale = 1.0f;
  std::int32_t window = 0;  // keys that a token sees, itself included; 0: all before it
  float softcap = 0.0f;     // 0: off; else scores become softcap tanh(score / softcap)
};

// Causal attention of the batch's tokens [T, heads, head size] over the pages of their sequences,
// which hold the batch's own keys by now. KV head h serves the heads [h G, (h + 1) G).
// Pages are read in place, whatever the number of tokens; bitwise the same on every instruction
// set, for any batch, and however a prefill is cut. The library's threads share the work.
void paged_attention(const PagePool& pool, std::int32_t layer, const RaggedBatch& batch,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out, DeviceStream stream = nullptr);
// The same for tables that check_tables() has accepted.
void paged_attention(const PagedMemory& pages, std::int32_t layer, const PageTables& tables,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out);

// The checks of paged_attention() alone, for a caller that writes something before it.
void check_attention(const KvLayout& layout, std::int32_t layer, std::int64_t tokens,
                     const HeadsView& queries, const HeadsView& out);

// Copies the first `tokens` keys and values of one sequence and layer out of its pages, cast to the
// type of the targets. pages: [ceil(tokens / page_size)] of the model's layout.
void gather_kv(const PagePool& pool, std::int32_t model, std::int32_t layer, const PageId* pages,
               const HeadsView& keys, const HeadsView& values, DeviceStream stream = nullptr);

// Pages of one sequence, of a model's layout.
struct SequencePages {
  std::int32_t model;
  std::span<const PageId> pages;
};

// Copies all layers of `count` tokens from `first` on from one model's pages to another's, cast to
// their type; the layouts have the same layers, heads and head size.
void cast_copy_kv(PagePool& pool, const SequencePages& source, const SequencePages& target,
                  std::int32_t first, std::int32_t count);

}  // namespace glimprouter
