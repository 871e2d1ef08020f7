// Tables of decode passes on the device (here: the emulator): padded passes over fixed
// addresses give the bits of the others, and a capture launches kernels only.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <span>
#include <stdexcept>
#include <vector>

#include "device/decode_tables.hpp"
#include "emulator/backend.hpp"
#include "emulator/grid.hpp"
#include "glimprouter/kv_cache.hpp"
#include "glimprouter/kv_ops.hpp"
#include "kv_tensors.hpp"
#include "ops/host_arena.hpp"

namespace glimprouter {
namespace {

using simt::HeadsTensor;
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

  RaggedBatch next() {
    for (const std::int32_t row : rows) cache.append(0, row, std::vector<std::int32_t>{9});
    return cache.prepare(0, rows);
  }

  std::shared_ptr<PagePool> pool;
  KvCache cache;
  std::vector<std::int32_t> rows;
};

// Tables with their memory.
struct Tables {
  Tables(const std::shared_ptr<PagePool>& pool, std::int32_t sequences, std::int32_t pages)
      : room{0, sequences, pages, kHeads},
        memory(kDevice, static_cast<std::size_t>(DecodeTables::words(*pool, room)) * 8),
        own(pool, room, memory.as<std::int64_t>()),
        scratch(kDevice, static_cast<std::size_t>(own.scratch_size()) * sizeof(float)) {
    kDevice.backend->clear(0, memory.as<void>(), memory.bytes(), nullptr);
  }

  DecodeRoom room;
  DeviceMemory memory;
  DecodeTables own;
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

TEST(DecodeTables, PaddingChangesNoBit) {
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
    tables.own.fill(same, nullptr);
    for (int replay = 0; replay < 2; ++replay) {  // tickets are zero again
      tables.own.append(0, keys.cpu_view(0), keys.cpu_view(0), nullptr);
      tables.own.attend(0, {.window = 40}, queries.cpu_view(0), got.cpu_view(0),
                        tables.scratch.as<float>(), nullptr);
      EXPECT_EQ(values(got, 3), values(want, 3)) << sequences;
    }
    const auto room = static_cast<std::size_t>(sequences + sequences % 2);
    const std::span<const std::int64_t> memory(tables.memory.as<std::int64_t>(), 3 * room);
    for (std::size_t i = 3; i < room; ++i) {
      EXPECT_EQ(memory[i], 0);              // id
      EXPECT_EQ(memory[room + i], 0);       // position
      EXPECT_EQ(memory[2 * room + i], -1);  // slot
    }
  }
}

TEST(DecodeTables, ACaptureLaunchesKernelsOnly) {
  const std::vector<std::int32_t> lengths{5};
  Sequences sequences(lengths);
  const RaggedBatch batch = sequences.next();
  Tables tables(sequences.pool, 2, 2);
  HeadsTensor keys = states(2, 1), queries = states(2, kHeads), out = states(2, kHeads);
  simt::pretend_capture(true);
  EXPECT_THROW(tables.own.fill(batch, nullptr), std::runtime_error);
  EXPECT_EQ(*tables.memory.as<std::int64_t>(), 0);
  simt::pretend_capture(false);
  tables.own.fill(batch, nullptr);
  EXPECT_EQ(*tables.memory.as<std::int64_t>(), 9);
  simt::pretend_capture(true);
  EXPECT_NO_THROW(tables.own.append(0, keys.cpu_view(0), keys.cpu_view(0), nullptr));
  EXPECT_NO_THROW(tables.own.attend(0, {}, queries.cpu_view(0), out.cpu_view(0),
                                    tables.scratch.as<float>(), nullptr));
  simt::pretend_capture(false);
}

TEST(DecodeTables, WhatDoesNotFitIsRefused) {
  const std::vector<std::int32_t> lengths{5, 20};
  Sequences sequences(lengths);
  const RaggedBatch batch = sequences.next();
  Tables few(sequences.pool, 1, 8), narrow(sequences.pool, 2, 2);
  EXPECT_THROW(few.own.fill(batch, nullptr), std::invalid_argument);
  EXPECT_THROW(narrow.own.fill(batch, nullptr), std::invalid_argument);
  PagePool host({KvLayout::make(1, 1, kSize, kPageSize, DataType::kFloat32)}, 1 << 18,
                host_arena());
  EXPECT_THROW(DecodeTables::words(host, few.room), std::invalid_argument);
  EXPECT_THROW(DecodeTables::words(*sequences.pool, {0, 1, 1, 0}), std::invalid_argument);
}

}  // namespace
}  // namespace glimprouter
