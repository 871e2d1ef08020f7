// Append, gather and attention on the pages of a device arena: columns of a batch are uploaded
// once, then every layer is one launch.
#include <algorithm>
#include <atomic>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "device/attention_loads.hpp"
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
  if (view.absent()) return {};
  check_aligned(view, what);
  const std::int64_t size = element_size(view.dtype);
  return {static_cast<std::byte*>(view.data), view.dtype, view.layer_stride * size,
          view.token_stride * size, view.head_stride * size};
}

bool fits_kernel(const LayerLayout& layer) {
  return layer.head_dim <= kMaxDeviceHeadDim && layer.value_dim <= kMaxDeviceHeadDim &&
         layer.page_size <= kMaxDevicePageSize;
}

void check_attention_layout(const KvLayout& layout) {
  bool fits = true;
  for (std::int32_t layer = 0; layer < layout.num_layers(); ++layer) {
    fits = fits && fits_kernel(layout.layer(layer));
  }
  if (fits) return;
  throw std::invalid_argument(
      "attention over pages on a device takes heads of at most " +
      std::to_string(kMaxDeviceHeadDim) + " elements and pages of at most " +
      std::to_string(kMaxDevicePageSize) + " tokens, got " + layout.describe());
}

constexpr const char* kNotStaged =
    "this needs memory or tables that are not on the device yet, and they cannot be brought there "
    "while a graph is captured; call stage_batch() for the batch before the capture (gathering and "
    "copying cannot be captured)";

// What the launch of a pass's attention depends on, whatever the heads and where the columns are.
AttentionArguments attention_of(const DevicePages& pages, const PageTables& tables) {
  AttentionArguments arguments{};
  arguments.pages = pages;
  arguments.table_width = tables.table_width;
  arguments.sequences = static_cast<std::int32_t>(tables.sequences());
  arguments.tokens = static_cast<std::int32_t>(tables.tokens());
  for (std::size_t i = 0; i + 1 < tables.cu_seqlens.size(); ++i) {
    arguments.most_tokens =
        std::max(arguments.most_tokens, tables.cu_seqlens[i + 1] - tables.cu_seqlens[i]);
  }
  for (const std::int32_t length : tables.seq_lens) {
    arguments.most_keys = std::max(arguments.most_keys, length);
  }
  return arguments;
}

}  // namespace

// The columns stay where they are until those of another batch come.
DeviceTables DeviceArena::upload(const PageTables& tables, DeviceStream stream) {
  const std::span<const std::byte> columns[] = {
      std::as_bytes(tables.slot_mapping), std::as_bytes(tables.block_table),
      std::as_bytes(tables.cu_seqlens), std::as_bytes(tables.seq_lens)};
  std::size_t offsets[std::size(columns) + 1] = {};
  for (std::size_t i = 0; i < std::size(columns); ++i) {
    offsets[i + 1] = offsets[i] + column_bytes(columns[i].size());
  }
  if (tables.upload != nullptr && *tables.upload == 0) *tables.upload = next_upload();
  const std::uint64_t wanted = tables.upload != nullptr ? *tables.upload : next_upload();
  if (uploaded_ != wanted) {
    refuse_capture(device_, stream, kNotStaged);
    std::vector<std::byte> packed(offsets[std::size(columns)]);
    for (std::size_t i = 0; i < std::size(columns); ++i) {
      std::ranges::copy(columns[i], packed.begin() + static_cast<std::ptrdiff_t>(offsets[i]));
    }
    uploaded_ = 0;
    tables_.reserve(device_, packed.size(), stream, kNotStaged);
    device_.backend->copy(device_.index, tables_.as<void>(), packed.data(), packed.size(), stream_);
    uploaded_ = wanted;
  }
  const std::byte* const base = tables_.as<const std::byte>();
  const AttentionArguments shape = attention_of({}, tables);
  return {reinterpret_cast<const std::int64_t*>(base + offsets[0]),
          reinterpret_cast<const PageId*>(base + offsets[1]),
          reinterpret_cast<const std::int32_t*>(base + offsets[2]),
          reinterpret_cast<const std::int32_t*>(base + offsets[3]),
          shape.table_width,
          shape.sequences,
          shape.tokens,
          shape.most_tokens,
          shape.most_keys};
}

const PageId* DeviceArena::upload(std::span<const PageId> pages, DeviceStream stream) {
  refuse_capture(device_, stream, kNotStaged);
  page_list_.reserve(device_, pages.size_bytes(), stream, kNotStaged);
  device_.backend->copy(device_.index, page_list_.as<void>(), pages.data(), pages.size_bytes(),
                        stream_);
  return page_list_.as<const PageId>();
}

void DeviceArena::write(void* target, std::span<const std::byte> source, DeviceStream stream) {
  refuse_capture(device_, stream, kNotStaged);
  follow(stream);
  device_.backend->copy(device_.index, target, source.data(), source.size(), stream_);
}

void DeviceArena::append(const KvLayout& layout, const LayerRange& layers, const PageTables& tables,
                         const HeadsView& keys, const HeadsView& values, DeviceStream stream) {
  check_aligned(keys, "keys");
  check_aligned(values, "values");
  follow(stream);
  append(layout, layers, upload(tables, stream), keys, values, stream);
}

