// Tables that come as views: what is refused, what the padding adds, and the same bytes as a batch.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <vector>

#include "glimprouter/arena_on.hpp"
#include "glimprouter/kv_cache.hpp"
#include "glimprouter/kv_ops.hpp"
#include "glimprouter/types/page_tables.hpp"
#include "ops/host_arena.hpp"

namespace glimprouter {
namespace {

constexpr std::int32_t kHeads = 2;
constexpr std::int32_t kHeadSize = 32;
constexpr std::int32_t kPageSize = 4;

struct Fixture {
  KvLayout layout = KvLayout::make(2, kHeads, kHeadSize, kPageSize, DataType::kFloat32);
  std::shared_ptr<PagePool> pool = std::make_shared<PagePool>(
      std::vector<KvLayout>{layout}, 40 * layout.page_bytes(), arena_on("cpu"));
  KvCache cache{pool, 3};
  RaggedBatch batch;

  Fixture() {
    std::vector<std::int32_t> sequences;
    for (const std::size_t length : {9u, 1u, 4u}) {
      sequences.push_back(cache.open({std::vector<std::int32_t>(length, 0)}));
    }
    batch = cache.prepare(0, sequences);
  }
  std::int64_t arena_bytes() const { return (pool->num_sectors() + 1) * pool->sector_bytes(); }
};

HeadsView view_of(std::vector<float>& values, std::int64_t tokens) {
  return {values.data(), DataType::kFloat32, tokens,   kHeads,
          kHeadSize,     kHeads * kHeadSize, kHeadSize};
}

std::vector<float> random_states(std::size_t tokens, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(tokens * kHeads * kHeadSize);
  for (float& value : values) value = normal(generator);
  return values;
}

TEST(PageTables, PaddingAddsAnEmptySequence) {
  const Fixture fixture;
  const PaddedTables padded = padded_tables(fixture.batch);
  EXPECT_EQ(padded.table_width, 3);
  EXPECT_EQ(padded.cu_seqlens, (std::vector<std::int32_t>{0, 9, 10, 14, 14}));
  EXPECT_EQ(padded.seq_lens, (std::vector<std::int32_t>{9, 1, 4, 0}));
  EXPECT_EQ(padded.block_table.size(), 12u);
  EXPECT_EQ(padded.block_table.back(), kNullPage);
  Fixture narrow;
  narrow.cache.complete(narrow.batch);
  narrow.cache.append(0, 1, std::vector<std::int32_t>{0});
  const PaddedTables two = padded_tables(narrow.cache.prepare(0, std::vector<std::int32_t>{1}));
  EXPECT_EQ(two.table_width, 2);
  EXPECT_EQ(two.block_table.size(), 4u);
}

TEST(PageTables, TheSameBytesAsTheBatch) {
  const Fixture by_batch;
  const Fixture by_tables;
  const PaddedTables padded = padded_tables(by_tables.batch);
  const PageTables tables{padded.slot_mapping, padded.block_table, padded.table_width,
                          padded.cu_seqlens, padded.seq_lens};
  check_tables(tables, by_tables.layout, by_tables.arena_bytes());
  std::vector<float> keys = random_states(14, 1);
  std::vector<float> values = random_states(14, 2);
  std::vector<float> queries = random_states(14, 3);
  std::vector<float> out[2] = {std::vector<float>(queries.size()),
                               std::vector<float>(queries.size())};
  const AttentionOptions options{0.2f, 3, 0.0f};
  append_kv(*by_batch.pool, {1}, by_batch.batch, view_of(keys, 14), view_of(values, 14));
  paged_attention(*by_batch.pool, 1, by_batch.batch, options, view_of(queries, 14),
                  view_of(out[0], 14));
  HostArena borrowed(by_tables.pool->address(kNullPage));  // as a tensor's memory is
  const PagedMemory pages{borrowed, by_tables.layout};
  append_kv(pages, {1}, tables, view_of(keys, 14), view_of(values, 14));
  paged_attention(pages, 1, tables, options, view_of(queries, 14), view_of(out[1], 14));
  EXPECT_EQ(0, std::memcmp(out[0].data(), out[1].data(), out[0].size() * sizeof(float)));
  EXPECT_EQ(0, std::memcmp(by_batch.pool->address(kNullPage), borrowed.data(),
                           static_cast<std::size_t>(by_tables.arena_bytes())));
}

TEST(PageTables, WhatReachesBeyondTheArenaIsRefused) {
  const Fixture fixture;
  const auto refused = [&](auto&& change) {
    RaggedBatch batch = fixture.batch;
    change(batch);
    EXPECT_THROW(check_tables(tables_of(batch), fixture.layout, fixture.arena_bytes()),
                 std::invalid_argument);
  };
  const auto first_beyond = static_cast<PageId>(fixture.arena_bytes() / KvLayout::kPageUnit);
  check_tables(tables_of(fixture.batch), fixture.layout, fixture.arena_bytes());
  refused([](RaggedBatch& batch) { batch.slot_mapping[2] = -1; });
  refused(
      [&](RaggedBatch& batch) { batch.slot_mapping[2] = std::int64_t{first_beyond} * kPageSize; });
  refused([&](RaggedBatch& batch) { batch.block_table[2] = first_beyond - 1; });
  refused([](RaggedBatch& batch) { batch.block_table[0] = -1; });
  refused([](RaggedBatch& batch) { batch.seq_lens[0] = 8; });
  refused([](RaggedBatch& batch) { batch.seq_lens[0] = 13; });
  refused([](RaggedBatch& batch) { batch.seq_lens.pop_back(); });
  refused([](RaggedBatch& batch) { batch.cu_seqlens[1] = 11; });
  refused([](RaggedBatch& batch) { batch.cu_seqlens.clear(); });
  refused([](RaggedBatch& batch) { batch.table_width = 2; });
}

}  // namespace
}  // namespace glimprouter
