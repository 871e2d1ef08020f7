#include "device/decode_tables.hpp"

#include <algorithm>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "ops/kv_checks.hpp"

namespace glimprouter {
namespace {

// Of a column of 64 bits (ids, positions, slot_mapping): each begins at a multiple of 16 bytes,
// which vectorised readers of the first two ask for.
std::int64_t wide_words(const DecodeRoom& room) { return (room.sequences + 1) / 2 * 2; }

// Where the columns of 32 bits begin, counted from the first of them.
struct NarrowColumns {
  explicit NarrowColumns(const DecodeRoom& room)
      : cu_seqlens(std::int64_t{room.sequences} * room.pages),
        seq_lens(cu_seqlens + room.sequences + 1),
        end(seq_lens + room.sequences) {}

  std::int64_t cu_seqlens;  // behind the block table
  std::int64_t seq_lens;
  std::int64_t end;
};

// Of the columns that fill() writes.
std::int64_t column_words(const DecodeRoom& room) {
  return 3 * wide_words(room) + (NarrowColumns(room).end + 1) / 2;
}

AttentionArguments attention_shape(const PagePool& pool, const DecodeRoom& room,
                                   std::int32_t layer) {
  AttentionArguments arguments{};
  arguments.pages.layer = pool.layout(room.model).layer(layer);
  arguments.sequences = room.sequences;
  arguments.heads = room.heads;
  arguments.most_tokens = 1;
  arguments.most_keys = room.pages * arguments.pages.layer.page_size;
  return arguments;
}

// What the layer that needs most needs.
template <typename Need>
std::int64_t most_of_layers(const PagePool& pool, const DecodeRoom& room, const Need& need) {
  std::int64_t most = 0;
  for (std::int32_t layer = 0; layer < pool.layout(room.model).num_layers(); ++layer) {
    most = std::max<std::int64_t>(most, need(attention_shape(pool, room, layer)));
  }
  return most;
}

std::string counted(std::int64_t count, const char* what) {
  return std::to_string(count) + " " + what;
}

DeviceArena& arena_of(const PagePool& pool) {
  auto* const arena = dynamic_cast<DeviceArena*>(&pool.arena());
  if (arena != nullptr) return *arena;
  throw std::invalid_argument("decode tables are for pages on a device; this pool is on the CPU");
}

void check_room(const PagePool& pool, const DecodeRoom& room) {
  arena_of(pool);
  if (room.model < 0 || room.model >= pool.num_models()) {
    throw std::invalid_argument("the pool has " + counted(pool.num_models(), "models") +
                                ", there is no " + std::to_string(room.model));
  }
  const KvLayout& layout = pool.layout(room.model);
  if (room.sequences < 1 || room.pages < 1 || room.pages > INT32_MAX / layout.page_size()) {
    throw std::invalid_argument("decode tables need room for some sequences and pages, got " +
                                counted(room.sequences, "sequences") + " of " +
                                counted(room.pages, "pages"));
  }
  check_query_heads(layout, room.heads);
}

}  // namespace

std::int64_t DecodeTables::words(const PagePool& pool, const DecodeRoom& room) {
  check_room(pool, room);
  const std::int64_t tickets = most_of_layers(pool, room, attention_tickets);
  return column_words(room) + (tickets + 1) / 2;
}

DecodeTables::DecodeTables(std::shared_ptr<PagePool> pool, const DecodeRoom& room,
                           std::int64_t* memory)
    : pool_(std::move(pool)), arena_(arena_of(*pool_)), room_(room), memory_(memory) {
  check_room(*pool_, room_);
  const std::int64_t wide = wide_words(room_);
  const auto* const narrow = reinterpret_cast<const std::int32_t*>(memory_ + 3 * wide);
  const NarrowColumns columns(room_);
  tables_.slot_mapping = memory_ + 2 * wide;
  tables_.block_table = narrow;
  tables_.cu_seqlens = narrow + columns.cu_seqlens;
  tables_.seq_lens = narrow + columns.seq_lens;
  tables_.table_width = room_.pages;
  tables_.sequences = room_.sequences;
  tables_.tokens = room_.sequences;
  tables_.most_tokens = 1;
  tables_.most_keys = room_.pages * pool_->layout(room_.model).page_size();
  tickets_ = reinterpret_cast<std::uint32_t*>(memory_ + column_words(room_));
  packed_.resize(static_cast<std::size_t>(column_words(room_)));
}

std::int64_t DecodeTables::scratch_size() const {
  return most_of_layers(*pool_, room_, [this](const AttentionArguments& shape) {
    return attention_scratch(shape, room_.sequences);
  });
}

void DecodeTables::fill(const RaggedBatch& batch, DeviceStream stream) {
  const std::size_t count = batch.sequences.size();
  if (batch.model != room_.model || batch.ids.size() != count ||
      count > static_cast<std::size_t>(room_.sequences) || batch.table_width > room_.pages) {
    throw std::invalid_argument("these tables take passes of model " + std::to_string(room_.model) +
                                " over at most " + counted(room_.sequences, "sequences") +
                                " with one new token and at most " + counted(room_.pages, "pages") +
                                " each; the batch is of model " + std::to_string(batch.model) +
                                " and has " +
                                counted(static_cast<std::int64_t>(count), "sequences") + ", " +
                                counted(static_cast<std::int64_t>(batch.ids.size()), "tokens") +
                                " and " + counted(batch.table_width, "pages"));
  }
  const auto words = static_cast<std::size_t>(wide_words(room_));
  const std::span<std::int64_t> wide(packed_);
  std::ranges::fill(wide.first(2 * words), 0);
  std::ranges::fill(wide.subspan(2 * words, words), -1);
  std::ranges::copy(batch.ids, wide.begin());
  std::ranges::copy(batch.positions, wide.subspan(words).begin());
  std::ranges::copy(batch.slot_mapping, wide.subspan(2 * words).begin());
  const NarrowColumns columns(room_);
  auto* const narrow = reinterpret_cast<std::int32_t*>(packed_.data() + 3 * words);
  std::fill(narrow, narrow + columns.cu_seqlens, kNullPage);
  for (std::size_t i = 0; i < count; ++i) {
    const auto width = static_cast<std::size_t>(batch.table_width);
    std::copy_n(batch.block_table.data() + i * width, width,
                narrow + i * static_cast<std::size_t>(room_.pages));
  }
  for (std::int32_t i = 0; i <= room_.sequences; ++i) narrow[columns.cu_seqlens + i] = i;
  std::fill(narrow + columns.seq_lens, narrow + columns.end, 1);
  std::ranges::copy(batch.seq_lens, narrow + columns.seq_lens);
  arena_.write(memory_, std::as_bytes(std::span(packed_)), stream);
}

bool DecodeTables::shares(std::int32_t layer) const {
  const KvLayout& layout = pool_->layout(room_.model);
  return layer >= 0 && layer < layout.num_layers() && layout.shape(layer).shares >= 0;
}

bool DecodeTables::latent(std::int32_t layer) const {
  const KvLayout& layout = pool_->layout(room_.model);
  return layer >= 0 && layer < layout.num_layers() && layout.shape(layer).latent;
}

void DecodeTables::append(std::int32_t layer, const HeadsView& keys, const HeadsView& values,
                          DeviceStream stream) {
  const KvLayout& layout = pool_->layout(room_.model);
  check_written(layout, {layer}, room_.sequences, keys, values);
  arena_.append(layout, {layer}, tables_, keys, values, stream);
}

void DecodeTables::attend(std::int32_t layer, const AttentionOptions& options,
                          const HeadsView& queries, const HeadsView& out, float* scratch,
                          DeviceStream stream) {
  const KvLayout& layout = pool_->layout(room_.model);
  check_attention(layout, layer, room_.sequences, options, queries, out);
  if (queries.heads != room_.heads) {
    throw std::invalid_argument("these tables are for " + counted(room_.heads, "query heads") +
                                ", got " + std::to_string(queries.heads));
  }
  const AttentionArguments shape = attention_shape(*pool_, room_, layer);
  arena_.attend(layout, layer, tables_, options, queries, out,
                attention_workspace(scratch, tickets_, shape, room_.sequences), stream);
}

}  // namespace glimprouter
