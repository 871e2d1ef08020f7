// The fused kernel's own source, run by the emulator, against the CPU: golden hashes, and bit
// equality over vocabularies, types, strides, batches, grids and schedules.
#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "../golden_hash.hpp"
#include "../golden_rows.hpp"
#include "emulator/grid.hpp"
#include "glimprouter/row_op.hpp"
#include "kernels/step/launch.cuh"
#include "lanes.hpp"

namespace glimprouter {
namespace {

// Device memory of a batch, on the host.
struct Scratch {
  Scratch(std::int64_t rows, std::int64_t vocabulary)
      : tiles(static_cast<std::size_t>(rows * tiles_of(vocabulary))),
        tickets(static_cast<std::size_t>(rows)) {}
  DeviceRowWorkspace view() { return {tiles.data(), tickets.data()}; }

  std::vector<TileStatistics> tiles;
  std::vector<std::uint32_t> tickets;
};

// One row by the kernel.
RowResult evaluate_on_device(const RowView& row, const RowRequest& request, int processors,
                             float* logprobs) {
  Scratch scratch(1, row.size);
  RowResult result{};
  const LogitsView logits{static_cast<const char*>(row.data), row.dtype, 1, row.size, row.size};
  const EvaluateArguments arguments{scratch.view(), logits, request, nullptr, &result, logprobs};
  EXPECT_EQ(device::launch_evaluate(arguments, {processors, false}, nullptr), 0);
  EXPECT_EQ(scratch.tickets[0], 0u) << "the ticket must reset itself";
  return result;
}

std::uint64_t rows_to_test() {
  const char* rows = std::getenv("GLIMPROUTER_SIMT_GOLDEN_ROWS");
  return rows == nullptr ? 2000 : std::strtoull(rows, nullptr, 10);
}

using simt::kReduced;

TEST(RowKernel, GivesTheGoldenHashes) {
  const std::uint64_t rows = kReduced ? 24 : rows_to_test();
  const auto expected = golden::kExpected.find(rows);
  ASSERT_TRUE(kReduced || expected != golden::kExpected.end())
      << "no golden hash for " << rows << " rows";
  RowWorkspace workspace(151936);
  golden::Case test_case;
  std::vector<float> values;
  std::vector<std::uint32_t> aligned;
  golden::Fnv1a total;
  for (std::uint64_t index = 0; index < rows; ++index) {
    golden::fill_row(index, test_case, values);
    golden::fill_request(index, test_case);
    // The device reads elements where they are aligned: the offset moves by whole elements.
    const RowView& row = test_case.row;
    const std::size_t size = static_cast<std::size_t>(element_size(row.dtype));
    const std::size_t offset = (index & 3) * size;
    aligned.resize((static_cast<std::size_t>(row.size) * size + offset) / 4 + 1);
    char* const moved = reinterpret_cast<char*>(aligned.data()) + offset;
    std::memcpy(moved, row.data, static_cast<std::size_t>(row.size) * size);
    std::array<float, 3> logprobs{};
    const RowResult result = evaluate_on_device({moved, row.dtype, row.size}, test_case.request,
                                                static_cast<int>(1 + index % 5), logprobs.data());
    const std::uint64_t hash = golden::hash_of(result, logprobs);
    total.add(hash);
    std::array<float, 3> cpu_logprobs{};
    const RowResult cpu = evaluate_row(row, test_case.request, workspace, cpu_logprobs.data());
    ASSERT_EQ(hash, golden::hash_of(cpu, cpu_logprobs))
        << "row " << index << ": kind "
        << static_cast<int>(golden::row_kind(golden::random_word(index, 0) >> 32)) << ", V "
        << row.size << ", dtype " << index % 3 << ", mode " << golden::random_word(index, 2) % 10
        << ", token " << result.token << " against " << cpu.token << ", entropy " << result.entropy
        << " against " << cpu.entropy;
  }
  if (!kReduced) {
    EXPECT_EQ(total.value(), expected->second);
  }
}

// A batch with a stride, whose rows are asked different things; the CPU evaluates them one by one.
class Batch {
 public:
  Batch(std::uint64_t seed, std::int64_t rows, std::int64_t vocabulary, DataType dtype)
      : vocabulary_(vocabulary),
        stride_(vocabulary + static_cast<std::int64_t>(seed % 9)),
        dtype_(dtype),
        requests_(static_cast<std::size_t>(rows)),
        bytes_(static_cast<std::size_t>(rows * stride_ * element_size(dtype)) + 16) {
    golden::Case test_case;
    for (std::int64_t i = 0; i < rows; ++i) {
      const std::uint64_t index = seed * 64 + static_cast<std::uint64_t>(i);
      test_case.row.size = vocabulary;
      golden::fill_request(index, test_case);
      RowRequest& request = requests_[static_cast<std::size_t>(i)];
      request = test_case.request;
      request.logprob_ids = nullptr;
      request.num_logprob_ids = 0;
      fill(i, index);
    }
  }

