// The hand-off packed on the device, run by the host SIMT shim, against KvCache::prepare.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "glimprouter/kv_cache.hpp"
#include "kv_launch.cuh"
#include "lanes.hpp"
#include "simt/grid.hpp"

namespace glimprouter {
namespace {

constexpr std::int32_t kVocabulary = 500;
constexpr bool kReduced = simt::kLane == simt::Lane::kThread;

// The tables of a cache's sequences for one model, as a device holds them, and the columns.
class PackedHandoff {
 public:
  PackedHandoff(const KvCache& cache, std::int32_t model, std::int32_t page_tokens,
                const std::vector<std::int32_t>& sequences, std::int64_t capacity,
                std::int32_t table_width)
      : sequences_(sequences),
        table_width_(table_width),
        ids(capacity, -7),
        positions(capacity, -7),
        slots(capacity, -7),
        cu_seqlens(sequences.size() + 1, -7),
        key_lengths(sequences.size(), -7),
        last_rows(sequences.size(), -7),
        block_table(sequences.size() * static_cast<std::size_t>(table_width), -7) {
    std::int32_t rows = 0;
    for (const std::int32_t sequence : cache.sequences()) rows = std::max(rows, sequence + 1);
    const auto size = static_cast<std::size_t>(rows);
    for (auto* lengths : {&prompt_lengths_, &generated_lengths_, &committed_})
      lengths->resize(size);
    for (auto* table : {&prompts_, &generated_, &pages_}) table->resize(size * kStride, -1);
    for (const std::int32_t sequence : cache.sequences()) {
      const CachedSequence& entry = cache.sequence(sequence);
      const auto row = static_cast<std::size_t>(sequence);
      const auto& prompt = entry.prompts[static_cast<std::size_t>(model)];
      const ModelCache& held = entry.caches[static_cast<std::size_t>(model)];
      prompt_lengths_[row] = static_cast<std::int32_t>(prompt.size());
      generated_lengths_[row] = entry.ledger.size();
      committed_[row] = held.committed;
      const auto place = [&](std::vector<std::int32_t>& table) {
        return table.begin() + static_cast<std::ptrdiff_t>(row * kStride);
      };
      std::copy(prompt.begin(), prompt.end(), place(prompts_));
      const auto written = entry.ledger.ids(model);
      std::copy(written.begin(), written.end(), place(generated_));
      std::copy(held.pages.begin(), held.pages.end(), place(pages_));
    }
    page_tokens_ = page_tokens;
  }

  void pack(const std::vector<std::int32_t>* map) {
    const SequenceTables tables{prompts_.data(),
                                kStride,
                                prompt_lengths_.data(),
                                generated_.data(),
                                kStride,
                                generated_lengths_.data(),
                                committed_.data(),
                                pages_.data(),
                                kStride,
                                page_tokens_,
                                map != nullptr ? map->data() : nullptr,
                                map != nullptr ? static_cast<std::int32_t>(map->size()) : 0};
    const HandoffArguments arguments{tables,
                                     sequences_.data(),
                                     static_cast<std::int32_t>(sequences_.size()),
                                     static_cast<std::int64_t>(ids.size()),
                                     table_width_,
                                     ids.data(),
                                     positions.data(),
                                     slots.data(),
                                     cu_seqlens.data(),
                                     key_lengths.data(),
                                     last_rows.data(),
                                     block_table.data(),
                                     &unmapped};
    ASSERT_EQ(device::launch_handoff(arguments, {}, nullptr), 0);
  }

 private:
  static constexpr std::size_t kStride = 400;
  std::vector<std::int32_t> prompts_, generated_, pages_;
  std::vector<std::int32_t> prompt_lengths_, generated_lengths_, committed_;
  std::int32_t page_tokens_ = 0;
  std::vector<std::int32_t> sequences_;
  std::int32_t table_width_;

 public:
  std::vector<std::int32_t> ids, positions;
  std::vector<std::int64_t> slots;
  std::vector<std::int32_t> cu_seqlens, key_lengths, last_rows;
  std::vector<PageId> block_table;
  std::uint32_t unmapped = 0;
};

// What a column must begin with, and what pads the rest.
template <typename Value>
void expect_column(std::vector<Value> expected, const std::vector<Value>& column, Value padding,
                   const char* name) {
  expected.resize(column.size(), padding);
  EXPECT_EQ(expected, column) << name;
}

std::vector<std::int32_t> random_ids(std::mt19937& random, std::size_t most) {
  std::vector<std::int32_t> ids(1 + random() % most);
  for (std::int32_t& id : ids) id = static_cast<std::int32_t>(random() % kVocabulary);
  return ids;
}

class OpenCache {
 public:
  explicit OpenCache(std::uint64_t seed)
      : random(static_cast<std::uint32_t>(seed)),
        pool(std::make_shared<PagePool>(
            std::vector{KvLayout::make(1, 1, 16, 4, DataType::kFloat32),
                        KvLayout::make(1, 1, 16, 16, DataType::kBFloat16)},
            1 << 20)),
        cache(pool, 12) {
    for (int i = 0; i < 8; ++i) {
      const std::int32_t sequence = cache.open({random_ids(random, 150), random_ids(random, 9)});
      for (std::int32_t model = 0; model < 2; ++model) {
        if (random() % 3 == 0) continue;
        cache.complete(cache.prepare(model, std::vector{sequence}));
      }
      cache.append(sequence, random_ids(random, 40));
      sequences.push_back(sequence);
    }
    cache.close(sequences[2]);  // a hole in the tables
    sequences.erase(sequences.begin() + 2);
    std::shuffle(sequences.begin(), sequences.end(), random);
    sequences.resize(1 + random() % sequences.size());
  }

