// The tables of a forward pass over pages as views: of a batch, or of a caller that keeps arena and
// tables in tensors of its own, where a RaggedBatch cannot go (a compiled graph).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "glimprouter/kv_layout.hpp"
#include "glimprouter/types/ragged_batch.hpp"

namespace glimprouter {

// B sequences with T tokens in all; the columns mean what they mean in RaggedBatch. Non-owning.
struct PageTables {
  std::span<const std::int64_t> slot_mapping;  // [T]
  std::span<const PageId> block_table;         // [B, table_width]
  std::int32_t table_width = 0;
  std::span<const std::int32_t> cu_seqlens;  // [B + 1]
  std::span<const std::int32_t> seq_lens;    // [B]
  // RaggedBatch::upload of the columns, so that a device takes them once; null: with every call.
  std::uint64_t* upload = nullptr;

  std::size_t sequences() const { return seq_lens.size(); }
  std::int64_t tokens() const { return static_cast<std::int64_t>(slot_mapping.size()); }
};

PageTables tables_of(const RaggedBatch& batch);

// Throws std::invalid_argument for tables that do not fit together, or that reach beyond an arena
// of so many bytes. A sequence may have no token.
void check_tables(const PageTables& tables, const KvLayout& layout, std::int64_t arena_bytes);

// The tables of a batch with one sequence more, which has no token, and with at least two pages in
// a row: compilers make a graph of its own for a size of 1, and here only T can be one.
struct PaddedTables {
  std::vector<std::int64_t> slot_mapping;  // [T]
  std::int32_t table_width = 0;            // >= 2
  std::vector<PageId> block_table;         // [B + 1, table_width]
  std::vector<std::int32_t> cu_seqlens;    // [B + 2]
  std::vector<std::int32_t> seq_lens;      // [B + 1]
};

PaddedTables padded_tables(const RaggedBatch& batch);

}  // namespace glimprouter
