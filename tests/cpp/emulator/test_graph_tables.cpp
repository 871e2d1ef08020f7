// Tables of passes at fixed addresses on the device (here: the emulator): padded passes give the
// bits of the others, and a capture launches kernels only.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <span>
#include <stdexcept>
#include <utility>
#include <vector>

#include "device/graph_tables.hpp"
#include "emulator/backend.hpp"
#include "emulator/grid.hpp"
#include "glimprouter/kv_cache.hpp"
#include "glimprouter/kv_ops.hpp"
#include "kv_tensors.hpp"
#include "lanes.hpp"
#include "ops/host_arena.hpp"

namespace glimprouter {
namespace {

using simt::HeadsTensor;
using simt::kReduced;
constexpr std::int32_t kHeads = 2, kSize = 16, kPageSize = 8;
const Device kDevice{&simt::backend(), 0};

// A pool with some sequences, each of another length, whose prompts have been computed.
struct Sequences {
  explicit Sequences(std::span<const std::int32_t> lengths)
      : pool(std::make_shared<PagePool>(
            std::vector{KvLayout::make(1, 1, kSize, kPageSize, DataType::kFloat32)}, 1 << 18,
            device_arena(kDevice))),
        cache(pool, static_cast<std::int32_t>(lengths.size())) {
    for (const std::int32_t length : lengths) {
      std::vector<std::int32_t> prompt(static_cast<std::size_t>(length));
      std::iota(prompt.begin(), prompt.end(), 1);
      rows.push_back(cache.open({prompt}));
      const RaggedBatch batch = cache.prepare(0, std::span(&rows.back(), 1));
      HeadsTensor keys(static_cast<std::uint64_t>(length), {1, length, 1, kSize},
                       DataType::kFloat32);
      keys.fill(static_cast<std::uint64_t>(length));
      append_kv(*pool, {0}, batch, keys.cpu_view(0), keys.cpu_view(0));
      cache.complete(batch);
    }
  }

  // So many new tokens of each.
  RaggedBatch next(std::span<const std::int32_t> counts) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      cache.append(0, rows[i], std::vector<std::int32_t>(static_cast<std::size_t>(counts[i]), 9));
    }
    return cache.prepare(0, rows);
  }
  RaggedBatch next() { return next(std::vector<std::int32_t>(rows.size(), 1)); }

  std::shared_ptr<PagePool> pool;
  KvCache cache;
  std::vector<std::int32_t> rows;
};

// Tables with their memory.
struct Tables {
  Tables(const std::shared_ptr<PagePool>& pool, const GraphRoom& size)
      : room(size),
        memory(kDevice, static_cast<std::size_t>(GraphTables::words(*pool, room)) * 8),
        own(pool, room, memory.as<std::int64_t>()),
        scratch(kDevice, static_cast<std::size_t>(own.scratch_size()) * sizeof(float)) {
    kDevice.backend->clear(0, memory.as<void>(), memory.bytes(), nullptr);
  }

  // For decode passes.
  Tables(const std::shared_ptr<PagePool>& pool, std::int32_t sequences, std::int32_t pages)
      : Tables(pool, {0, sequences, sequences, pages, sequences, 1, kHeads}) {}

  GraphRoom room;
  DeviceMemory memory;
  GraphTables own;
  DeviceMemory scratch;
};

HeadsTensor states(std::int64_t tokens, std::int32_t heads) {
  HeadsTensor tensor(7, {1, tokens, heads, kSize}, DataType::kFloat32);
  tensor.fill(8);
  return tensor;
}

// Rows of the tensor, one after the other.
std::vector<float> values(HeadsTensor& tensor, std::int64_t tokens) {
  const HeadsView view = tensor.cpu_view(0);
  std::vector<float> result;
  for (std::int64_t token = 0; token < tokens; ++token) {
    for (std::int32_t head = 0; head < view.heads; ++head) {
      const auto* const source = static_cast<const float*>(view.data) + token * view.token_stride +
                                 head * view.head_stride;
      result.insert(result.end(), source, source + kSize);
    }
  }
  return result;
}