  std::mt19937 random;
  std::shared_ptr<PagePool> pool;
  KvCache cache;
  std::vector<std::int32_t> sequences;
};

TEST(Handoff, EqualsPrepareUnderTwentySchedules) {
  for (const std::uint64_t seed : simt::seeds_to_try(20)) {
    simt::set_seed(seed);
    for (std::int32_t model = 0; model < 2; ++model) {
      OpenCache open(seed);
      const RaggedBatch batch = open.cache.prepare(model, open.sequences);
      const auto tokens = static_cast<std::int64_t>(batch.ids.size());
      PackedHandoff packed(open.cache, model, open.pool->layout(model).page_tokens, open.sequences,
                           tokens + static_cast<std::int64_t>(seed % 3) * 70, batch.table_width);
      packed.pack(nullptr);
      expect_column(batch.ids, packed.ids, 0, "ids");
      expect_column(batch.positions, packed.positions, 0, "positions");
      expect_column(batch.slots, packed.slots, std::int64_t{-1}, "slots");
      EXPECT_EQ(batch.cu_seqlens, packed.cu_seqlens);
      EXPECT_EQ(batch.key_lengths, packed.key_lengths);
      EXPECT_EQ(batch.last_rows, packed.last_rows);
      EXPECT_EQ(batch.block_table, packed.block_table);
      EXPECT_EQ(packed.unmapped, 0u);
    }
  }
}

// Generated ids go through the map, prompts do not; an id without an image is counted.
TEST(Handoff, MapsGeneratedIdsAndCountsThoseWithoutAnImage) {
  std::vector<std::int32_t> map(kVocabulary - 50);
  for (std::size_t i = 0; i < map.size(); ++i) {
    map[i] = i % 7 == 0 ? -1 : static_cast<std::int32_t>(3 * i + 1);
  }
  OpenCache open(5);
  const RaggedBatch batch = open.cache.prepare(1, open.sequences);
  PackedHandoff packed(open.cache, 1, 16, open.sequences,
                       static_cast<std::int64_t>(batch.ids.size()), batch.table_width);
  packed.pack(&map);
  std::uint32_t unmapped = 0;
  for (std::size_t i = 0; i < open.sequences.size(); ++i) {
    const auto prompt =
        static_cast<std::int32_t>(open.cache.sequence(open.sequences[i]).prompts[1].size());
    for (auto t = static_cast<std::size_t>(batch.cu_seqlens[i]);
         t < static_cast<std::size_t>(batch.cu_seqlens[i + 1]); ++t) {
      std::int32_t expected = batch.ids[t];
      if (batch.positions[t] >= prompt) {
        expected = expected >= kVocabulary - 50 ? -1 : map[static_cast<std::size_t>(expected)];
      }
      if (expected < 0) ++unmapped;
      EXPECT_EQ(packed.ids[t], std::max(expected, 0)) << t;
    }
  }
  EXPECT_GT(unmapped, 0u);
  EXPECT_EQ(packed.unmapped, unmapped);
}

// More sequences than a block has threads to add their lengths up.
TEST(Handoff, EqualsPrepareForManySequences) {
  const std::int32_t count = kReduced ? 40 : 300;
  KvCache cache(std::make_shared<PagePool>(
                    std::vector{KvLayout::make(1, 1, 16, 4, DataType::kFloat32)}, 1 << 20),
                count);
  std::mt19937 random(3);
  std::vector<std::int32_t> sequences;
  for (std::int32_t i = 0; i < count; ++i) sequences.push_back(cache.open({random_ids(random, 6)}));
  const RaggedBatch batch = cache.prepare(0, sequences);
  PackedHandoff packed(cache, 0, 4, sequences, static_cast<std::int64_t>(batch.ids.size()),
                       batch.table_width);
  packed.pack(nullptr);
  EXPECT_EQ(packed.ids, batch.ids);
  EXPECT_EQ(packed.slots, batch.slots);
  EXPECT_EQ(packed.cu_seqlens, batch.cu_seqlens);
  EXPECT_EQ(packed.last_rows, batch.last_rows);
}

// Too small a capacity writes nothing beyond it and says so in cu_seqlens.
TEST(Handoff, StopsAtItsCapacity) {
  OpenCache open(6);
  const RaggedBatch batch = open.cache.prepare(0, open.sequences);
  const auto capacity = static_cast<std::int64_t>(batch.ids.size()) - 1;
  PackedHandoff packed(open.cache, 0, 4, open.sequences, capacity, batch.table_width);
  packed.pack(nullptr);
  EXPECT_EQ(packed.cu_seqlens, batch.cu_seqlens);
  EXPECT_TRUE(std::equal(packed.ids.begin(), packed.ids.end(), batch.ids.begin()));
}

TEST(Handoff, AnEmptyBatchIsOnlyPadding) {
  OpenCache open(7);
  PackedHandoff packed(open.cache, 0, 4, {}, 5, 3);
  packed.pack(nullptr);
  EXPECT_EQ(packed.cu_seqlens, std::vector<std::int32_t>{0});
  EXPECT_EQ(packed.slots, std::vector<std::int64_t>(5, -1));
}

}  // namespace
}  // namespace glimprouter
