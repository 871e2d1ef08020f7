// The selection of a token on a device, against the CPU's: rows and parameters of every kind, rows
// made to mislead its sample, and how often it walks along a row.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "../golden_rows.hpp"
#include "emulator/grid.hpp"
#include "glimprouter/row_op.hpp"
#include "kernels/step/launch.cuh"
#include "lanes.hpp"

namespace glimprouter {
namespace {

using device::kListCapacity;
using simt::kReduced;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

struct Selected {
  std::int32_t token;
  std::uint32_t walks;
  std::uint32_t summing_walks;
};

struct SelectionShared {
  RowSums sums;
  device::SelectShared select;
};

// The part of the row kernel that selects, alone.
GR_KERNEL(device::kBlockThreads)
void selection_kernel(RowView row, const TileStatistics* tiles, RowRequest request,
                      Selected* selected) {
  GR_SHARED(SelectionShared, shared);
  const std::int64_t num_tiles = tiles_of(row.size);
  const float maximum = device::find_extremes(tiles, num_tiles).maximum;
  if (device::warp_of_thread() == 0) {
    const RowSums sums =
        device::merge_tiles(tiles, num_tiles, maximum, request.sampling.temperature);
    if (device::lane_of_thread() == 0) shared.sums = sums;
  }
  device::CandidateShared& candidates = shared.select.candidates;
  // An unfiltered draw has no candidates.
  if (threadIdx.x == 0) candidates.walks = candidates.summing_walks = 0;
  __syncthreads();
  const std::int32_t token = device::sample_token({row, tiles, shared.sums}, request.sampling,
                                                  request.random, shared.select);
  if (threadIdx.x == 0) *selected = {token, candidates.walks, candidates.summing_walks};
}

// A row in one of the three types, at some distance from a 16-byte boundary.
class Row {
 public:
  Row(const std::vector<float>& values, DataType dtype, std::size_t offset = 0)
      : size_(values.size()), dtype_(dtype), offset_(offset), words_(values.size() + 4) {
    const auto width = static_cast<std::size_t>(element_size(dtype));
    for (std::size_t i = 0; i < size_; ++i) {
      auto bits = std::bit_cast<std::uint32_t>(values[i]);
      if (dtype == DataType::kBFloat16) bits >>= 16;
      if (dtype == DataType::kFloat16) bits = golden::to_float16(values[i]);
      std::memcpy(data() + i * width, &bits, width);
    }
  }
  RowView view() { return {data(), dtype_, static_cast<std::int64_t>(size_)}; }

 private:
  char* data() {
    return reinterpret_cast<char*>(words_.data()) +
           offset_ * static_cast<std::size_t>(element_size(dtype_));
  }

  std::size_t size_;
  DataType dtype_;
  std::size_t offset_;
  std::vector<std::uint32_t> words_;
};

Selected select_on_device(const RowView& row, const RowRequest& request) {
  std::vector<TileStatistics> tiles(static_cast<std::size_t>(tiles_of(row.size)));
  std::uint32_t ticket = 0;
  RowResult result{};
  const LogitsView logits{static_cast<const char*>(row.data), row.dtype, 1, row.size, row.size};
  const EvaluateArguments arguments{
      {tiles.data(), &ticket}, logits, request, nullptr, &result, nullptr};
  EXPECT_EQ(device::launch_evaluate(arguments, {2, false}, nullptr), 0);
  Selected selected{};
  device::LaunchShape shape;
  shape.block = device::kBlockThreads;
  EXPECT_EQ(device::launch(selection_kernel, shape, row,
                           static_cast<const TileStatistics*>(tiles.data()), request, &selected),
            0);
  EXPECT_EQ(selected.token, result.token) << "the row kernel selects otherwise";
  return selected;
}

// Numbers of one test: reproducible, and the same on every machine.
class Numbers {
 public:
  explicit Numbers(std::uint64_t seed) : seed_(seed) {}
  std::uint64_t word() { return golden::random_word(seed_, ++count_); }
  double uniform() { return (static_cast<double>(word() >> 11) + 0.5) * 0x1p-53; }
  float normal() {
    const double radius = std::sqrt(-2.0 * std::log(uniform()));
    return static_cast<float>(radius * std::cos(6.283185307179586 * uniform()));
  }
  template <typename Value, std::size_t kCount>
  Value pick(const std::array<Value, kCount>& values) {
    return values[word() % kCount];
  }

