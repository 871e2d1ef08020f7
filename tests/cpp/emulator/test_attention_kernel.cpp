// Attention over pages by the kernels' own source, run by the emulator: the bits of the CPU,
// for any batch and schedule, and either way of loading; and within a bound of a softmax in double
// precision.
#include <gtest/gtest.h>

#include <vector>

#include "attention_scene.hpp"

namespace glimprouter {
namespace {

using simt::AttentionCase;
using simt::expect_exact;
using simt::kReduced;
using simt::Span;

constexpr DataType kTypes[] = {DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16};

TEST(AttentionKernel, EqualsTheCpuForHeadSizesTypesAndPageSizes) {
  std::uint64_t seed = 0;
  for (const std::int32_t head_dim : {16, 32, 64, 80, 96, 128, 256}) {
    if (kReduced && head_dim != 64 && head_dim != 96) continue;
    for (const DataType dtype : kTypes) {
      for (const std::int32_t page_size : {1, 5, 16, 64, 256}) {
        if (kReduced && page_size != 5 && page_size != 256) continue;
        simt::set_seed(++seed);
        const AttentionCase shape{
            4, 2, head_dim, page_size, dtype, {0.2f, 0, 0.0f}, {{37, 1}, {page_size, 1}}};
        expect_exact(shape, seed);
      }
    }
  }
}

// Lengths around the borders of pages and chunks, one and several of them.
TEST(AttentionKernel, EqualsTheCpuForAnyLength) {
  std::uint64_t seed = 100;
  for (const std::int32_t length : {1, 2, 15, 16, 17, 255, 256, 257, 511, 513, 1500, 5000}) {
    if (kReduced && length > 600) continue;
    for (const DataType dtype : {DataType::kFloat32, DataType::kBFloat16}) {
      simt::set_seed(++seed);
      expect_exact({2, 1, 32, 16, dtype, {0.17f, 0, 0.0f}, {{length, 1}}}, seed);
    }
    expect_exact({3, 1, 48, 24, DataType::kFloat16, {0.17f, 0, 0.0f}, {{length, 1}}}, seed);
  }
}

// Several tokens, groups and rows that fill blocks unevenly, windows within and over chunks, caps.
TEST(AttentionKernel, EqualsTheCpuForGroupsWindowsAndCaps) {
  std::uint64_t seed = 200;
  for (const std::int32_t group : {1, 3, 4, 7, 8}) {
    for (const std::int32_t window : {0, 1, 20, 300}) {
      if (kReduced && (group == 4 || group == 8 || window == 20 || window == 1)) continue;
      simt::set_seed(++seed);
      std::vector<Span> spans{{140, 1}, {3, 2}};
      if (!kReduced) {
        spans = {{700, 1}, {3, 3}, {258, 1 + static_cast<std::int32_t>(seed % 4)}};
      }
      const AttentionCase shape{2 * group,
                                2,
                                32,
                                seed % 2 == 0 ? 16 : 7,
                                kTypes[seed % 3],
                                {0.3f, window, seed % 4 == 0 ? 2.5f : 0.0f},
                                spans};
      expect_exact(shape, seed);
    }
  }
}

// Several blocks a sequence, and more sequences than a warp looks at together (but for fewer where
// each thread of a launch is followed).
TEST(AttentionKernel, EqualsTheCpuForManySequences) {
  std::uint64_t seed = 300;
  for (const std::int32_t group : {3, 12, 16}) {
    std::vector<Span> spans;
    for (std::int32_t i = 0; i < (kReduced ? 9 : 70); ++i) {
      spans.push_back({4 + i % 5, 1 + (group == 3 ? i % 4 : 0)});
    }
    expect_exact({group, 1, 16, 8, DataType::kFloat32, {0.3f, 0, 0.0f}, spans}, ++seed);
  }
}

// Chunks within a page, over pages and over chunks of the kernel; with a window, too. Tokens of one
// pass on both sides of a cut.
TEST(AttentionKernel, EqualsTheCpuInChunks) {
  std::uint64_t seed = 500;
  for (const std::int32_t chunk_size : {1, 6, 40, 150, 1000}) {
    if (kReduced && chunk_size == 1000) continue;
    for (const std::int32_t window : {0, 30}) {
      simt::set_seed(++seed);
      AttentionOptions options{0.3f, window, 0.0f};
      options.chunk_size = chunk_size;
      const std::int32_t length = kReduced ? 153 : 303;
      expect_exact({4, 2, 32, 16, kTypes[seed % 3], options, {{length, 5}, {7, 3}}}, seed);
    }
  }
}

// Sinks above and below all scores, and none; with one chunk of keys and with several.
TEST(AttentionKernel, EqualsTheCpuWithSinks) {
  std::uint64_t seed = 300;
  for (const DataType dtype : kTypes) {
    for (const double shift : {-100.0, 0.0, 60.0}) {
      simt::set_seed(++seed);
      std::vector<std::uint32_t> bits;
      for (int head = 0; head < 6; ++head) {
        bits.push_back(simt::exact_bits(simt::as_type(shift + head, dtype), dtype));
      }
      std::vector<std::byte> scores;
      for (const std::uint32_t score : bits) {
        const auto* const first = reinterpret_cast<const std::byte*>(&score);
        scores.insert(scores.end(), first, first + element_size(dtype));
      }
      AttentionOptions options{0.3f, seed % 2 == 0 ? 20 : 0, 0.0f};
      options.sinks = {scores.data(), dtype, 6};
      expect_exact({6, 2, 32, 16, dtype, options, {{kReduced ? 140 : 400, 2}, {3, 3}}}, seed);
    }
  }
}

// Values narrower and wider than keys, latent ones within them; decoding, and several tokens.
TEST(AttentionKernel, EqualsTheCpuForValuesOfAnotherSize) {
  const struct {
    std::int32_t kv_heads, head_dim, value_dim;
    bool latent;
  } kShapes[] = {{2, 48, 32, false}, {2, 16, 80, false}, {1, 80, 64, true}, {1, 576, 512, true}};
  std::uint64_t seed = 400;
  for (const auto& shape : kShapes) {
    for (const DataType dtype : kTypes) {
      if (kReduced && shape.head_dim > 100 && dtype != DataType::kBFloat16) continue;
      simt::set_seed(++seed);
      expect_exact({4,
                    shape.kv_heads,
                    shape.head_dim,
                    16,
                    dtype,
                    {0.1f, seed % 2 == 0 ? 20 : 0, 0.0f},
                    {{kReduced ? 140 : 300, 1}, {9, 3}},
                    shape.value_dim,
                    shape.latent},
                   seed);
    }
  }
}

// The grid is larger than the batch needs, the order of blocks is any.
TEST(AttentionKernel, EqualsTheCpuUnderManySchedules) {
  const std::vector<Span> spans =
      kReduced ? std::vector<Span>{{140, 1}} : std::vector<Span>{{600, 2}, {300, 1}};
  for (const std::uint64_t seed : simt::seeds_to_try(kReduced ? 8 : 20)) {
    simt::set_seed(seed);
    expect_exact({4, 1, 64, 16, DataType::kBFloat16, {0.125f, 0, 0.0f}, spans}, seed, 3);
  }
}

TEST(AttentionKernel, AnEmptyBatchIsNoLaunch) {
  AttentionArguments arguments{};
  arguments.pages.layer = KvLayout::make(1, 1, 16, 16, DataType::kFloat32).layer(0);
  arguments.heads = 1;
  EXPECT_EQ(device::launch_attention(arguments, {}, nullptr), 0);
}

}  // namespace
}  // namespace glimprouter
