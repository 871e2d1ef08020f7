#include "glimprouter/kv_ops.hpp"

#include <cstring>

#include "element.hpp"
#include "heads_view.hpp"

namespace glimprouter {
namespace {

// One head of one token; a plain copy unless the types differ.
void copy_head(const void* source, DataType from, std::byte* target, DataType to,
               std::int32_t head_size) {
  if (from == to) {
    std::memcpy(target, source, static_cast<std::size_t>(head_size * element_size(to)));
    return;
  }
  const RowView row{source, from, head_size};
  for (std::int32_t i = 0; i < head_size; ++i) {
    store_element(target + i * element_size(to), to, element(row, i));
  }
}

std::int64_t layer_offset(const KvLayout& layout, std::int32_t layer, std::int32_t head,
                          std::int64_t place) {
  return layer * layout.layer_stride + head * layout.head_stride + place * layout.token_stride;
}

}  // namespace

void append_kv(PagePool& pool, std::int32_t layer, const RaggedBatch& batch, const HeadsView& keys,
               const HeadsView& values) {
  const KvLayout& layout = pool.layout(batch.model);
  check_layer(layout, layer);
  const auto tokens = static_cast<std::int64_t>(batch.slots.size());
  check_heads(keys, "keys", tokens, layout.num_kv_heads, layout.head_size);
  check_heads(values, "values", tokens, layout.num_kv_heads, layout.head_size);
  for (std::int64_t token = 0; token < tokens; ++token) {
    const std::int64_t slot = batch.slots[static_cast<std::size_t>(token)];
    std::byte* const page = pool.address(static_cast<PageId>(slot / layout.page_tokens));
    for (std::int32_t head = 0; head < layout.num_kv_heads; ++head) {
      std::byte* const target = page + layer_offset(layout, layer, head, slot % layout.page_tokens);
      copy_head(head_address(keys, token, head), keys.dtype, target, layout.dtype,
                layout.head_size);
      copy_head(head_address(values, token, head), values.dtype, target + layout.value_offset,
                layout.dtype, layout.head_size);
    }
  }
}

void gather_kv(const PagePool& pool, std::int32_t model, std::int32_t layer, const PageId* pages,
               const HeadsView& keys, const HeadsView& values) {
  const KvLayout& layout = pool.layout(model);
  check_layer(layout, layer);
  check_heads(keys, "keys", keys.tokens, layout.num_kv_heads, layout.head_size);
  check_heads(values, "values", keys.tokens, layout.num_kv_heads, layout.head_size);
  for (std::int32_t head = 0; head < layout.num_kv_heads; ++head) {
    for (std::int64_t token = 0; token < keys.tokens; ++token) {
      const std::byte* const source = pool.address(pages[token / layout.page_tokens]) +
                                      layer_offset(layout, layer, head, token % layout.page_tokens);
      copy_head(source, layout.dtype, head_address(keys, token, head), keys.dtype,
                layout.head_size);
      copy_head(source + layout.value_offset, layout.dtype, head_address(values, token, head),
                values.dtype, layout.head_size);
    }
  }
}

}  // namespace glimprouter
