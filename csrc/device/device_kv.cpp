// Append, gather and attention on the pages of a device arena: columns of a batch are uploaded
// once, then every layer is one launch.
#include <algorithm>
#include <atomic>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "device/device_arena.hpp"

namespace glimprouter {
namespace {

constexpr std::size_t kColumnAlignment = 16;

std::size_t column_bytes(std::size_t bytes) {
  return (bytes + kColumnAlignment - 1) / kColumnAlignment * kColumnAlignment;
}

// A batch of the process that has been uploaded somewhere has a number of its own.
std::uint64_t next_upload() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

void check_aligned(const HeadsView& view, const char* what) {
  const auto size = static_cast<std::uintptr_t>(element_size(view.dtype));
  if (reinterpret_cast<std::uintptr_t>(view.data) % size == 0) return;
  throw std::invalid_argument(std::string(what) +
                              " are not aligned to their element size; copy them first");
}

DeviceHeads device_heads(const HeadsView& view, const char* what) {
  check_aligned(view, what);
  const std::int64_t size = element_size(view.dtype);
  return {static_cast<std::byte*>(view.data), view.dtype, view.layer_stride * size,
          view.token_stride * size, view.head_stride * size};
}

void check_attention_layout(const KvLayout& layout) {
  if (layout.head_dim <= kMaxDeviceHeadDim && layout.page_size <= kMaxDevicePageSize) return;
  throw std::invalid_argument(
      "attention over pages on a device takes heads of at most " +
      std::to_string(kMaxDeviceHeadDim) + " elements and pages of at most " +
      std::to_string(kMaxDevicePageSize) + " tokens, got " + layout.describe());
}

// What the launch of a batch's attention depends on, whatever the heads and where the columns are.
AttentionArguments attention_of(const DevicePages& pages, const RaggedBatch& batch) {
  AttentionArguments arguments{};
  arguments.pages = pages;
  arguments.table_width = batch.table_width;
  arguments.sequences = static_cast<std::int32_t>(batch.seq_lens.size());
  for (std::size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
    arguments.most_tokens =
        std::max(arguments.most_tokens, batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]);
  }
  for (const std::int32_t length : batch.seq_lens) {
    arguments.most_keys = std::max(arguments.most_keys, length);
  }
  return arguments;
}

}  // namespace

DeviceTables DeviceArena::upload(const RaggedBatch& batch, DeviceStream stream) {
  const std::span<const std::byte> columns[] = {
      std::as_bytes(std::span(batch.slot_mapping)), std::as_bytes(std::span(batch.block_table)),
      std::as_bytes(std::span(batch.cu_seqlens)), std::as_bytes(std::span(batch.seq_lens))};
  std::size_t offsets[std::size(columns) + 1] = {};
  for (std::size_t i = 0; i < std::size(columns); ++i) {
    offsets[i + 1] = offsets[i] + column_bytes(columns[i].size());
  }
  if (batch.upload == 0) batch.upload = next_upload();
  if (uploaded_ != batch.upload) {
    refuse_capture(stream);
    std::vector<std::byte> packed(offsets[std::size(columns)]);
    for (std::size_t i = 0; i < std::size(columns); ++i) {
      std::ranges::copy(columns[i], packed.begin() + static_cast<std::ptrdiff_t>(offsets[i]));
    }
    uploaded_ = 0;
    reserve(tables_, packed.size(), stream);
    device_.backend->copy(device_.index, tables_.as<void>(), packed.data(), packed.size(), stream_);
    uploaded_ = batch.upload;
  }
  const std::byte* const base = tables_.as<const std::byte>();
  const AttentionArguments shape = attention_of({}, batch);
  return {reinterpret_cast<const std::int64_t*>(base + offsets[0]),
          reinterpret_cast<const PageId*>(base + offsets[1]),
          reinterpret_cast<const std::int32_t*>(base + offsets[2]),
          reinterpret_cast<const std::int32_t*>(base + offsets[3]),
          shape.table_width,
          shape.sequences,
          static_cast<std::int64_t>(batch.slot_mapping.size()),
          shape.most_tokens,
          shape.most_keys};
}

void DeviceArena::write(void* target, std::span<const std::byte> source, DeviceStream stream) {
  refuse_capture(stream);
  follow(stream);
  device_.backend->copy(device_.index, target, source.data(), source.size(), stream_);
}

void DeviceArena::append(const KvLayout& layout, const LayerRange& layers, const RaggedBatch& batch,
                         const HeadsView& keys, const HeadsView& values, DeviceStream stream) {
  check_aligned(keys, "keys");
  check_aligned(values, "values");
  follow(stream);
  append(layout, layers, upload(batch, stream), keys, values, stream);
}

