// The operations on pages outside of a forward pass: every layer at once, in one launch where the
// pages are on a device. Keys and values are [layers, tokens, KV heads, head size]
// (HeadsView::layer_stride). Checks and streams as in kv_ops.hpp.
#pragma once

#include "glimprouter/kv_ops.hpp"

namespace glimprouter {

// Writes keys and values of the batch's tokens into all layers of their pages.
void append_kv_layers(PagePool& pool, const RaggedBatch& batch, const HeadsView& keys,
                      const HeadsView& values, DeviceStream stream = nullptr);

// Copies the first `tokens` keys and values of one sequence out of all layers of its pages.
void gather_kv_layers(const PagePool& pool, std::int32_t model, const PageId* pages,
                      const HeadsView& keys, const HeadsView& values,
                      DeviceStream stream = nullptr);

// Before a graph is captured: brings the batch's tables to the device and takes the memory that
// attention with so many query heads needs, so that the calls for this batch only launch kernels.
// Nothing where the pages are in host memory.
void stage_batch(const PagePool& pool, const RaggedBatch& batch, std::int32_t heads,
                 std::int32_t window = 0, DeviceStream stream = nullptr);

}  // namespace glimprouter