  LogitsView logits() const {
    return {data(), dtype_, static_cast<std::int64_t>(requests_.size()), vocabulary_, stride_};
  }
  std::vector<RowRequest>& requests() { return requests_; }

  std::vector<RowResult> on_cpu() const {
    RowWorkspace workspace(vocabulary_);
    std::vector<RowResult> results;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      results.push_back(evaluate_row(logits().row(static_cast<std::int64_t>(i), vocabulary_),
                                     requests_[i], workspace, nullptr));
    }
    return results;
  }

  std::vector<RowResult> on_device(int processors) const {
    Scratch scratch(static_cast<std::int64_t>(requests_.size()), vocabulary_);
    std::vector<RowResult> results(requests_.size());
    const EvaluateArguments arguments{scratch.view(),   logits(),       {},
                                      requests_.data(), results.data(), nullptr};
    EXPECT_EQ(device::launch_evaluate(arguments, {processors, false}, nullptr), 0);
    return results;
  }

 private:
  // Off the 16-byte boundary by one element.
  const char* data() const { return bytes_.data() + element_size(dtype_); }

  void fill(std::int64_t i, std::uint64_t index) {
    const std::uint64_t word = golden::random_word(index, 0);
    const golden::RowKind kind = golden::row_kind(word >> 32);
    std::vector<float> values(static_cast<std::size_t>(vocabulary_));
    for (std::size_t k = 0; k < values.size(); ++k) {
      values[k] = golden::element(kind, word, golden::random_word(index, k + 16));
    }
    golden::finish_row(kind, word, values);
    char* target = bytes_.data() + element_size(dtype_) + i * stride_ * element_size(dtype_);
    for (const float value : values) {
      auto bits = std::bit_cast<std::uint32_t>(value);
      if (dtype_ == DataType::kBFloat16) bits >>= 16;
      if (dtype_ == DataType::kFloat16) bits = golden::to_float16(value);
      std::memcpy(target, &bits, static_cast<std::size_t>(element_size(dtype_)));
      target += element_size(dtype_);
    }
  }