TEST(GraphTables, PaddingChangesNoBit) {
  const std::vector<std::int32_t> lengths{1, 7, 300};
  for (const std::int32_t sequences : {3, 4, 7}) {
    Sequences plain(lengths), padded(lengths);
    const RaggedBatch batch = plain.next();
    const RaggedBatch same = padded.next();
    Tables tables(padded.pool, sequences, batch.table_width + 5);
    HeadsTensor keys = states(sequences, 1), queries = states(sequences, kHeads);
    HeadsTensor want(3, {1, 3, kHeads, kSize}, DataType::kFloat32);
    HeadsTensor got(4, {1, sequences, kHeads, kSize}, DataType::kFloat32);
    HeadsView few = keys.cpu_view(0), few_queries = queries.cpu_view(0);
    few.tokens = few_queries.tokens = 3;
    append_kv(*plain.pool, {0}, batch, few, few);
    paged_attention(*plain.pool, 0, batch, {.window = 40}, few_queries, want.cpu_view(0));
    tables.own.fill(same, same.last_rows, nullptr);
    for (int replay = 0; replay < 2; ++replay) {  // tickets are zero again
      tables.own.append(0, keys.cpu_view(0), keys.cpu_view(0), nullptr);
      tables.own.attend(0, {.window = 40}, queries.cpu_view(0), got.cpu_view(0),
                        tables.scratch.as<float>(), nullptr);
      EXPECT_EQ(values(got, 3), values(want, 3)) << sequences;
    }
    const auto room = static_cast<std::size_t>(sequences + sequences % 2);
    const std::span<const std::int64_t> memory(tables.memory.as<std::int64_t>(), 4 * room);
    EXPECT_TRUE(std::ranges::equal(memory.subspan(3 * room, 3), same.last_rows));
    for (std::size_t i = 3; i < room; ++i) {
      EXPECT_EQ(memory[i], 0);              // id
      EXPECT_EQ(memory[room + i], 0);       // position
      EXPECT_EQ(memory[2 * room + i], -1);  // slot
    }
  }
}

TEST(GraphTables, PaddedRaggedPassesHaveTheBitsOfTheOthers) {
  const std::vector<std::int32_t> lengths{1, 7, kReduced ? 30 : 300, 12, 40};
  const std::vector<std::int32_t> counts{3, 1, 9, 17, 2};  // 32 in all
  for (const auto& [tokens, sequences] : {std::pair{32, 5}, {40, 6}, {64, 8}, {64, 40}}) {
    if (kReduced && tokens == 64) continue;
    Sequences plain(lengths), padded(lengths);
    const RaggedBatch batch = plain.next(counts);
    const RaggedBatch same = padded.next(counts);
    const std::vector<std::int32_t> wanted{0, 2, 3, 12, 29, 31};
    Tables tables(padded.pool, {0, tokens, sequences, batch.table_width + 3, 8, tokens, kHeads});
    HeadsTensor keys = states(tokens, 1), queries = states(tokens, kHeads);
    HeadsTensor want(3, {1, 32, kHeads, kSize}, DataType::kFloat32);
    HeadsTensor got(4, {1, tokens, kHeads, kSize}, DataType::kFloat32);
    HeadsView few = keys.cpu_view(0), few_queries = queries.cpu_view(0);
    few.tokens = few_queries.tokens = 32;
    append_kv(*plain.pool, {0}, batch, few, few);
    tables.own.fill(same, wanted, nullptr);
    for (const std::int32_t window : {0, 5, 40}) {
      paged_attention(*plain.pool, 0, batch, {.window = window}, few_queries, want.cpu_view(0));
      tables.own.append(0, keys.cpu_view(0), keys.cpu_view(0), nullptr);
      tables.own.attend(0, {.window = window}, queries.cpu_view(0), got.cpu_view(0),
                        tables.scratch.as<float>(), nullptr);
      EXPECT_EQ(values(got, 32), values(want, 32)) << tokens << " " << sequences << " " << window;
      const std::vector<float> all = values(got, tokens);  // padding has nothing but zeros to see
      EXPECT_TRUE(std::all_of(all.begin() + 32 * kHeads * kSize, all.end(),
                              [](float value) { return value == 0.0f; }));
    }
    const auto* const named = tables.memory.as<std::int64_t>() + 3 * tokens;
    EXPECT_TRUE(std::ranges::equal(std::span(named, 8),
                                   std::vector<std::int64_t>{0, 2, 3, 12, 29, 31, 0, 0}));
  }
}

