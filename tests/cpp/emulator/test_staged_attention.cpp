// Attention that copies keys and values ahead of their use: where stages, pages, chunks and what a
// row sees begin and end, each by itself and together; and what it does not serve.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "attention_scene.hpp"
#include "kernels/attention/stages.cuh"

namespace glimprouter {
namespace {

using simt::AttentionCase;
using simt::expect_exact;
using simt::kReduced;
using simt::Span;

LayerLayout layer_of(std::int32_t head_dim, DataType dtype, std::int32_t page_size = 16) {
  return KvLayout::make(2, 3, head_dim, page_size, dtype).layer(1);
}

TEST(StagedAttention, ThePageOfATokenIsTheQuotient) {
  for (std::int32_t page_size = 1; page_size <= kMaxDevicePageSize; ++page_size) {
    const device::PageOfToken page_of(page_size);
    for (std::int32_t token = 0; token < device::kMostChunkTokens; ++token) {
      ASSERT_EQ(page_of(token), token / page_size) << token << " of pages of " << page_size;
    }
  }
}

// A stage holds its tokens, eight at least, in rows whose distance is an odd multiple of 16 bytes.
TEST(StagedAttention, StagesHoldWhatTheyAreGiven) {
  for (std::int32_t head_dim = 16; head_dim <= device::kMaxStagedHeadDim; head_dim += 16) {
    for (const DataType dtype : {DataType::kFloat32, DataType::kBFloat16}) {
      const LayerLayout layer = layer_of(head_dim, dtype);
      const std::int32_t tokens = device::stage_tokens(layer);
      const std::int32_t row = device::staged_row_bytes(layer);
      EXPECT_GE(tokens, device::kTokensAWarp);
      EXPECT_LE(tokens, device::kMostStageTokens);
      EXPECT_EQ(tokens % device::kTokensAWarp, 0);
      EXPECT_EQ(row % 32, 16);
      EXPECT_LE(tokens * row, device::kStageBytes);
    }
  }
  EXPECT_EQ(device::stage_tokens(layer_of(128, DataType::kBFloat16)), device::kMostStageTokens);
}

TEST(StagedAttention, ServesWhatItIsAskedToWhereRowsCanBeCopied) {
  AttentionArguments arguments{};
  arguments.loads = AttentionLoads::kStaged;
  const auto serves = [&](const LayerLayout& layer) {
    arguments.pages.layer = layer;
    return device::copies_ahead(arguments);
  };
  for (const std::int32_t page_size : {1, 5, 16, 64, 256}) {
    for (const std::int32_t head_dim : {16, 80, 128, 256}) {
      for (const DataType dtype : {DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16}) {
        EXPECT_TRUE(serves(layer_of(head_dim, dtype, page_size)));
      }
    }
  }
  EXPECT_FALSE(serves(layer_of(272, DataType::kBFloat16)));
  const LayerShape wide_values[] = {{2, 64, 272}};
  EXPECT_FALSE(serves(KvLayout::make(wide_values, 16, DataType::kBFloat16).layer(0)));
  for (std::int64_t LayerLayout::* place :
       {&LayerLayout::key_offset, &LayerLayout::key_head_stride, &LayerLayout::key_token_stride,
        &LayerLayout::value_offset, &LayerLayout::value_head_stride,
        &LayerLayout::value_token_stride}) {
    LayerLayout layer = layer_of(64, DataType::kBFloat16);
    layer.*place += 8;
    EXPECT_FALSE(serves(layer)) << "rows off the multiples of 16";
  }
  arguments.loads = AttentionLoads::kDirect;
  EXPECT_FALSE(serves(layer_of(64, DataType::kBFloat16)));
}

// Stages of 8, 16, 24 and 32 tokens; lengths around their borders, and more stages than the ring
// has.
TEST(StagedAttention, EqualsTheCpuAroundTheBordersOfStages) {
  std::uint64_t seed = 600;
  const struct {
    std::int32_t head_dim;
    DataType dtype;
    std::int32_t stage;
  } kHeads[] = {{256, DataType::kFloat32, 8},
                {256, DataType::kFloat16, 16},
                {80, DataType::kFloat32, 24},
                {128, DataType::kBFloat16, 32}};
  for (const auto& heads : kHeads) {
    ASSERT_EQ(device::stage_tokens(layer_of(heads.head_dim, heads.dtype)), heads.stage);
    for (const std::int32_t count : {1, 2, 3, 4, 5}) {
      if (kReduced && count != 5) continue;
      for (const std::int32_t more : {-1, 0, 1}) {
        if (kReduced && more != 1) continue;
        simt::set_seed(++seed);
        const std::int32_t length = count * heads.stage + more;
        const std::int32_t page_size = seed % 2 == 0 ? 16 : 9;
        expect_exact({2, 1, heads.head_dim, page_size, heads.dtype, {0.1f, 0, 0.0f}, {{length, 1}}},
                     seed);
      }
    }
  }
}

// Windows that begin anywhere in a page, a stage and a chunk, for rows that see different keys.
TEST(StagedAttention, EqualsTheCpuForWindowsThatBeginAnywhere) {
  std::uint64_t seed = 700;
  std::mt19937_64 random(7);
  for (int i = 0; i < (kReduced ? 4 : 40); ++i) {
    simt::set_seed(++seed);
    const auto draw = [&](int below) { return static_cast<std::int32_t>(random() % below); };
    const std::int32_t new_tokens = 1 + draw(5);
    const std::int32_t group = 1 + draw(3);
    AttentionOptions options{0.2f, 1 + draw(170), draw(2) == 0 ? 2.5f : 0.0f};
    if (draw(3) == 0) options.chunk_size = 1 + draw(150);
    const DataType dtype = draw(2) == 0 ? DataType::kBFloat16 : DataType::kFloat32;
    const std::int32_t longest = kReduced ? 150 : 400;
    expect_exact({group,
                  1,
                  16 * (1 + draw(6)),
                  1 + draw(40),
                  dtype,
                  options,
                  {{new_tokens + draw(longest), new_tokens}}},
                 seed);
  }
}

// Random lengths of one to many sequences, decoding and verifying, under random schedules.
TEST(StagedAttention, EqualsTheCpuForRandomBatches) {
  std::uint64_t seed = 800;
  std::mt19937_64 random(8);
  for (int i = 0; i < (kReduced ? 3 : 12); ++i) {
    simt::set_seed(++seed);
    const auto draw = [&](int below) { return static_cast<std::int32_t>(random() % below); };
    std::vector<Span> spans;
    const int sequences = 1 + draw(kReduced ? 3 : 20);
    for (int sequence = 0; sequence < sequences; ++sequence) {
      const std::int32_t new_tokens = 1 + (i % 2 == 0 ? 0 : draw(4));
      spans.push_back({new_tokens + draw(kReduced ? 60 : 200), new_tokens});
    }
    const std::int32_t group = 1 + draw(8);
    const AttentionCase shape{
        group, 1, 64, i % 3 == 0 ? 64 : 16, DataType::kBFloat16, {0.125f, 0, 0.0f}, spans};
    expect_exact(shape, seed, 1);
  }
}

}  // namespace
}  // namespace glimprouter
