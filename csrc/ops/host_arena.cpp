#include "ops/host_arena.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <span>

#include "ops/cast.hpp"
#include "ops/head_address.hpp"
#include "ops/paged_attention.hpp"

namespace glimprouter {
namespace {

constexpr std::int32_t kDlpackCpu = 1;

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

HeadsView layer_of(HeadsView view, std::int32_t layer) {
  view.data =
      static_cast<std::byte*>(view.data) + layer * view.layer_stride * element_size(view.dtype);
  return view;
}

// How many tokens from `first` on have slots side by side in one page.
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

void append_layer(std::byte* arena, const KvLayout& layout, std::int32_t layer,
                  std::span<const std::int64_t> slot_mapping, const HeadsView& keys,
                  const HeadsView& values) {
  const auto tokens = static_cast<std::int64_t>(slot_mapping.size());
  for (std::int64_t token = 0; token < tokens;) {
    const std::int64_t slot = slot_mapping[static_cast<std::size_t>(token)];
    const std::int64_t length = run_length(slot_mapping, token, layout.page_size);
    std::byte* const page = arena + slot / layout.page_size * KvLayout::kPageUnit;
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

void gather_layer(const std::byte* arena, const SequencePages& pages, std::int32_t layer,
                  const HeadsView& keys, const HeadsView& values) {
  const KvLayout& layout = pages.layout;
  for (std::int64_t token = 0; token < keys.tokens; token += layout.page_size) {
    const std::int64_t length = std::min<std::int64_t>(layout.page_size, keys.tokens - token);
    const PageId id = pages.pages[static_cast<std::size_t>(token / layout.page_size)];
    const std::byte* const page = arena + id * KvLayout::kPageUnit;
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

}  // namespace

ArenaMemory::ArenaMemory(std::size_t bytes) : bytes_(bytes) {
  void* const mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<std::byte*>(mapped);
#if defined(MADV_HUGEPAGE)
  // One layer and head of a page is a few kilobytes, far from that of the next page: with small
  // pages of the system, attention would miss its translation for every one of them.
  madvise(mapped, bytes, MADV_HUGEPAGE);
#endif
}

ArenaMemory::~ArenaMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

ArenaFactory host_arena() {
  return [](std::size_t bytes) { return std::make_unique<HostArena>(bytes); };
}

bool HostArena::reaches(std::int32_t device_type, std::int32_t /*device_id*/) const {
  return device_type == kDlpackCpu;
}

void HostArena::append(const KvLayout& layout, const LayerRange& layers, const PageTables& tables,
                       const HeadsView& keys, const HeadsView& values, DeviceStream /*stream*/) {
  for (std::int32_t i = 0; i < layers.count; ++i) {
    append_layer(data_, layout, layers.first + i, tables.slot_mapping, layer_of(keys, i),
                 layer_of(values, i));
  }
}

void HostArena::gather(const SequencePages& source, const LayerRange& layers, const HeadsView& keys,
                       const HeadsView& values, DeviceStream /*stream*/) {
  for (std::int32_t i = 0; i < layers.count; ++i) {
    gather_layer(data_, source, layers.first + i, layer_of(keys, i), layer_of(values, i));
  }
}

void HostArena::attend(const KvLayout& layout, std::int32_t layer, const PageTables& tables,
                       const AttentionOptions& options, const HeadsView& queries,
                       const HeadsView& out, DeviceStream /*stream*/) {
  attend_on_host({data_, layout, layer, tables, options, queries, out});
}

void HostArena::cast_copy(const SequencePages& source, const SequencePages& target,
                          std::int32_t first, std::int32_t count) {
  const KvLayout& from = source.layout;
  const KvLayout& to = target.layout;
  for (std::int32_t token = first; token < first + count;) {
    const std::int32_t read = token % from.page_size;
    const std::int32_t written = token % to.page_size;
    const std::int32_t length =
        std::min({first + count - token, from.page_size - read, to.page_size - written});
    const auto page = [this, token](const SequencePages& side) {
      return address(side.pages[static_cast<std::size_t>(token / side.layout.page_size)]);
    };
    const std::byte* const source_page = page(source);
    std::byte* const target_page = page(target);
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

void HostArena::copy_page(const KvLayout& layout, PageId from, PageId to) {
  std::memcpy(address(to), address(from), static_cast<std::size_t>(layout.page_bytes));
}

void HostArena::fill_page(const KvLayout& layout, PageId page, int byte) {
  std::memset(address(page), byte, static_cast<std::size_t>(layout.page_bytes));
}

void HostArena::read_pages(const SequencePages& source, std::byte* target) {
  const auto bytes = static_cast<std::size_t>(source.layout.page_bytes);
  for (const PageId page : source.pages) {
    std::memcpy(target, address(page), bytes);
    target += bytes;
  }
}

void HostArena::write_pages(const SequencePages& target, const std::byte* source) {
  const auto bytes = static_cast<std::size_t>(target.layout.page_bytes);
  for (const PageId page : target.pages) {
    std::memcpy(address(page), source, bytes);
    source += bytes;
  }
}

}  // namespace glimprouter
