#include "device/graph_tables.hpp"

#include <algorithm>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "ops/kv_checks.hpp"

namespace glimprouter {
namespace {

// Of a column of 64 bits: each begins at a multiple of 16 bytes, which vectorised readers ask for.
std::int64_t even(std::int32_t count) { return (std::int64_t{count} + 1) / 2 * 2; }

// Where the columns of 64 bits begin, in words, and behind the last one those of 32 bits.
struct WideColumns {
  explicit WideColumns(const GraphRoom& room)
      : positions(even(room.tokens)),
        slot_mapping(2 * positions),
        wanted(3 * positions),
        end(wanted + even(room.wanted)) {}

  std::int64_t positions;  // behind the ids
  std::int64_t slot_mapping;
  std::int64_t wanted;
  std::int64_t end;
};

// Where the columns of 32 bits begin, counted from the first of them.
struct NarrowColumns {
  explicit NarrowColumns(const GraphRoom& room)
      : cu_seqlens(std::int64_t{room.sequences} * room.pages),
        seq_lens(cu_seqlens + room.sequences + 1),
        end(seq_lens + room.sequences) {}

  std::int64_t cu_seqlens;  // behind the block table
  std::int64_t seq_lens;
  std::int64_t end;
};

// Of the columns that fill() writes.
std::int64_t column_words(const GraphRoom& room) {
  return WideColumns(room).end + (NarrowColumns(room).end + 1) / 2;
}

AttentionArguments attention_shape(const PagePool& pool, const GraphRoom& room,
                                   std::int32_t layer) {
  AttentionArguments arguments{};
  arguments.pages.layer = pool.layout(room.model).layer(layer);
  arguments.sequences = room.sequences;
  arguments.tokens = room.tokens;
  arguments.heads = room.heads;
  arguments.most_tokens = room.most_tokens;
  arguments.most_keys = room.pages * arguments.pages.layer.page_size;
  return arguments;
}

// What the layer that needs most needs.
template <typename Need>
std::int64_t most_of_layers(const PagePool& pool, const GraphRoom& room, const Need& need) {
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
  throw std::invalid_argument("graph tables are for pages on a device; this pool is on the CPU");
}

void check_room(const PagePool& pool, const GraphRoom& room) {
  arena_of(pool);
  if (room.model < 0 || room.model >= pool.num_models()) {
    throw std::invalid_argument("the pool has " + counted(pool.num_models(), "models") +
                                ", there is no " + std::to_string(room.model));
  }
  const KvLayout& layout = pool.layout(room.model);
  if (room.sequences < 1 || room.pages < 1 || room.pages > INT32_MAX / layout.page_size() ||
      room.tokens < 1 || room.most_tokens < 1 || room.wanted < 1) {
    throw std::invalid_argument(
        "graph tables need room for some tokens, sequences, pages and logits, got " +
        counted(room.tokens, "tokens") + ", at most " + std::to_string(room.most_tokens) +
        " a sequence, in " + counted(room.sequences, "sequences") + " of " +
        counted(room.pages, "pages") + ", and logits of " + counted(room.wanted, "tokens"));
  }
  check_query_heads(layout, room.heads);
}

}  // namespace

std::int64_t GraphTables::words(const PagePool& pool, const GraphRoom& room) {
  check_room(pool, room);
  const std::int64_t tickets = most_of_layers(pool, room, attention_tickets);
  return column_words(room) + (tickets + 1) / 2;
}

GraphTables::GraphTables(std::shared_ptr<PagePool> pool, const GraphRoom& room,
                         std::int64_t* memory)
    : pool_(std::move(pool)), arena_(arena_of(*pool_)), room_(room), memory_(memory) {
  check_room(*pool_, room_);
  const WideColumns wide(room_);
  const auto* const narrow = reinterpret_cast<const std::int32_t*>(memory_ + wide.end);
  const NarrowColumns columns(room_);
  tables_.slot_mapping = memory_ + wide.slot_mapping;
  tables_.block_table = narrow;
  tables_.cu_seqlens = narrow + columns.cu_seqlens;
  tables_.seq_lens = narrow + columns.seq_lens;
  tables_.table_width = room_.pages;
  tables_.sequences = room_.sequences;
  tables_.tokens = room_.tokens;
  tables_.most_tokens = room_.most_tokens;
  tables_.most_keys = room_.pages * pool_->layout(room_.model).page_size();
  tickets_ = reinterpret_cast<std::uint32_t*>(memory_ + column_words(room_));
  packed_.resize(static_cast<std::size_t>(column_words(room_)));
}

std::int64_t GraphTables::scratch_size() const {
  return most_of_layers(*pool_, room_, attention_scratch);
}

void GraphTables::check(const RaggedBatch& batch, std::span<const std::int32_t> wanted) const {
  const auto tokens = static_cast<std::int32_t>(batch.ids.size());
  const auto sequences = static_cast<std::int32_t>(batch.sequences.size());
  std::int32_t most = 0;
  for (std::size_t i = 0; i < batch.sequences.size(); ++i) {
    most = std::max(most, batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]);
  }
  const auto rows = static_cast<std::int32_t>(wanted.size());
  const bool fits = batch.model == room_.model && tokens <= room_.tokens &&
                    sequences <= room_.sequences && batch.table_width <= room_.pages &&
                    rows <= room_.wanted && most <= room_.most_tokens &&
                    room_.tokens - tokens <= std::int64_t{room_.sequences - sequences} * padding();
  if (!fits) {
    throw std::invalid_argument(
        "these tables take passes of model " + std::to_string(room_.model) + " over " +
        counted(room_.tokens, "tokens") + ", padding included, of at most " +
        counted(room_.sequences, "sequences") + " with at most " +
        counted(room_.most_tokens, "new tokens") + " and " + counted(room_.pages, "pages") +
        " each, and logits of " + counted(room_.wanted, "tokens") + "; the batch is of model " +
        std::to_string(batch.model) + " and has " + counted(sequences, "sequences") + ", " +
        counted(tokens, "tokens") + ", at most " + std::to_string(most) + " a sequence, " +
        counted(batch.table_width, "pages") + " and " + counted(rows, "wanted tokens"));
  }
  for (const std::int32_t row : wanted) {
    if (row >= 0 && row < tokens) continue;
    throw std::invalid_argument("wanted names token " + std::to_string(row) + " of a batch of " +
                                counted(tokens, "tokens"));
  }
}

