// The checks in front of an arena: what an operation asks of its arguments is the same wherever the
// pages are.
#include "glimprouter/kv_ops.hpp"

#include <stdexcept>
#include <string>

#include "ops/kv_checks.hpp"

namespace glimprouter {

void append_kv(PagePool& pool, const LayerRange& layers, const RaggedBatch& batch,
               const HeadsView& keys, const HeadsView& values, DeviceStream stream) {
  append_kv({pool.arena(), pool.layout(batch.model)}, layers, tables_of(batch), keys, values,
            stream);
}

void append_kv(const PagedMemory& pages, const LayerRange& layers, const PageTables& tables,
               const HeadsView& keys, const HeadsView& values, DeviceStream stream) {
  check_written(pages.layout, layers, tables.tokens(), keys, values);
  pages.arena.append(pages.layout, layers, tables, keys, values, stream);
}

void paged_attention(const PagePool& pool, std::int32_t layer, const RaggedBatch& batch,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out, DeviceStream stream) {
  paged_attention({pool.arena(), pool.layout(batch.model)}, layer, tables_of(batch), options,
                  queries, out, stream);
}

void paged_attention(const PagedMemory& pages, std::int32_t layer, const PageTables& tables,
                     const AttentionOptions& options, const HeadsView& queries,
                     const HeadsView& out, DeviceStream stream) {
  check_attention(pages.layout, layer, tables.tokens(), options, queries, out);
  pages.arena.attend(pages.layout, layer, tables, options, queries, out, stream);
}

void gather_kv(const PagePool& pool, std::int32_t model, const LayerRange& layers,
               std::span<const PageId> pages, const HeadsView& keys, const HeadsView& values,
               DeviceStream stream) {
  if (model < 0 || model >= pool.num_models()) {
    throw std::invalid_argument("no such model: the pool has " + std::to_string(pool.num_models()) +
                                ", got " + std::to_string(model));
  }
  const KvLayout& layout = pool.layout(model);
  check_keys_and_values(layout, layers, keys.tokens, keys, values);
  const auto needed =
      static_cast<std::size_t>((keys.tokens + layout.page_size() - 1) / layout.page_size());
  if (pages.size() < needed) {
    throw std::invalid_argument(std::to_string(keys.tokens) + " tokens lie in " +
                                std::to_string(needed) + " pages, got " +
                                std::to_string(pages.size()));
  }
  pool.arena().gather({layout, pages.first(needed)}, layers, keys, values, stream);
}

void stage_batch(const PagePool& pool, const RaggedBatch& batch, std::int32_t heads,
                 std::int32_t window, DeviceStream stream) {
  const KvLayout& layout = pool.layout(batch.model);
  check_query_heads(layout, heads);
  if (window < 0) throw std::invalid_argument("window must be >= 0 (0: off)");
  pool.arena().stage(layout, tables_of(batch), heads, window, stream);
}

}  // namespace glimprouter
