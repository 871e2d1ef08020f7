#include "ops/kv_layers.hpp"

#include <stdexcept>
#include <string>

#include "device/device_arena.hpp"
#include "ops/heads_view.hpp"

namespace glimprouter {
namespace {

HeadsView layer_of(HeadsView view, std::int32_t layer) {
  view.data = static_cast<std::byte*>(view.data) +
              layer * view.layer_stride * static_cast<std::int64_t>(element_size(view.dtype));
  return view;
}

void check_both(const KvLayout& layout, const HeadsView& keys, const HeadsView& values,
                std::int64_t tokens) {
  check_heads(keys, "keys", tokens, layout.num_kv_heads, layout.head_dim);
  check_heads(values, "values", tokens, layout.num_kv_heads, layout.head_dim);
}

}  // namespace

void append_kv_layers(PagePool& pool, const RaggedBatch& batch, const HeadsView& keys,
                      const HeadsView& values, DeviceStream stream) {
  const KvLayout& layout = pool.layout(batch.model);
  check_both(layout, keys, values, static_cast<std::int64_t>(batch.slot_mapping.size()));
  if (DeviceArena* const arena = pool.device_arena()) {
    arena->append(layout, {0, layout.num_layers}, batch, keys, values, stream);
    return;
  }
  for (std::int32_t layer = 0; layer < layout.num_layers; ++layer) {
    append_kv(pool, layer, batch, layer_of(keys, layer), layer_of(values, layer));
  }
}

void gather_kv_layers(const PagePool& pool, std::int32_t model, const PageId* pages,
                      const HeadsView& keys, const HeadsView& values, DeviceStream stream) {
  const KvLayout& layout = pool.layout(model);
  check_both(layout, keys, values, keys.tokens);
  if (DeviceArena* const arena = pool.device_arena()) {
    const auto count = (keys.tokens + layout.page_size - 1) / layout.page_size;
    arena->gather(layout, {0, layout.num_layers}, {pages, static_cast<std::size_t>(count)}, keys,
                  values, stream);
    return;
  }
  for (std::int32_t layer = 0; layer < layout.num_layers; ++layer) {
    gather_kv(pool, model, layer, pages, layer_of(keys, layer), layer_of(values, layer));
  }
}

void stage_batch(const PagePool& pool, const RaggedBatch& batch, std::int32_t heads,
                 std::int32_t window, DeviceStream stream) {
  const KvLayout& layout = pool.layout(batch.model);
  if (heads < 1 || heads % layout.num_kv_heads != 0) {
    throw std::invalid_argument("heads must be a multiple of the " +
                                std::to_string(layout.num_kv_heads) + " KV heads, got " +
                                std::to_string(heads));
  }
  if (window < 0) throw std::invalid_argument("window must be >= 0 (0: off)");
  if (DeviceArena* const arena = pool.device_arena()) {
    arena->stage(layout, batch, heads, window, stream);
  }
}

}  // namespace glimprouter