 private:
  std::uint64_t seed_;
  std::uint64_t count_ = 0;
};

enum class Kind {
  kNormal1,
  kNormal2,
  kNormal6,
  kPeaked,
  kEqual,
  kTwoValues,
  kSteps,
  kZeros,
  kMostlyMasked,
  kOneFinite,
  kRising,
  kFalling,
  kPeriodic,
  kOneTile,
  kNeighbours,
  kLargest,
  kHeavyHead,
  kCount
};

float element(Kind kind, std::size_t i, std::size_t size, Numbers& numbers) {
  const auto place = static_cast<float>(i) / static_cast<float>(size);
  switch (kind) {
    case Kind::kNormal1:
      return numbers.normal();
    case Kind::kNormal2:
      return 2.5f * numbers.normal();
    case Kind::kNormal6:
      return 6.0f * numbers.normal();
    case Kind::kPeaked:
      return numbers.normal() + (numbers.word() % 400 == 0 ? 15.0f : 0.0f);
    case Kind::kEqual:
      return 1.5f;
    case Kind::kTwoValues:
      return numbers.word() % 7 == 0 ? 2.0f : 1.0f;
    case Kind::kSteps:
      return static_cast<float>(numbers.word() % 5) - 2.0f;
    case Kind::kZeros:
      return numbers.word() % 2 == 0 ? 0.0f : -0.0f;
    case Kind::kMostlyMasked:
      return numbers.word() % 8 == 0 ? numbers.normal() : kMinusInfinity;
    case Kind::kOneFinite:
      return i == size / 2 ? -3.0f : kMinusInfinity;
    case Kind::kRising:
      return 4.0f * place;
    case Kind::kFalling:
      return -4.0f * place;
    case Kind::kPeriodic:
      return i % 64 == 0 ? 3.0f : numbers.normal();
    case Kind::kOneTile:
      return (i / 2048 == 1 ? 4.0f : 0.0f) + numbers.normal();
    case Kind::kNeighbours:  // a few units in the last place apart
      return std::bit_cast<float>(0x3F800000u + static_cast<std::uint32_t>(numbers.word() % 9));
    case Kind::kLargest:
      return 3e38f * static_cast<float>(numbers.uniform() - 0.5);
    case Kind::kHeavyHead:
      return numbers.normal() + (i % 4000 == 7 ? 14.0f : 0.0f);
    case Kind::kCount:
      break;
  }
  return 0.0f;
}

std::vector<float> make_row(Kind kind, std::size_t size, Numbers& numbers) {
  std::vector<float> row(size);
  for (std::size_t i = 0; i < size; ++i) row[i] = element(kind, i, size, numbers);
  return row;
}

SamplingParameters make_parameters(Numbers& numbers) {
  constexpr std::array kTemperatures = {1e-4f, 1e-3f, 0.1f, 0.6f, 1.0f, 1.0f, 1.5f, 100.0f, 1e4f};
  constexpr std::array kTopP = {1e-6f, 0.1f, 0.5f, 0.9f, 0.95f, 0.99f, 0.9999999f, 1.0f, 1.0f};
  constexpr std::array kTopK = {0, 0, 0, 0, 1, 5, 50, 1500, 2560, 2561, 3000, 9000};
  constexpr std::array kMinP = {0.0f, 0.0f, 0.0f, 1e-6f, 0.05f, 0.5f, 1.0f};
  SamplingParameters sampling;
  sampling.temperature = numbers.pick(kTemperatures);
  sampling.top_p = numbers.pick(kTopP);
  sampling.top_k = numbers.pick(kTopK);
  sampling.min_p = numbers.pick(kMinP);
  return sampling;
}

std::string description(Kind kind, const RowView& row, const SamplingParameters& sampling) {
  return "kind " + std::to_string(static_cast<int>(kind)) + ", size " + std::to_string(row.size) +
         ", dtype " + std::to_string(static_cast<int>(row.dtype)) + ", temperature " +
         std::to_string(sampling.temperature) + ", top-p " + std::to_string(sampling.top_p) +
         ", top-k " + std::to_string(sampling.top_k) + ", min-p " + std::to_string(sampling.min_p);
}

// Gives how often the selection walked along the row.
std::uint32_t expect_the_cpu_token(Kind kind, const RowView& row, const RowRequest& request,
                                   std::uint32_t most_walks) {
  RowWorkspace workspace(row.size);
  const RowResult expected = evaluate_row(row, request, workspace, nullptr);
  const Selected selected = select_on_device(row, request);
  EXPECT_EQ(selected.token, expected.token) << description(kind, row, request.sampling);
  EXPECT_LE(selected.walks, most_walks) << description(kind, row, request.sampling);
  return selected.walks;
}

constexpr std::array kTypes = {DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16};

// Around the edges of tiles, of what a list holds, and of what is sampled.
TEST(Selection, TakesTheTokenOfTheCpu) {
  constexpr std::array<std::size_t, 12> kSizes = {1,    255,  2047, 2048, 2049,  2559,
                                                  2560, 2561, 4097, 6145, 12289, 30001};
  const int rounds = kReduced ? 1 : 8;
  for (int index = 0; index < static_cast<int>(Kind::kCount) * rounds; ++index) {
    Numbers numbers(static_cast<std::uint64_t>(1000 + index));
    const auto kind = static_cast<Kind>(index % static_cast<int>(Kind::kCount));
    const std::size_t size = numbers.pick(kSizes);
    if (kReduced && size > 5000) continue;
    Row row(make_row(kind, size, numbers), numbers.pick(kTypes), numbers.word() % 4);
    for (std::uint64_t draw = 0; draw < (kReduced ? 1 : 3); ++draw) {
      RowRequest request;
      request.sampling = make_parameters(numbers);
      request.random = {numbers.word(), draw, 1, 0};
      expect_the_cpu_token(kind, row.view(), request, 12);
    }
  }
}

// What is sampled differs from all the rest: the search has to find its way without.
TEST(Selection, FindsItsWayWhereTheSampleMisleads) {
  const std::size_t size = kReduced ? 4500 : 20000;
  std::uint32_t most = 0;
  for (const float sampled : {-6.0f, 6.0f, kMinusInfinity}) {
    Numbers numbers(7);
    std::vector<float> values = make_row(Kind::kNormal1, size, numbers);
    for (std::uint32_t i = 0; i < device::kSample; ++i) {
      const std::int32_t id = device::sampled_id(i, static_cast<std::int64_t>(size));
      values[static_cast<std::size_t>(id)] = sampled;
    }
    Row row(values, DataType::kBFloat16);
    for (const float top_p : {0.3f, 0.95f, 0.9999999f}) {
      for (const std::int32_t top_k : {0, 4000}) {
        for (std::uint64_t draw = 0; draw < (kReduced ? 1 : 4); ++draw) {
          RowRequest request;
          request.sampling = {1.0f, top_p, top_k, 0.0f};
          request.random = {draw, 2, 3, 0};
          most = std::max(most, expect_the_cpu_token(Kind::kNormal1, row.view(), request, 16));
        }
      }
    }
  }
  EXPECT_GT(most, 4u) << "no row misled the search";
}

// Time on a device is walks along the row, of which one that sums costs several others.
TEST(Selection, WalksAlongARowAFewTimes) {
  if (simt::kLane != simt::Lane::kPlain) GTEST_SKIP() << "counts what other tests run";
  constexpr std::size_t kVocabulary = 151936;
  struct Limits {
    SamplingParameters sampling;
    std::uint32_t peaked, wide, flat, equal;  // walks along rows of these kinds
  };
  const Limits modes[] = {
      {{0.6f, 0.95f, 0, 0.0f}, 1, 2, 4, 4}, {{0.6f, 0.8f, 0, 0.0f}, 1, 2, 4, 4},
      {{0.6f, 0.99f, 0, 0.0f}, 1, 4, 4, 4}, {{1.0f, 0.95f, 0, 0.0f}, 1, 4, 4, 4},
      {{0.6f, 1.0f, 20, 0.0f}, 1, 1, 1, 1}, {{0.6f, 0.95f, 50, 0.0f}, 1, 1, 1, 1},
      {{0.6f, 1.0f, 0, 0.05f}, 1, 1, 1, 5}, {{0.6f, 1.0f, 3000, 0.0f}, 4, 4, 4, 4},
  };
  for (const auto& [kind, most] :
       {std::pair{Kind::kHeavyHead, &Limits::peaked}, std::pair{Kind::kNormal6, &Limits::peaked},
        std::pair{Kind::kNormal2, &Limits::wide}, std::pair{Kind::kNormal1, &Limits::flat},
        std::pair{Kind::kEqual, &Limits::equal}}) {
    Numbers numbers(31);
    Row row(make_row(kind, kVocabulary, numbers), DataType::kBFloat16);
    for (const Limits& mode : modes) {
      RowRequest request;
      request.sampling = mode.sampling;
      request.random = {5, 1, 2, 0};
      expect_the_cpu_token(kind, row.view(), request, mode.*most);
      // A draw from so many that no list holds them follows a count, whose mass nobody knows ahead.
      const std::uint32_t summing = mode.sampling.top_k > static_cast<int>(kListCapacity) ? 2 : 1;
      EXPECT_LE(select_on_device(row.view(), request).summing_walks, summing)
          << description(kind, row.view(), mode.sampling);
    }
  }
}

}  // namespace
}  // namespace glimprouter