void DeviceArena::append(const KvLayout& layout, const LayerRange& layers,
                         const DeviceTables& tables, const HeadsView& keys, const HeadsView& values,
                         DeviceStream stream) {
  const AppendArguments arguments{{data(), layout},           layers,
                                  tables.slot_mapping,        tables.tokens,
                                  device_heads(keys, "keys"), device_heads(values, "values")};
  follow(stream);
  device_.backend->pages->append(device_.index, arguments, stream);
}

void DeviceArena::gather(const KvLayout& layout, const LayerRange& layers,
                         std::span<const PageId> pages, const HeadsView& keys,
                         const HeadsView& values, DeviceStream stream) {
  GatherArguments arguments{{data(), layout},
                            layers,
                            nullptr,
                            keys.tokens,
                            device_heads(keys, "keys"),
                            device_heads(values, "values")};
  follow(stream);
  arguments.table = upload(pages, stream);
  device_.backend->pages->gather(device_.index, arguments, stream);
}

void DeviceArena::cast_copy(const KvLayout& from, std::span<const PageId> source,
                            const KvLayout& to, std::span<const PageId> target, std::int64_t first,
                            std::int64_t tokens) {
  std::vector<PageId> tables(source.begin(), source.end());
  tables.insert(tables.end(), target.begin(), target.end());
  const PageId* const uploaded = upload(tables, stream_);
  device_.backend->pages->cast_copy(
      device_.index,
      {{data(), from}, uploaded, {data(), to}, uploaded + source.size(), first, first + tokens},
      stream_);
}

AttentionWorkspace DeviceArena::workspace(const AttentionArguments& arguments, std::int64_t tokens,
                                          DeviceStream stream) {
  const auto floats = static_cast<std::size_t>(attention_scratch(arguments, tokens));
  const auto tickets = static_cast<std::size_t>(attention_tickets(arguments));
  reserve(partials_, floats * sizeof(float), stream);
  reserve(tickets_, tickets * sizeof(std::uint32_t), stream);
  return attention_workspace(partials_.as<float>(), tickets_.as<std::uint32_t>(), arguments,
                             tokens);
}

void DeviceArena::stage(const KvLayout& layout, const RaggedBatch& batch, std::int32_t heads,
                        std::int32_t window, DeviceStream stream) {
  check_attention_layout(layout);
  AttentionArguments arguments = attention_of({data(), layout}, batch);
  arguments.heads = heads;
  arguments.window = window;
  follow(stream);
  workspace(arguments, static_cast<std::int64_t>(batch.ids.size()), stream);
  upload(batch, stream);
}

void DeviceArena::attend(const KvLayout& layout, std::int32_t layer, const RaggedBatch& batch,
                         const AttentionOptions& options, const HeadsView& queries,
                         const HeadsView& out, DeviceStream stream) {
  check_attention_layout(layout);
  check_aligned(queries, "queries");
  check_aligned(out, "out");
  AttentionArguments shape = attention_of({data(), layout}, batch);
  shape.heads = queries.heads;
  shape.window = options.window;
  follow(stream);
  const AttentionWorkspace memory = workspace(shape, queries.tokens, stream);
  attend(layout, layer, upload(batch, stream), options, queries, out, memory, stream);
}

void DeviceArena::attend(const KvLayout& layout, std::int32_t layer, const DeviceTables& tables,
                         const AttentionOptions& options, const HeadsView& queries,
                         const HeadsView& out, const AttentionWorkspace& memory,
                         DeviceStream stream) {
  check_attention_layout(layout);
  AttentionArguments arguments{};
  arguments.pages = {data(), layout};
  arguments.layer = layer;
  arguments.block_table = tables.block_table;
  arguments.table_width = tables.table_width;
  arguments.cu_seqlens = tables.cu_seqlens;
  arguments.seq_lens = tables.seq_lens;
  arguments.sequences = tables.sequences;
  arguments.most_tokens = tables.most_tokens;
  arguments.most_keys = tables.most_keys;
  arguments.heads = queries.heads;
  arguments.scale = options.scale;
  arguments.window = options.window;
  arguments.softcap = options.softcap;
  arguments.queries = device_heads(queries, "queries");
  arguments.out = device_heads(out, "out");
  arguments.workspace = memory;
  follow(stream);
  device_.backend->pages->attend(device_.index, arguments, stream);
}

}  // namespace glimprouter
