#include "glimprouter/kv_ops.hpp"

#include <algorithm>
#include <span>
#include <stdexcept>

#include "device/device_arena.hpp"
#include "ops/cast.hpp"
#include "ops/heads_view.hpp"

namespace glimprouter {
namespace {

// Tokens of one head that lie side by side in a page: one copy or cast where they also do outside
// of it, else one a token.
struct Run {
  const std::byte* source;
  std::int64_t source_stride;  // bytes
  DataType source_type;
  std::byte* target;
  std::int64_t target_stride;  // bytes
  DataType target_type;
  std::int64_t tokens;
  std::int32_t head_dim;
};

void copy_run(const Run& run) {
  const bool dense = run.source_stride == run.head_dim * element_size(run.source_type) &&
                     run.target_stride == run.head_dim * element_size(run.target_type);
  const std::int64_t together = dense ? run.tokens : 1;
  for (std::int64_t token = 0; token < run.tokens; token += together) {
    cast_elements(run.source + token * run.source_stride, run.source_type,
                  run.target + token * run.target_stride, run.target_type, together * run.head_dim);
  }
}

std::int64_t token_bytes(const HeadsView& view) {
  return view.token_stride * element_size(view.dtype);
}

// How many tokens from `first` on have slot_mapping side by side in one page.
std::int64_t run_length(std::span<const std::int64_t> slot_mapping, std::int64_t first,
                        std::int32_t page_size) {
  const auto total = static_cast<std::int64_t>(slot_mapping.size());
  const std::int64_t slot = slot_mapping[static_cast<std::size_t>(first)];
  const std::int64_t most = std::min(total - first, page_size - slot % page_size);
  std::int64_t length = 1;
  while (length < most && slot_mapping[static_cast<std::size_t>(first + length)] == slot + length) {
    ++length;
  }
  return length;
}

std::int64_t layer_offset(const KvLayout& layout, std::int32_t layer, std::int32_t head,
                          std::int64_t place) {
  return layer * layout.layer_stride + head * layout.head_stride + place * layout.token_stride;
}

}  // namespace

void append_kv(PagePool& pool, std::int32_t layer, const RaggedBatch& batch, const HeadsView& keys,
               const HeadsView& values, DeviceStream stream) {
  const KvLayout& layout = pool.layout(batch.model);
  if (DeviceArena* const arena = pool.device_arena()) {
    check_layer(layout, layer);
    const auto tokens = static_cast<std::int64_t>(batch.slot_mapping.size());
    check_heads(keys, "keys", tokens, layout.num_kv_heads, layout.head_dim);
    check_heads(values, "values", tokens, layout.num_kv_heads, layout.head_dim);
    arena->append(layout, {layer, 1}, batch, keys, values, stream);
    return;
  }
  append_kv({pool.address(kNullPage), layout}, layer, tables_of(batch), keys, values);
}

void append_kv(const PagedMemory& pages, std::int32_t layer, const PageTables& tables,
               const HeadsView& keys, const HeadsView& values) {
  const KvLayout& layout = pages.layout;
  check_layer(layout, layer);
  const std::int64_t tokens = tables.tokens();
  check_heads(keys, "keys", tokens, layout.num_kv_heads, layout.head_dim);
  check_heads(values, "values", tokens, layout.num_kv_heads, layout.head_dim);
  for (std::int64_t token = 0; token < tokens;) {
    const std::int64_t slot = tables.slot_mapping[static_cast<std::size_t>(token)];
    const std::int64_t length = run_length(tables.slot_mapping, token, layout.page_size);
    std::byte* const page = pages.arena + slot / layout.page_size * KvLayout::kPageUnit;
    for (std::int32_t head = 0; head < layout.num_kv_heads; ++head) {
      std::byte* const target = page + layer_offset(layout, layer, head, slot % layout.page_size);
      copy_run({head_address(keys, token, head), token_bytes(keys), keys.dtype, target,
                layout.token_stride, layout.dtype, length, layout.head_dim});
      copy_run({head_address(values, token, head), token_bytes(values), values.dtype,
                target + layout.value_offset, layout.token_stride, layout.dtype, length,
                layout.head_dim});
    }
    token += length;
  }
}

void gather_kv(const PagePool& pool, std::int32_t model, std::int32_t layer, const PageId* pages,
               const HeadsView& keys, const HeadsView& values, DeviceStream stream) {
  const KvLayout& layout = pool.layout(model);
  check_layer(layout, layer);
  check_heads(keys, "keys", keys.tokens, layout.num_kv_heads, layout.head_dim);
  check_heads(values, "values", keys.tokens, layout.num_kv_heads, layout.head_dim);
  if (DeviceArena* const arena = pool.device_arena()) {
    const auto count = (keys.tokens + layout.page_size - 1) / layout.page_size;
    arena->gather(layout, {layer, 1}, {pages, static_cast<std::size_t>(count)}, keys, values,
                  stream);
    return;
  }
  for (std::int64_t token = 0; token < keys.tokens; token += layout.page_size) {
    const std::int64_t length = std::min<std::int64_t>(layout.page_size, keys.tokens - token);
    const std::byte* const page = pool.address(pages[token / layout.page_size]);
    for (std::int32_t head = 0; head < layout.num_kv_heads; ++head) {
      const std::byte* const source = page + layer_offset(layout, layer, head, 0);
      copy_run({source, layout.token_stride, layout.dtype, head_address(keys, token, head),
                token_bytes(keys), keys.dtype, length, layout.head_dim});
      copy_run({source + layout.value_offset, layout.token_stride, layout.dtype,
                head_address(values, token, head), token_bytes(values), values.dtype, length,
                layout.head_dim});
    }
  }
}

void cast_copy_kv(PagePool& pool, const SequencePages& source, const SequencePages& target,
                  std::int32_t first, std::int32_t count) {
  const KvLayout& from = pool.layout(source.model);
  const KvLayout& to = pool.layout(target.model);
  if (DeviceArena* const arena = pool.device_arena()) {
    arena->cast_copy(from, source.pages, to, target.pages, first, count);
    return;
  }
  for (std::int32_t token = first; token < first + count;) {
    const std::int32_t read = token % from.page_size;
    const std::int32_t written = token % to.page_size;
    const std::int32_t length =
        std::min({first + count - token, from.page_size - read, to.page_size - written});
    const auto page = [&pool, token](const SequencePages& side, std::int32_t page_size) {
      return pool.address(side.pages[static_cast<std::size_t>(token / page_size)]);
    };
    const std::byte* const source_page = page(source, from.page_size);
    std::byte* const target_page = page(target, to.page_size);
    for (std::int32_t layer = 0; layer < from.num_layers; ++layer) {
      for (std::int32_t head = 0; head < from.num_kv_heads; ++head) {
        const std::byte* const keys = source_page + layer_offset(from, layer, head, read);
        std::byte* const out = target_page + layer_offset(to, layer, head, written);
        copy_run({keys, from.token_stride, from.dtype, out, to.token_stride, to.dtype, length,
                  from.head_dim});
        copy_run({keys + from.value_offset, from.token_stride, from.dtype, out + to.value_offset,
                  to.token_stride, to.dtype, length, from.head_dim});
      }
    }
    token += length;
  }
}

}  // namespace glimprouter
