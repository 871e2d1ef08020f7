// What a forward pass does with pages: write new keys and values, attend, gather. Where the pool's
// pages are on a device, so is every tensor, and the work is enqueued on `stream` (null: the
// default stream), after all earlier work on the pool. Every function checks its arguments before
// it touches anything and throws std::invalid_argument.
#pragma once

#include <cstdint>
#include <span>

#include "glimprouter/page_pool.hpp"
#include "glimprouter/types/device_stream.hpp"
#include "glimprouter/types/kv_views.hpp"
#include "glimprouter/types/page_tables.hpp"
#include "glimprouter/types/ragged_batch.hpp"

namespace glimprouter {

// Pages of one layout, wherever their arena comes from. Non-owning.
struct PagedMemory {
  Arena& arena;
  const KvLayout& layout;
};

// Writes keys and values [layers, T, KV heads, head size] of the batch's tokens into those layers
// of their pages, cast to the pages' type. One layer: `{layer}`; everything: all_layers(layout),
// where all are alike. A layer that shares another's keys is refused; a latent one has no values
// (`{}`).
void append_kv(PagePool& pool, const LayerRange& layers, const RaggedBatch& batch,
               const HeadsView& keys, const HeadsView& values, DeviceStream stream = nullptr);
// The same for tables that check_tables() has accepted.
void append_kv(const PagedMemory& pages, const LayerRange& layers, const PageTables& tables,
               const HeadsView& keys, const HeadsView& values, DeviceStream stream = nullptr);

// Causal attention of the batch's tokens [T, heads, head size] over the pages of their sequences,
// which hold the batch's own keys by now. KV head h serves the heads [h G, (h + 1) G).
// Pages are read in place, whatever the number of tokens; bitwise the same on every instruction
// set, for any batch, and however a prefill is cut. The library's threads share the work. Where a
// value has another size than a key, so has out.
void paged_attention(const PagePool& pool, std::int32_t layer, const RaggedBatch& batch,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out, DeviceStream stream = nullptr);
// The same for tables that check_tables() has accepted.
void paged_attention(const PagedMemory& pages, std::int32_t layer, const PageTables& tables,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out, DeviceStream stream = nullptr);

// Copies the first `tokens` keys and values [layers, tokens, KV heads, head size] of one sequence
// out of those layers of its pages, cast to the type of the targets. pages: of the model's layout,
// at least ceil(tokens / page_size).
void gather_kv(const PagePool& pool, std::int32_t model, const LayerRange& layers,
               std::span<const PageId> pages, const HeadsView& keys, const HeadsView& values,
               DeviceStream stream = nullptr);

// Before a graph is captured: brings the batch's tables to the device and takes the memory that
// attention with so many query heads needs, so that the calls for this batch only launch kernels.
// Nothing where the pages are in host memory.
void stage_batch(const PagePool& pool, const RaggedBatch& batch, std::int32_t heads,
                 std::int32_t window = 0, DeviceStream stream = nullptr);

}  // namespace glimprouter
