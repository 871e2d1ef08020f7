// Append, gather and attention on the pages of a device arena: columns of a batch are uploaded
// once, then every layer is one launch.
#include <algorithm>
#include <atomic>
#include <iterator>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "glimprouter/device_arena.hpp"

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

DeviceHeads device_heads(const HeadsView& view, const char* what) {
  const std::int64_t size = element_size(view.dtype);
  if (reinterpret_cast<std::uintptr_t>(view.data) % static_cast<std::uintptr_t>(size) != 0) {
    throw std::invalid_argument(std::string(what) +
                                " are not aligned to their element size; copy them first");
  }
  return {static_cast<std::byte*>(view.data), view.dtype, 0, view.token_stride * size,
          view.head_stride * size};
}

void check_attention_layout(const KvLayout& layout) {
  if (layout.head_size <= kMaxDeviceHeadSize && layout.page_tokens <= kMaxDevicePageTokens) return;
  throw std::invalid_argument(
      "attention over pages on a device takes heads of at most " +
      std::to_string(kMaxDeviceHeadSize) + " elements and pages of at most " +
      std::to_string(kMaxDevicePageTokens) + " tokens, got " + layout.describe());
}

std::int32_t most_new_tokens(const RaggedBatch& batch) {
  std::int32_t most = 0;
  for (std::size_t i = 0; i + 1 < batch.cu_seqlens.size(); ++i) {
    most = std::max(most, batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]);
  }
  return most;
}

}  // namespace

DeviceArena::Tables DeviceArena::upload(const RaggedBatch& batch) {
  const std::span<const std::byte> columns[] = {
      std::as_bytes(std::span(batch.slots)), std::as_bytes(std::span(batch.block_table)),
      std::as_bytes(std::span(batch.cu_seqlens)), std::as_bytes(std::span(batch.key_lengths))};
  std::size_t offsets[std::size(columns) + 1] = {};
  for (std::size_t i = 0; i < std::size(columns); ++i) {
    offsets[i + 1] = offsets[i] + column_bytes(columns[i].size());
  }
  if (batch.upload == 0) batch.upload = next_upload();
  if (uploaded_ != batch.upload) {
    std::vector<std::byte> packed(offsets[std::size(columns)]);
    for (std::size_t i = 0; i < std::size(columns); ++i) {
      std::ranges::copy(columns[i], packed.begin() + static_cast<std::ptrdiff_t>(offsets[i]));
    }
    uploaded_ = 0;
    reserve(tables_, packed.size());
    device_.backend->copy(device_.index, tables_.as<void>(), packed.data(), packed.size(), stream_);
    uploaded_ = batch.upload;
  }
  const std::byte* const base = tables_.as<const std::byte>();
  return {reinterpret_cast<const std::int64_t*>(base + offsets[0]),
          reinterpret_cast<const PageId*>(base + offsets[1]),
          reinterpret_cast<const std::int32_t*>(base + offsets[2]),
          reinterpret_cast<const std::int32_t*>(base + offsets[3])};
}

void DeviceArena::append(const KvLayout& layout, std::int32_t layer, const RaggedBatch& batch,
                         const HeadsView& keys, const HeadsView& values, DeviceStream stream) {
  AppendArguments arguments{{data(), layout},
                            {layer, 1},
                            nullptr,
                            static_cast<std::int64_t>(batch.slots.size()),
                            device_heads(keys, "keys"),
                            device_heads(values, "values")};
  follow(stream);
  arguments.slots = upload(batch).slots;
  device_.backend->append(device_.index, arguments, stream);
}

void DeviceArena::gather(const KvLayout& layout, std::int32_t layer, std::span<const PageId> pages,
                         const HeadsView& keys, const HeadsView& values, DeviceStream stream) {
  GatherArguments arguments{{data(), layout},
                            {layer, 1},
                            nullptr,
                            keys.tokens,
                            device_heads(keys, "keys"),
                            device_heads(values, "values")};
  follow(stream);
  arguments.table = upload(pages);
  device_.backend->gather(device_.index, arguments, stream);
}

void DeviceArena::attend(const KvLayout& layout, std::int32_t layer, const RaggedBatch& batch,
                         const AttentionOptions& options, const HeadsView& queries,
                         const HeadsView& out, DeviceStream stream) {
  check_attention_layout(layout);
  AttentionArguments arguments{};
  arguments.pages = {data(), layout};
  arguments.layer = layer;
  arguments.table_width = batch.table_width;
  arguments.sequences = static_cast<std::int32_t>(batch.key_lengths.size());
  arguments.most_tokens = most_new_tokens(batch);
  for (const std::int32_t length : batch.key_lengths) {
    arguments.most_keys = std::max(arguments.most_keys, length);
  }
  arguments.heads = queries.heads;
  arguments.scale = options.scale;
  arguments.window = options.window;
  arguments.softcap = options.softcap;
  arguments.queries = device_heads(queries, "queries");
  arguments.out = device_heads(out, "out");
  follow(stream);
  const Tables tables = upload(batch);
  arguments.block_table = tables.block_table;
  arguments.cu_seqlens = tables.cu_seqlens;
  arguments.key_lengths = tables.key_lengths;
  const std::size_t rows = static_cast<std::size_t>(queries.tokens) *
                           static_cast<std::size_t>(queries.heads) *
                           static_cast<std::size_t>(attention_chunks(arguments));
  const std::size_t out_floats = rows * static_cast<std::size_t>(layout.head_size);
  reserve(partials_, (out_floats + 2 * rows) * sizeof(float));
  reserve(tickets_, static_cast<std::size_t>(attention_tickets(arguments)) * sizeof(std::uint32_t));
  arguments.workspace = {partials_.as<float>(), partials_.as<float>() + out_floats,
                         tickets_.as<std::uint32_t>()};
  device_.backend->attend(device_.index, arguments, stream);
}

}  // namespace glimprouter