void DeviceArena::append(const KvLayout& layout, const LayerRange& layers,
                         const DeviceTables& tables, const HeadsView& keys, const HeadsView& values,
                         DeviceStream stream) {
  const AppendArguments arguments{pages_of(layout, layers),   layers.count,
                                  tables.slot_mapping,        tables.tokens,
                                  device_heads(keys, "keys"), device_heads(values, "values")};
  follow(stream);
  device_.backend->pages->append(device_.index, arguments, stream);
}

void DeviceArena::gather(const SequencePages& source, const LayerRange& layers,
                         const HeadsView& keys, const HeadsView& values, DeviceStream stream) {
  GatherArguments arguments{pages_of(source.layout, layers),
                            layers.count,
                            nullptr,
                            keys.tokens,
                            device_heads(keys, "keys"),
                            device_heads(values, "values")};
  follow(stream);
  arguments.table = upload(source.pages, stream);
  device_.backend->pages->gather(device_.index, arguments, stream);
}

void DeviceArena::cast_copy(const SequencePages& source, const SequencePages& target,
                            std::int32_t first, std::int32_t count) {
  std::vector<PageId> tables(source.pages.begin(), source.pages.end());
  tables.insert(tables.end(), target.pages.begin(), target.pages.end());
  const PageId* const uploaded = upload(tables, stream_);
  const KvLayout& from = source.layout;
  for (std::int32_t begin = 0; begin < from.num_layers();) {
    const LayerRange layers{begin, from.end_of_run(begin) - begin};
    if (from.shape(begin).shares < 0) {
      device_.backend->pages->cast_copy(
          device_.index,
          {layers.count, pages_of(from, layers), uploaded, pages_of(target.layout, layers),
           uploaded + source.pages.size(), first, std::int64_t{first} + count},
          stream_);
    }
    begin += layers.count;
  }
}

DevicePages DeviceArena::pages_of(const KvLayout& layout, const LayerRange& layers) const {
  return {data(), layout.layer(layers.first), layout.layer_stride(layers.first, layers.count)};
}

AttentionWorkspace DeviceArena::workspace(const AttentionArguments& arguments,
                                          DeviceStream stream) {
  const auto floats = static_cast<std::size_t>(attention_scratch(arguments));
  const auto tickets = static_cast<std::size_t>(attention_tickets(arguments));
  partials_.reserve(device_, floats * sizeof(float), stream, kNotStaged);
  tickets_.reserve(device_, tickets * sizeof(std::uint32_t), stream, kNotStaged);
  return attention_workspace(partials_.as<float>(), tickets_.as<std::uint32_t>(), arguments);
}

void DeviceArena::stage(const KvLayout& layout, const PageTables& tables, std::int32_t heads,
                        std::int32_t window, DeviceStream stream) {
  check_attention_layout(layout);
  follow(stream);
  for (std::int32_t layer = 0; layer < layout.num_layers(); ++layer) {
    AttentionArguments arguments = attention_of(pages_of(layout, {layer}), tables);
    arguments.heads = heads;
    arguments.window = window;
    workspace(arguments, stream);
  }
  upload(tables, stream);
}

void DeviceArena::attend(const KvLayout& layout, std::int32_t layer, const PageTables& tables,
                         const AttentionOptions& options, const HeadsView& queries,
                         const HeadsView& out, DeviceStream stream) {
  check_attention_layout(layout);
  check_aligned(queries, "queries");
  check_aligned(out, "out");
  AttentionArguments shape = attention_of(pages_of(layout, {layer}), tables);
  shape.heads = queries.heads;
  shape.window = options.window;
  shape.chunk_size = options.chunk_size;
  follow(stream);
  const AttentionWorkspace memory = workspace(shape, stream);
  attend(layout, layer, upload(tables, stream), options, queries, out, memory, stream);
}

void DeviceArena::attend(const KvLayout& layout, std::int32_t layer, const DeviceTables& tables,
                         const AttentionOptions& options, const HeadsView& queries,
                         const HeadsView& out, const AttentionWorkspace& memory,
                         DeviceStream stream) {
  check_attention_layout(layout);
  AttentionArguments arguments{};
  arguments.pages = pages_of(layout, {layer});
  arguments.block_table = tables.block_table;
  arguments.table_width = tables.table_width;
  arguments.cu_seqlens = tables.cu_seqlens;
  arguments.seq_lens = tables.seq_lens;
  arguments.sequences = tables.sequences;
  arguments.tokens = tables.tokens;
  arguments.most_tokens = tables.most_tokens;
  arguments.most_keys = tables.most_keys;
  arguments.heads = queries.heads;
  arguments.scale = options.scale;
  arguments.window = options.window;
  arguments.softcap = options.softcap;
  arguments.sinks = options.sinks;
  arguments.chunk_size = options.chunk_size;
  arguments.queries = device_heads(queries, "queries");
  arguments.out = device_heads(out, "out");
  arguments.workspace = memory;
  arguments.loads = attention_loads();
  follow(stream);
  device_.backend->pages->attend(device_.index, arguments, stream);
}

}  // namespace glimprouter
