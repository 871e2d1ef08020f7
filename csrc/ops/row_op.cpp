#include "glimprouter/row_op.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "arithmetic/element.hpp"
#include "arithmetic/fixed_mass.hpp"
#include "arithmetic/numeric.hpp"
#include "arithmetic/row_statistics.hpp"
#include "ops/row_workspace.hpp"
#include "ops/selection.hpp"
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace glimprouter {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The specified arithmetic rounds to nearest and keeps subnormal numbers, whatever the caller's
// thread has set (torch.set_flush_denormal, for one).
class DefaultFloatingPoint {
 public:
#if defined(__x86_64__)
  DefaultFloatingPoint() : saved_(_mm_getcsr()) { _mm_setcsr(0x1F80); }
  ~DefaultFloatingPoint() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#elif defined(__aarch64__)
  DefaultFloatingPoint() {
    asm volatile("mrs %0, fpcr" : "=r"(saved_));
    asm volatile("msr fpcr, %0" : : "r"(std::uint64_t{0}));
  }
  ~DefaultFloatingPoint() { asm volatile("msr fpcr, %0" : : "r"(saved_)); }

 private:
  std::uint64_t saved_;
#endif
};

bool contains_nan(const RowView& row) noexcept {
  for (std::int64_t i = 0; i < row.size; ++i) {
    const float x = element(row, i);
    if (x != x) return true;
  }
  return false;
}

// Also finds the row's maximum.
RowStatus row_status(const RowView& row, const RowWorkspace::Buffers& buffers,
                     std::int64_t num_tiles, float* maximum) noexcept {
  float largest = -kInfinity;
  bool undefined = false;
  for (std::int64_t i = 0; i < num_tiles; ++i) {
    const TileStatistics& tile = buffers.tiles[static_cast<std::size_t>(i)];
    undefined |= tile.sum != tile.sum || tile.maximum != tile.maximum;
    largest = tile.maximum > largest ? tile.maximum : largest;
  }
  *maximum = largest;
  if (largest == kInfinity) {
    return contains_nan(row) ? RowStatus::kNan : RowStatus::kPositiveInfinity;
  }
  if (undefined) return RowStatus::kNan;
  return largest == -kInfinity ? RowStatus::kAllMasked : RowStatus::kOk;
}

RowSums merge_tiles(const RowWorkspace::Buffers& buffers, std::int64_t num_tiles, float maximum,
                    float temperature) noexcept {
  TileTerms lanes[kMergeLanes];
  for (std::int64_t i = 0; i < num_tiles; ++i) {
    lanes[i % kMergeLanes].add(
        terms_of(buffers.tiles[static_cast<std::size_t>(i)], maximum, temperature));
  }
  for (std::int32_t width = kMergeLanes / 2; width >= 1; width /= 2) {
    for (std::int32_t lane = 0; lane < width; ++lane) lanes[lane].add(lanes[lane + width]);
  }
  return {lanes[0].sum, lanes[0].weighted, lanes[0].squared, lanes[0].sampling, num_tiles, maximum};
}

// Lowest id of the maximum, and the largest of the other elements.
void find_top_two(const RowView& row, const RowSums& sums, RowWorkspace::Buffers& buffers,
                  std::int32_t* argmax, float* second) noexcept {
  const CpuKernels& kernels = active_backend();
  std::int64_t winner = -1;
  float best = -kInfinity;
  for (std::int64_t i = 0; i < sums.num_tiles; ++i) {
    const float maximum = buffers.tiles[static_cast<std::size_t>(i)].maximum;
    if (winner < 0 && maximum == sums.maximum) {
      winner = i;
    } else {
      best = maximum > best ? maximum : best;
    }
  }
  std::int32_t count = 0;
  std::int32_t index = 0;
  float other = -kInfinity;
  const float* values = kernels.load_tile(row, winner, buffers.tile_scratch.data(), &count);
  kernels.top_two(values, count, sums.maximum, &index, &other);
  *argmax = static_cast<std::int32_t>(winner * kTileSize) + index;
  *second = other > best ? other : best;
}

double entropy_of_top_k(const RowView& row, std::int64_t k, const RowSums& sums,
                        RowWorkspace::Buffers& buffers) noexcept {
  const std::int64_t count = take_top_k(row, std::min(k, row.size), 1.0f, sums, buffers);
  TopMass top;
  for (std::int64_t i = 0; i < count; ++i) {
    top.add(buffers.values[static_cast<std::size_t>(i)] - sums.maximum,
            buffers.weights[static_cast<std::size_t>(i)]);
  }
  return top.entropy();
}

struct SummedRow {
  RowStatus status;
  RowSums sums{};
};

SummedRow sum_row(const RowView& row, const SamplingParameters& sampling, bool squared,
                  RowWorkspace::Buffers& buffers) noexcept {
  StatisticsRequest request;
  request.squared = squared;
  request.sampling = is_tempered(sampling) && !restricts_count(sampling, row.size);
  if (is_tempered(sampling)) request.inverse_temperature = 1.0f / sampling.temperature;
  const std::int64_t num_tiles = tiles_of(row.size);
  active_backend().row_statistics(row, request, buffers.tile_scratch.data(), buffers.tiles.data());
  float maximum = 0;
  const RowStatus status = row_status(row, buffers, num_tiles, &maximum);
  if (status != RowStatus::kOk) return {status, {}};
  return {status, merge_tiles(buffers, num_tiles, maximum, sampling.temperature)};
}

}  // namespace

