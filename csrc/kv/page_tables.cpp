#include "glimprouter/types/page_tables.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace glimprouter {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void check_page(std::int64_t page, const KvLayout& layout, std::int64_t arena_bytes,
                const char* column) {
  if (page >= 0 && page <= (arena_bytes - layout.page_bytes()) / KvLayout::kPageUnit) return;
  refuse(std::string(column) + " names page " + std::to_string(page) +
         ", which does not lie in the arena of " + std::to_string(arena_bytes) + " bytes");
}

}  // namespace

PageTables tables_of(const RaggedBatch& batch) {
  return {batch.slot_mapping, batch.block_table, batch.table_width,
          batch.cu_seqlens,   batch.seq_lens,    &batch.upload};
}

void check_tables(const PageTables& tables, const KvLayout& layout, std::int64_t arena_bytes) {
  const std::size_t sequences = tables.sequences();
  if (tables.cu_seqlens.size() != sequences + 1 ||
      tables.block_table.size() != sequences * static_cast<std::size_t>(tables.table_width)) {
    refuse("tables of " + std::to_string(sequences) +
           " sequences need cu_seqlens of one number more and one row of block_table each, got " +
           std::to_string(tables.cu_seqlens.size()) + " and " +
           std::to_string(tables.block_table.size()) + " entries in rows of " +
           std::to_string(tables.table_width));
  }
  if (tables.cu_seqlens.front() != 0 || tables.cu_seqlens.back() != tables.tokens()) {
    refuse("cu_seqlens must begin with 0 and end with the number of slot_mapping, " +
           std::to_string(tables.tokens()));
  }
  for (std::size_t i = 0; i < sequences; ++i) {
    const std::int64_t added = std::int64_t{tables.cu_seqlens[i + 1]} - tables.cu_seqlens[i];
    if (added < 0) refuse("cu_seqlens must not fall");
    if (added == 0) continue;
    const std::int64_t length = tables.seq_lens[i];
    const std::int64_t room = std::int64_t{tables.table_width} * layout.page_size();
    if (length < added || length > room) {
      refuse("seq_lens holds " + std::to_string(length) + " for sequence " + std::to_string(i) +
             ", which has " + std::to_string(added) + " new tokens and pages for " +
             std::to_string(room));
    }
    const auto pages = static_cast<std::size_t>(layout.pages_for(tables.seq_lens[i]));
    const std::size_t row = i * static_cast<std::size_t>(tables.table_width);
    for (const PageId page : tables.block_table.subspan(row, pages)) {
      check_page(page, layout, arena_bytes, "block_table");
    }
  }
  for (const std::int64_t slot : tables.slot_mapping) {
    // A division rounds towards 0: a negative slot must not become page 0.
    check_page(slot < 0 ? -1 : slot / layout.page_size(), layout, arena_bytes, "slot_mapping");
  }
}

PaddedTables padded_tables(const RaggedBatch& batch) {
  const std::size_t sequences = batch.sequences.size();
  PaddedTables padded;
  padded.slot_mapping = batch.slot_mapping;
  padded.table_width = std::max(batch.table_width, 2);
  padded.block_table.assign((sequences + 1) * static_cast<std::size_t>(padded.table_width),
                            kNullPage);
  for (std::size_t i = 0; i < sequences; ++i) {
    const auto row = batch.block_table.begin() +
                     static_cast<std::ptrdiff_t>(i * static_cast<std::size_t>(batch.table_width));
    std::copy(row, row + batch.table_width,
              padded.block_table.begin() +
                  static_cast<std::ptrdiff_t>(i * static_cast<std::size_t>(padded.table_width)));
  }
  padded.cu_seqlens = batch.cu_seqlens;
  padded.cu_seqlens.push_back(batch.cu_seqlens.back());
  padded.seq_lens = batch.seq_lens;
  padded.seq_lens.push_back(0);
  return padded;
}

}  // namespace glimprouter