  std::int64_t vocabulary_;
  std::int64_t stride_;
  DataType dtype_;
  std::vector<RowRequest> requests_;
  std::vector<char> bytes_;
};

void expect_equal(const std::vector<RowResult>& results, const std::vector<RowResult>& expected,
                  std::uint64_t seed) {
  ASSERT_EQ(results.size(), expected.size());
  for (std::size_t i = 0; i < results.size(); ++i) {
    EXPECT_EQ(golden::hash_of(results[i], {}), golden::hash_of(expected[i], {}))
        << "seed " << seed << ", row " << i << ": token " << results[i].token << " against "
        << expected[i].token << ", entropy " << results[i].entropy << " against "
        << expected[i].entropy;
  }
}

TEST(RowKernel, EqualsTheCpuForAnyVocabularyTypeGridAndSchedule) {
  std::uint64_t seed = 1;
  for (const std::int64_t vocabulary :
       {1, 7, 255, 256, 257, 2047, 2048, 2049, 6000, 33000, 50257}) {
    if (kReduced && vocabulary > 2100) continue;
    for (const DataType dtype : {DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16}) {
      if (kReduced && vocabulary > 257 && dtype != DataType::kBFloat16) continue;
      const Batch batch(++seed, 3, vocabulary, dtype);
      simt::set_seed(seed);
      const std::vector<RowResult> expected = batch.on_cpu();
      for (const int processors : {1, 100}) {
        if (processors > 1 && kReduced && tiles_of(vocabulary) == 1) continue;  // the same grid
        expect_equal(batch.on_device(processors), expected, seed);
      }
    }
  }
}

// The results may not depend on which block comes last.
TEST(RowKernel, EqualsTheCpuUnderManySchedulesAtFullVocabulary) {
  const Batch batch(77, 2, kReduced ? 6000 : 151936, DataType::kBFloat16);
  const std::vector<RowResult> expected = batch.on_cpu();
  for (const std::uint64_t seed : simt::seeds_to_try(kReduced ? 8 : 20)) {
    simt::set_seed(seed);
    expect_equal(batch.on_device(static_cast<int>(1 + seed * 7 % (kReduced ? 5 : 80))), expected,
                 seed);
  }
}

// Rows of which the selection must walk along many chunks: flat ones, and those of few values.
TEST(RowKernel, SelectsFromFlatRowsAsTheCpuDoes) {
  const std::int64_t vocabulary = kReduced ? 5000 : 40000;
  RowWorkspace workspace(vocabulary);
  std::vector<float> row(static_cast<std::size_t>(vocabulary));
  const SamplingParameters modes[] = {{1.0f, 0.9f, 0, 0.0f},    {0.7f, 1.0f, 3000, 0.0f},
                                      {1.0f, 0.5f, 5000, 0.0f}, {1.0f, 1.0f, 0, 0.5f},
                                      {1.5f, 0.999f, 0, 0.01f}, {1.0f, 1.0f, 0, 0.0f}};
  for (const int values : {1, 2, 3, 50}) {
    if (kReduced && values > 1 && values < 50) continue;
    for (std::size_t i = 0; i < row.size(); ++i) {
      row[i] = static_cast<float>(golden::random_word(5, i) % static_cast<unsigned>(values));
    }
    const RowView view{row.data(), DataType::kFloat32, vocabulary};
    for (std::uint64_t mode = 0; mode < std::size(modes); ++mode) {
      RowRequest request;
      request.sampling = modes[mode];
      request.random = {mode, 3, 4, 0};
      request.entropy_top_k = mode == 0 ? 2000 : 0;
      expect_equal({evaluate_on_device(view, request, 4, nullptr)},
                   {evaluate_row(view, request, workspace, nullptr)}, mode);
    }
  }
}

// A row of normal logits.
std::vector<float> normal_row(std::int64_t vocabulary, float scale, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> row(static_cast<std::size_t>(vocabulary));
  for (float& logit : row) logit = normal(generator);
  return row;
}

// From nuclei that the first list holds to those that no list does.
TEST(RowKernel, SelectsFromNucleiOfAnySize) {
  const std::int64_t vocabulary = kReduced ? 9000 : 151936;
  RowWorkspace workspace(vocabulary);
  for (const float scale : {0.5f, 1.5f, 2.5f, 6.0f}) {
    if (kReduced && scale != 0.5f && scale != 2.5f) continue;
    const std::vector<float> row = normal_row(vocabulary, scale, 11);
    const RowView view{row.data(), DataType::kFloat32, vocabulary};
    const SamplingParameters modes[] = {{0.6f, 0.95f, 0, 0.0f},  {0.6f, 0.99f, 0, 0.0f},
                                        {1.0f, 0.8f, 0, 0.0f},   {0.6f, 0.999f, 0, 1e-3f},
                                        {0.6f, 0.9f, 90, 0.0f},  {0.8f, 1.0f, 2000, 0.0f},
                                        {0.8f, 0.5f, 4000, 0.0f}};
    for (std::uint64_t mode = 0; mode < std::size(modes); ++mode) {
      RowRequest request;
      request.sampling = modes[mode];
      request.random = {mode, 5, 6, 0};
      expect_equal({evaluate_on_device(view, request, 3, nullptr)},
                   {evaluate_row(view, request, workspace, nullptr)}, mode);
    }
  }
}

// Of two neighbouring numbers the smaller one may weigh more: min-p ends at the first that weighs
// less, whatever comes behind it.
TEST(RowKernel, MinPEndsAtTheFirstWeightBelowIt) {
  std::vector<float> row(5000, -std::numeric_limits<float>::infinity());
  row[0] = 0.0f;
  row[1] = std::bit_cast<float>(0xBE9999B6u);
  row[2] = std::bit_cast<float>(0xBE9999B7u);
  const float larger = exp_nonpositive(row[2]);
  ASSERT_LT(exp_nonpositive(row[1]), larger) << "look for another pair";
  RowWorkspace workspace(5000);
  const RowView view{row.data(), DataType::kFloat32, 5000};
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    RowRequest request;
    request.sampling = {1.0f, seed % 2 == 0 ? 1.0f : 0.99f, 0, larger};
    request.random = {seed, 1, 2, 0};
    const RowResult result = evaluate_on_device(view, request, 3, nullptr);
    EXPECT_EQ(result.token, 0);
    expect_equal({result}, {evaluate_row(view, request, workspace, nullptr)}, seed);
  }
}

// More tiles than lie in shared memory while a row is finished, and more than are ranked.
TEST(RowKernel, EqualsTheCpuWithManyTiles) {
  if (kReduced) GTEST_SKIP() << "takes minutes under ThreadSanitizer";
  for (const std::int64_t vocabulary : {328000, 1050000}) {
    RowWorkspace workspace(vocabulary);
    const std::vector<float> row = normal_row(vocabulary, 2.5f, 12);
    const RowView view{row.data(), DataType::kFloat32, vocabulary};
    const SamplingParameters modes[] = {{0.0f, 1.0f, 0, 0.0f},
                                        {0.7f, 1.0f, 0, 0.0f},
                                        {0.5f, 0.9f, 0, 0.0f},
                                        {0.7f, 1.0f, 40, 0.0f}};
    for (std::uint64_t mode = 0; mode < std::size(modes); ++mode) {
      RowRequest request;
      request.sampling = modes[mode];
      request.random = {mode, 7, 8, 0};
      request.entropy_top_k = mode == 0 ? 20 : 0;
      expect_equal({evaluate_on_device(view, request, 40, nullptr)},
                   {evaluate_row(view, request, workspace, nullptr)}, mode);
    }
  }
}

TEST(RowKernel, AnEmptyBatchIsNoLaunch) {
  Scratch scratch(0, 100);
  const EvaluateArguments arguments{
      scratch.view(), {nullptr, DataType::kFloat32, 0, 100, 100}, {}, nullptr, nullptr, nullptr};
  EXPECT_EQ(device::launch_evaluate(arguments, {4, false}, nullptr), 0);
}

}  // namespace
}  // namespace glimprouter