RowWorkspace::Buffers::Buffers(std::int64_t vocabulary)
    : max_vocabulary(vocabulary),
      tiles(static_cast<std::size_t>(tiles_of(vocabulary))),
      tile_scratch(kTileSize),
      candidates(static_cast<std::size_t>(vocabulary)),
      sort_scratch(static_cast<std::size_t>(vocabulary)),
      values(static_cast<std::size_t>(std::max<std::int64_t>(vocabulary, kTileSize))),
      weights(static_cast<std::size_t>(std::max<std::int64_t>(vocabulary, kTileSize))) {}

RowWorkspace::RowWorkspace(std::int64_t max_vocabulary) {
  if (max_vocabulary > kMaxVocabulary) {
    throw std::invalid_argument("a vocabulary of " + std::to_string(max_vocabulary) +
                                " entries; at most " + std::to_string(kMaxVocabulary) +
                                " are supported");
  }
  buffers_ = std::make_unique<Buffers>(max_vocabulary);
}
RowWorkspace::~RowWorkspace() = default;
RowWorkspace::RowWorkspace(RowWorkspace&&) noexcept = default;
RowWorkspace& RowWorkspace::operator=(RowWorkspace&&) noexcept = default;
std::int64_t RowWorkspace::max_vocabulary() const { return buffers_->max_vocabulary; }

RowResult evaluate_row(const RowView& row, const RowRequest& request, RowWorkspace& workspace,
                       float* logprobs) noexcept {
  const DefaultFloatingPoint environment;
  if (const auto evaluate = active_backend().evaluate) return evaluate(row, request, logprobs);
  RowWorkspace::Buffers& buffers = workspace.buffers();
  const SummedRow summed = sum_row(row, request.sampling, request.want_varentropy, buffers);
  if (summed.status != RowStatus::kOk) {
    std::fill_n(logprobs, request.num_logprob_ids, kNotANumber);
    return invalid_result(summed.status);
  }
  const RowSums& sums = summed.sums;
  const RowQuotients quotients = quotients_of(sums);
  const RowScale scale{sums.maximum, quotients.log_sum};
  std::int32_t argmax = 0;
  float second = -kInfinity;
  find_top_two(row, sums, buffers, &argmax, &second);
  RowResult result = statistics_of(sums, quotients, argmax, second, request.want_varentropy);
  if (request.sampling.temperature > 0.0f) {
    result.token = sample_token(row, request.sampling, request.random, sums, buffers);
  }
  // The top-k form also where k covers the row: padding with -inf must not change a bit.
  if (request.entropy_top_k > 0) {
    result.entropy =
        static_cast<float>(entropy_of_top_k(row, request.entropy_top_k, sums, buffers));
  }
  result.logprob = scale.logprob(element(row, result.token));
  for (std::int32_t i = 0; i < request.num_logprob_ids; ++i) {
    logprobs[i] = scale.logprob(element(row, request.logprob_ids[i]));
  }
  return result;
}

std::int64_t nucleus(const RowView& row, const SamplingParameters& sampling,
                     RowWorkspace& workspace, std::int32_t* ids, float* probabilities) noexcept {
  const DefaultFloatingPoint environment;
  RowWorkspace::Buffers& buffers = workspace.buffers();
  const SummedRow summed = sum_row(row, sampling, false, buffers);
  if (summed.status != RowStatus::kOk) return 0;
  if (!(sampling.temperature > 0.0f)) {
    float second = 0;
    find_top_two(row, summed.sums, buffers, ids, &second);
    *probabilities = 1.0f;
    return 1;
  }
  const KeptCandidates kept = filter_candidates(row, sampling, summed.sums, buffers);
  for (std::int64_t i = 0; i < kept.count; ++i) {
    ids[i] = candidate_id(buffers.candidates[static_cast<std::size_t>(i)]);
    probabilities[i] = static_cast<float>(
        static_cast<double>(buffers.weights[static_cast<std::size_t>(i)]) / weight_of(kept.mass));
  }
  return kept.count;
}

}  // namespace glimprouter