std::int64_t GraphTables::padding() const {
  const std::int64_t seen = std::int64_t{room_.pages} * pool_->layout(room_.model).page_size();
  return std::min<std::int64_t>(room_.most_tokens, seen);
}

void GraphTables::fill(const RaggedBatch& batch, std::span<const std::int32_t> wanted,
                       DeviceStream stream) {
  check(batch, wanted);
  const WideColumns wide(room_);
  const auto column = [this](std::int64_t begin) { return packed_.begin() + begin; };
  std::fill(packed_.begin(), packed_.end(), 0);
  std::fill(column(wide.slot_mapping), column(wide.wanted), -1);
  std::ranges::copy(batch.ids, packed_.begin());
  std::ranges::copy(batch.positions, column(wide.positions));
  std::ranges::copy(batch.slot_mapping, column(wide.slot_mapping));
  std::ranges::copy(wanted, column(wide.wanted));
  fill_narrow(batch, reinterpret_cast<std::int32_t*>(packed_.data() + wide.end));
  arena_.write(memory_, std::as_bytes(std::span(packed_)), stream);
}

void GraphTables::fill_narrow(const RaggedBatch& batch, std::int32_t* narrow) const {
  const NarrowColumns columns(room_);
  const auto count = static_cast<std::int32_t>(batch.sequences.size());
  std::fill(narrow, narrow + columns.cu_seqlens, kNullPage);
  for (std::int32_t i = 0; i < count; ++i) {
    std::copy_n(batch.block_table.data() + std::int64_t{i} * batch.table_width, batch.table_width,
                narrow + std::int64_t{i} * room_.pages);
  }
  std::ranges::copy(batch.cu_seqlens, narrow + columns.cu_seqlens);
  std::ranges::copy(batch.seq_lens, narrow + columns.seq_lens);
  auto left = room_.tokens - static_cast<std::int32_t>(batch.ids.size());
  for (std::int32_t i = count; i < room_.sequences; ++i) {
    const auto own = static_cast<std::int32_t>(std::min<std::int64_t>(left, padding()));
    left -= own;
    narrow[columns.cu_seqlens + i + 1] = room_.tokens - left;
    narrow[columns.seq_lens + i] = own;
  }
}

bool GraphTables::shares(std::int32_t layer) const {
  const KvLayout& layout = pool_->layout(room_.model);
  return layer >= 0 && layer < layout.num_layers() && layout.shape(layer).shares >= 0;
}

bool GraphTables::latent(std::int32_t layer) const {
  const KvLayout& layout = pool_->layout(room_.model);
  return layer >= 0 && layer < layout.num_layers() && layout.shape(layer).latent;
}

void GraphTables::append(std::int32_t layer, const HeadsView& keys, const HeadsView& values,
                         DeviceStream stream) {
  const KvLayout& layout = pool_->layout(room_.model);
  check_written(layout, {layer}, room_.tokens, keys, values);
  arena_.append(layout, {layer}, tables_, keys, values, stream);
}

void GraphTables::attend(std::int32_t layer, const AttentionOptions& options,
                         const HeadsView& queries, const HeadsView& out, float* scratch,
                         DeviceStream stream) {
  const KvLayout& layout = pool_->layout(room_.model);
  check_attention(layout, layer, room_.tokens, options, queries, out);
  if (queries.heads != room_.heads) {
    throw std::invalid_argument("these tables are for " + counted(room_.heads, "query heads") +
                                ", got " + std::to_string(queries.heads));
  }
  const AttentionArguments shape = attention_shape(*pool_, room_, layer);
  arena_.attend(layout, layer, tables_, options, queries, out,
                attention_workspace(scratch, tickets_, shape), stream);
}

}  // namespace glimprouter
