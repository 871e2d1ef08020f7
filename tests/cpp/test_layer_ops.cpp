// Norms and rotary embeddings of rows: against double, the same bits in any batch, layout, number
// of threads and on any processor.
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "glimprouter/thread_pool.hpp"
#include "golden_hash.hpp"
#include "made_values.hpp"
#include "ops/layer_ops.hpp"

namespace glimprouter {
namespace {

FloatTensor contiguous(const std::vector<float>& values, std::int64_t first, std::int64_t second,
                       std::int64_t third, std::int64_t size) {
  return {
      values.data(), {first, second, third, size}, {second * third * size, third * size, size, 1}};
}

std::vector<float> normed(const FloatTensor& source, const RmsNorm& norm) {
  std::vector<float> out(static_cast<std::size_t>(source.shape[0] * source.shape[1] *
                                                  source.shape[2] * source.shape[3]));
  rms_norm(source, norm, out.data());
  return out;
}

TEST(RmsNorm, WithinTwoUnitsOfDouble) {
  for (const std::int64_t size : {1, 2, 7, 8, 9, 31, 64, 100, 1023, 4096}) {
    const std::vector<float> rows = values_of(3 * size, 1);
    const std::vector<float> weight = values_of(size, 2);
    for (const float offset : {0.0f, 1.0f}) {
      const std::vector<float> out =
          normed(contiguous(rows, 1, 1, 3, size), {weight.data(), 1e-6, offset});
      for (std::int64_t row = 0; row < 3; ++row) {
        double sum = 0;
        for (std::int64_t i = 0; i < size; ++i) {
          const double x = rows[static_cast<std::size_t>(row * size + i)];
          sum += x * x;
        }
        const double scale = 1.0 / std::sqrt(sum / static_cast<double>(size) + 1e-6);
        for (std::int64_t i = 0; i < size; ++i) {
          const auto at = static_cast<std::size_t>(row * size + i);
          const double gain = static_cast<double>(weight[static_cast<std::size_t>(i)] + offset);
          const double want = rows[at] * scale * gain;
          EXPECT_NEAR(out[at], want, 0x1.0p-22 * std::abs(want)) << size << " " << row << " " << i;
        }
      }
    }
  }
}

TEST(RmsNorm, ARowHasTheSameBitsInAnyBatchLayoutAndNumberOfThreads) {
  constexpr std::int64_t kRows = 600;
  constexpr std::int64_t kSize = 131;
  const std::vector<float> rows = values_of(kRows * kSize, 3);
  const std::vector<float> weight = values_of(kSize, 4);
  const RmsNorm norm{weight.data(), 1e-5, 0.0f};
  const std::vector<float> want = normed(contiguous(rows, 1, 1, kRows, kSize), norm);
  set_num_threads(3);
  EXPECT_EQ(normed(contiguous(rows, 5, 12, 10, kSize), norm), want);
  set_num_threads(1);
  std::vector<float> turned(rows.size());  // [kSize, kRows]
  for (std::int64_t row = 0; row < kRows; ++row) {
    const std::vector<float> alone(rows.begin() + row * kSize, rows.begin() + (row + 1) * kSize);
    const std::vector<float> out = normed(contiguous(alone, 1, 1, 1, kSize), norm);
    for (std::int64_t i = 0; i < kSize; ++i) {
      EXPECT_EQ(out[static_cast<std::size_t>(i)], want[static_cast<std::size_t>(row * kSize + i)]);
      turned[static_cast<std::size_t>(i * kRows + row)] = alone[static_cast<std::size_t>(i)];
    }
  }
  EXPECT_EQ(normed({turned.data(), {1, 1, kRows, kSize}, {0, 0, 1, kRows}}, norm), want);
}

// [B, H, T, D] that lies as [B, T, H, D], as transformers has queries and keys.
TEST(RotateHeads, TheExpressionElementByElement) {
  constexpr std::int64_t kBatch = 2;
  constexpr std::int64_t kHeads = 3;
  constexpr std::int64_t kTokens = 5;
  constexpr std::int64_t kSize = 22;
  const std::vector<float> heads = values_of(kBatch * kHeads * kTokens * kSize, 5);
  for (const std::int64_t batch : {std::int64_t{1}, kBatch}) {
    const std::vector<float> cosine = values_of(batch * kTokens * kSize, 6);
    const std::vector<float> sine = values_of(batch * kTokens * kSize, 7);
    std::vector<float> out(heads.size());
    rotate_heads({heads.data(),
                  {kBatch, kHeads, kTokens, kSize},
                  {kTokens * kHeads * kSize, kSize, kHeads * kSize, 1}},
                 contiguous(cosine, 1, batch, kTokens, kSize),
                 contiguous(sine, 1, batch, kTokens, kSize), out.data());
    for (std::int64_t at = 0; at < static_cast<std::int64_t>(out.size()); ++at) {
      const std::int64_t i = at % kSize;
      const std::int64_t token = at / kSize % kTokens;
      const std::int64_t head = at / (kSize * kTokens) % kHeads;
      const std::int64_t b = at / (kSize * kTokens * kHeads);
      const float* const row = heads.data() + ((b * kTokens + token) * kHeads + head) * kSize;
      const auto angle =
          static_cast<std::size_t>(((batch == 1 ? 0 : b) * kTokens + token) * kSize + i);
      const float turned = i < kSize / 2 ? -row[i + kSize / 2] : row[i - kSize / 2];
      EXPECT_EQ(out[static_cast<std::size_t>(at)], row[i] * cosine[angle] + turned * sine[angle]);
    }
  }
}

TEST(RotateHeads, RefusesOtherShapes) {
  const std::vector<float> some = values_of(64, 8);
  std::vector<float> out(64);
  const FloatTensor heads = contiguous(some, 1, 2, 3, 4);
  const FloatTensor good = contiguous(some, 1, 1, 3, 4);
  for (const FloatTensor& bad : {contiguous(some, 1, 1, 2, 4), contiguous(some, 1, 1, 3, 2),
                                 contiguous(some, 1, 2, 3, 4), contiguous(some, 2, 1, 3, 4)}) {
    EXPECT_THROW(rotate_heads(heads, bad, good, out.data()), std::invalid_argument);
    EXPECT_THROW(rotate_heads(heads, good, bad, out.data()), std::invalid_argument);
  }
  const FloatTensor odd = contiguous(some, 1, 1, 3, 3);
  EXPECT_THROW(rotate_heads(odd, odd, odd, out.data()), std::invalid_argument);
}

// Pins the bits: on every processor and with every compiler.
TEST(LayerOps, GoldenBits) {
  golden::Fnv1a hash;
  for (const std::int64_t size : {2, 30, 64, 1022}) {
    const std::vector<float> rows = values_of(16 * size, 9);
    const std::vector<float> weight = values_of(size, 10);
    const RmsNorm norm{weight.data(), 1e-6, 1.0f};
    for (const float value : normed(contiguous(rows, 1, 1, 16, size), norm)) hash.add(value);
    std::vector<float> out(rows.size());
    const FloatTensor angles = contiguous(rows, 1, 1, 4, size);
    rotate_heads(contiguous(rows, 1, 4, 4, size), angles, angles, out.data());
    for (const float value : out) hash.add(value);
  }
  EXPECT_EQ(hash.value(), 0xED3B6B067026604Au);
}

}  // namespace
}  // namespace glimprouter
