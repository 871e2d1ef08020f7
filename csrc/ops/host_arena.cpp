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

// Tokens of one head in a page, from a place on.
struct PlaceInPage {
  std::int32_t head;
  std::int64_t token;
};

std::int64_t key_offset(const LayerLayout& layer, const PlaceInPage& at) {
  return layer.key_offset + at.head * layer.key_head_stride + at.token * layer.key_token_stride;
}

std::int64_t value_offset(const LayerLayout& layer, const PlaceInPage& at) {
  return layer.value_offset + at.head * layer.value_head_stride +
         at.token * layer.value_token_stride;
}

void append_layer(std::byte* arena, const LayerLayout& layer,
                  std::span<const std::int64_t> slot_mapping, const HeadsView& keys,
                  const HeadsView& values) {
  const auto tokens = static_cast<std::int64_t>(slot_mapping.size());
  for (std::int64_t token = 0; token < tokens;) {
    const std::int64_t slot = slot_mapping[static_cast<std::size_t>(token)];
    const std::int64_t length = run_length(slot_mapping, token, layer.page_size);
    std::byte* const page = arena + slot / layer.page_size * KvLayout::kPageUnit;
    for (std::int32_t head = 0; head < layer.num_kv_heads; ++head) {
      const PlaceInPage at{head, slot % layer.page_size};
      copy_run({head_address(keys, token, head), token_bytes(keys), keys.dtype,
                page + key_offset(layer, at), layer.key_token_stride, layer.dtype, length,
                layer.head_dim});
      if (values.absent()) continue;
      copy_run({head_address(values, token, head), token_bytes(values), values.dtype,
                page + value_offset(layer, at), layer.value_token_stride, layer.dtype, length,
                layer.value_dim});
    }
    token += length;
  }
}

void gather_layer(const std::byte* arena, std::span<const PageId> pages, const LayerLayout& layer,
                  const HeadsView& keys, const HeadsView& values) {
  for (std::int64_t token = 0; token < keys.tokens; token += layer.page_size) {
    const std::int64_t length = std::min<std::int64_t>(layer.page_size, keys.tokens - token);
    const PageId id = pages[static_cast<std::size_t>(token / layer.page_size)];
    const std::byte* const page = arena + id * KvLayout::kPageUnit;
    for (std::int32_t head = 0; head < layer.num_kv_heads; ++head) {
      copy_run({page + key_offset(layer, {head, 0}), layer.key_token_stride, layer.dtype,
                head_address(keys, token, head), token_bytes(keys), keys.dtype, length,
                layer.head_dim});
      if (values.absent()) continue;
      copy_run({page + value_offset(layer, {head, 0}), layer.value_token_stride, layer.dtype,
                head_address(values, token, head), token_bytes(values), values.dtype, length,
                layer.value_dim});
    }
  }
}

// The same tokens of one layer in two pages.
struct LayerCopy {
  const LayerLayout& from;
  const std::byte* source_page;
  std::int64_t read;  // token of the page
  const LayerLayout& to;
  std::byte* target_page;
  std::int64_t written;
  std::int64_t tokens;
};

void cast_layer(const LayerCopy& copy) {
  const LayerLayout& from = copy.from;
  const LayerLayout& to = copy.to;
  for (std::int32_t head = 0; head < from.num_kv_heads; ++head) {
    const PlaceInPage read{head, copy.read}, written{head, copy.written};
    copy_run({copy.source_page + key_offset(from, read), from.key_token_stride, from.dtype,
              copy.target_page + key_offset(to, written), to.key_token_stride, to.dtype,
              copy.tokens, from.head_dim});
    if (from.latent()) continue;
    copy_run({copy.source_page + value_offset(from, read), from.value_token_stride, from.dtype,
              copy.target_page + value_offset(to, written), to.value_token_stride, to.dtype,
              copy.tokens, from.value_dim});
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
    append_layer(data_, layout.layer(layers.first + i), tables.slot_mapping, layer_of(keys, i),
                 layer_of(values, i));
  }
}

void HostArena::gather(const SequencePages& source, const LayerRange& layers, const HeadsView& keys,
                       const HeadsView& values, DeviceStream /*stream*/) {
  for (std::int32_t i = 0; i < layers.count; ++i) {
    gather_layer(data_, source.pages, source.layout.layer(layers.first + i), layer_of(keys, i),
                 layer_of(values, i));
  }
}

void HostArena::attend(const KvLayout& layout, std::int32_t layer, const PageTables& tables,
                       const AttentionOptions& options, const HeadsView& queries,
                       const HeadsView& out, DeviceStream /*stream*/) {
  attend_on_host({data_, layout.layer(layer), tables, options, queries, out});
}

void HostArena::cast_copy(const SequencePages& source, const SequencePages& target,
                          std::int32_t first, std::int32_t count) {
  const KvLayout& from = source.layout;
  const KvLayout& to = target.layout;
  for (std::int32_t token = first; token < first + count;) {
    const std::int32_t read = token % from.page_size();
    const std::int32_t written = token % to.page_size();
    const std::int32_t length =
        std::min({first + count - token, from.page_size() - read, to.page_size() - written});
    const auto page = [this, token](const SequencePages& side) {
      return address(side.pages[static_cast<std::size_t>(token / side.layout.page_size())]);
    };
    for (std::int32_t layer = 0; layer < from.num_layers(); ++layer) {
      if (from.shape(layer).shares >= 0) continue;
      cast_layer(
          {from.layer(layer), page(source), read, to.layer(layer), page(target), written, length});
    }
    token += length;
  }
}

void HostArena::copy_page(const KvLayout& layout, PageId from, PageId to) {
  std::memcpy(address(to), address(from), static_cast<std::size_t>(layout.page_bytes()));
}

void HostArena::fill_page(const KvLayout& layout, PageId page, int byte) {
  std::memset(address(page), byte, static_cast<std::size_t>(layout.page_bytes()));
}

void HostArena::read_pages(const SequencePages& source, std::byte* target) {
  const auto bytes = static_cast<std::size_t>(source.layout.page_bytes());
  for (const PageId page : source.pages) {
    std::memcpy(target, address(page), bytes);
    target += bytes;
  }
}

void HostArena::write_pages(const SequencePages& target, const std::byte* source) {
  const auto bytes = static_cast<std::size_t>(target.layout.page_bytes());
  for (const PageId page : target.pages) {
    std::memcpy(address(page), source, bytes);
    source += bytes;
  }
}

}  // namespace glimprouter