// A warp looks for the sequence of its rows among 32 at a time.
TEST(GraphTables, ManySequencesHaveTheBitsOfTheOthers) {
  std::vector<std::int32_t> lengths, counts;
  const std::int32_t count = kReduced ? 9 : 70;
  for (std::int32_t i = 0; i < count; ++i) {
    lengths.push_back(1 + i % 9);
    counts.push_back(1 + i % 3);
  }
  Sequences plain(lengths), padded(lengths);
  const RaggedBatch batch = plain.next(counts);
  const RaggedBatch same = padded.next(counts);
  const auto all = static_cast<std::int32_t>(batch.ids.size());
  Tables tables(padded.pool, {0, all + 9, count + 2, batch.table_width, count, 8, kHeads});
  HeadsTensor keys = states(all + 9, 1), queries = states(all + 9, kHeads);
  HeadsTensor want(3, {1, all, kHeads, kSize}, DataType::kFloat32);
  HeadsTensor got(4, {1, all + 9, kHeads, kSize}, DataType::kFloat32);
  HeadsView few = keys.cpu_view(0), few_queries = queries.cpu_view(0);
  few.tokens = few_queries.tokens = all;
  append_kv(*plain.pool, {0}, batch, few, few);
  paged_attention(*plain.pool, 0, batch, {}, few_queries, want.cpu_view(0));
  tables.own.fill(same, same.last_rows, nullptr);
  tables.own.append(0, keys.cpu_view(0), keys.cpu_view(0), nullptr);
  tables.own.attend(0, {}, queries.cpu_view(0), got.cpu_view(0), tables.scratch.as<float>(),
                    nullptr);
  EXPECT_EQ(values(got, all), values(want, all));
}

TEST(GraphTables, ACaptureLaunchesKernelsOnly) {
  const std::vector<std::int32_t> lengths{5};
  Sequences sequences(lengths);
  const RaggedBatch batch = sequences.next();
  Tables tables(sequences.pool, 2, 2);
  HeadsTensor keys = states(2, 1), queries = states(2, kHeads), out = states(2, kHeads);
  simt::pretend_capture(true);
  EXPECT_THROW(tables.own.fill(batch, batch.last_rows, nullptr), std::runtime_error);
  EXPECT_EQ(*tables.memory.as<std::int64_t>(), 0);
  simt::pretend_capture(false);
  tables.own.fill(batch, batch.last_rows, nullptr);
  EXPECT_EQ(*tables.memory.as<std::int64_t>(), 9);
  simt::pretend_capture(true);
  EXPECT_NO_THROW(tables.own.append(0, keys.cpu_view(0), keys.cpu_view(0), nullptr));
  EXPECT_NO_THROW(tables.own.attend(0, {}, queries.cpu_view(0), out.cpu_view(0),
                                    tables.scratch.as<float>(), nullptr));
  simt::pretend_capture(false);
}

TEST(GraphTables, WhatDoesNotFitIsRefused) {
  const std::vector<std::int32_t> lengths{5, 20};
  Sequences sequences(lengths);
  const RaggedBatch batch = sequences.next();
  Tables few(sequences.pool, 1, 8), narrow(sequences.pool, 2, 2);
  EXPECT_THROW(few.own.fill(batch, batch.last_rows, nullptr), std::invalid_argument);
  EXPECT_THROW(narrow.own.fill(batch, batch.last_rows, nullptr), std::invalid_argument);
  const auto refuses = [&](const RaggedBatch& pass, const GraphRoom& room,
                           std::vector<std::int32_t> wanted) {
    Tables tables(sequences.pool, room);
    EXPECT_THROW(tables.own.fill(pass, wanted, nullptr), std::invalid_argument);
    EXPECT_EQ(*tables.memory.as<std::int64_t>(), 0);
  };
  refuses(batch, {0, 8, 2, 8, 2, 8, kHeads}, {0, 1});  // no sequence is left for the padding
  refuses(batch, {0, 8, 3, 8, 2, 5, kHeads}, {0, 1});  // nor has it room in one
  refuses(batch, {0, 2, 2, 8, 1, 1, kHeads}, {0, 1});  // too many logits
  refuses(batch, {0, 2, 2, 8, 2, 1, kHeads}, {0, 2});  // no such token
  refuses(batch, {0, 2, 2, 8, 2, 1, kHeads}, {-1});
  sequences.cache.abandon(batch);
  const std::vector<std::int32_t> several{1, 3};
  const RaggedBatch longer = sequences.next(several);
  refuses(longer, {0, 8, 4, 8, 2, 3, kHeads}, {0, 1});  // four with the token from before
  PagePool host({KvLayout::make(1, 1, kSize, kPageSize, DataType::kFloat32)}, 1 << 18,
                host_arena());
  EXPECT_THROW(GraphTables::words(host, few.room), std::invalid_argument);
  EXPECT_THROW(GraphTables::words(*sequences.pool, {0, 1, 1, 1, 1, 1, 0}), std::invalid_argument);
}

}  // namespace
}  // namespace glimprouter
