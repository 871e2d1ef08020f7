#include "ops/selection.hpp"

#include <algorithm>
#include <functional>

#include "arithmetic/numeric.hpp"
#include "arithmetic/random.hpp"
#include "arithmetic/row_statistics.hpp"

namespace glimprouter {
namespace {

// Below this vocabulary every element is a candidate at once: a pivot would save nothing.
constexpr std::int64_t kSmallVocabulary = 1024;
constexpr std::int64_t kComparisonSortLimit = 256;

// All elements >= pivot, in id order. A tile whose maximum is lower is not read.
std::int64_t collect_candidates(const RowView& row, float pivot, const RowSums& sums,
                                RowWorkspace::Buffers& buffers) noexcept {
  const CpuKernels& kernels = active_backend();
  std::int64_t count = 0;
  for (std::int64_t tile = 0; tile < sums.num_tiles; ++tile) {
    if (buffers.tiles[static_cast<std::size_t>(tile)].maximum < pivot) continue;
    std::int32_t elements = 0;
    const float* values = kernels.load_tile(row, tile, buffers.tile_scratch.data(), &elements);
    count += kernels.collect(values, elements, pivot, static_cast<std::int32_t>(tile * kTileSize),
                             buffers.candidates.data() + count);
  }
  return count;
}

// Candidates arrive in id order, so a stable sort by the logit alone leaves ties by lower id: three
// counting passes over 11 bits each, whatever the values (a uniform row is no worse than another).
void sort_candidates(std::int64_t count, RowWorkspace::Buffers& buffers) noexcept {
  Candidate* source = buffers.candidates.data();
  if (count <= kComparisonSortLimit) {
    std::sort(source, source + count);
    return;
  }
  Candidate* target = buffers.sort_scratch.data();
  constexpr int kBits = 11;
  for (int shift = 32; shift < 64; shift += kBits) {
    std::uint32_t offsets[(1 << kBits) + 1] = {};
    const auto digit = [shift](Candidate c) { return (c >> shift) & ((1u << kBits) - 1); };
    for (std::int64_t i = 0; i < count; ++i) ++offsets[digit(source[i]) + 1];
    for (int d = 0; d < 1 << kBits; ++d) offsets[d + 1] += offsets[d];
    for (std::int64_t i = 0; i < count; ++i) target[offsets[digit(source[i])]++] = source[i];
    std::swap(source, target);
  }
  // An odd number of passes ends in the scratch memory.
  std::copy(source, source + count, buffers.candidates.data());
}

void weigh_candidates(std::int64_t count, float inverse_temperature, const RowSums& sums,
                      RowWorkspace::Buffers& buffers) noexcept {
  for (std::int64_t i = 0; i < count; ++i) {
    buffers.values[static_cast<std::size_t>(i)] =
        candidate_value(buffers.candidates[static_cast<std::size_t>(i)]);
  }
  active_backend().exponentials(buffers.values.data(), count, sums.maximum, inverse_temperature,
                                buffers.weights.data());
}

float smallest_tile_maximum(const RowSums& sums, const RowWorkspace::Buffers& buffers) noexcept {
  float smallest = sums.maximum;
  for (std::int64_t tile = 0; tile < sums.num_tiles; ++tile) {
    const float maximum = buffers.tiles[static_cast<std::size_t>(tile)].maximum;
    smallest = maximum < smallest ? maximum : smallest;
  }
  return smallest > kLowestFinite ? smallest : kLowestFinite;
}

float kth_tile_maximum(std::int64_t k, const RowSums& sums,
                       RowWorkspace::Buffers& buffers) noexcept {
  for (std::int64_t tile = 0; tile < sums.num_tiles; ++tile) {
    buffers.values[static_cast<std::size_t>(tile)] =
        buffers.tiles[static_cast<std::size_t>(tile)].maximum;
  }
  const auto begin = buffers.values.begin();
  std::nth_element(begin, begin + (k - 1), begin + sums.num_tiles, std::greater<>());
  return std::max(buffers.values[static_cast<std::size_t>(k - 1)], kLowestFinite);
}

// The first count whose mass reaches `target`, or `count` + 1 when the candidates do not.
std::int64_t prefix_with_mass(std::int64_t count, Mass target,
                              const RowWorkspace::Buffers& buffers) noexcept {
  Mass mass = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    mass += mass_of(buffers.weights[static_cast<std::size_t>(i)]);
    if (mass >= target) return i + 1;
  }
  return count + 1;
}

// top-p without top-k. A pivot is trusted only with the certificate that the mass above it reaches
// p: first pivots near the smallest tile maximum, then one below which the whole row could not hold
// 1 - p of the mass, then everything.
std::int64_t take_top_p(const RowView& row, const SamplingParameters& sampling, const RowSums& sums,
                        RowWorkspace::Buffers& buffers) noexcept {
  const Mass target = mass_target(sampling.top_p, mass_of_sum(sums.sampling));
  const double rest = std::max(1.0 - static_cast<double>(sampling.top_p), 1e-12) * sums.sampling;
  const double certain = static_cast<double>(sums.maximum) +
                         static_cast<double>(sampling.temperature) *
                             (log_positive(rest / static_cast<double>(row.size)) - 1e-3);
  const double start = std::max(certain, static_cast<double>(smallest_tile_maximum(sums, buffers)));
  constexpr double kSteps[] = {0.3, 0.65, 1.0};
  const float inverse_temperature = 1.0f / sampling.temperature;
  for (int attempt = row.size <= kSmallVocabulary ? 3 : 0; attempt <= 3; ++attempt) {
    float pivot = kLowestFinite;
    if (attempt < 3) {
      const double guess = start + (certain - start) * kSteps[attempt];
      pivot = static_cast<float>(std::max(guess, static_cast<double>(kLowestFinite)));
    }
    const std::int64_t count = collect_candidates(row, pivot, sums, buffers);
    sort_candidates(count, buffers);
    weigh_candidates(count, inverse_temperature, sums, buffers);
    const std::int64_t kept = prefix_with_mass(count, target, buffers);
    if (kept <= count) return kept;
    if (attempt == 3) return count;  // p of the tiles' total is more than the elements' own mass
  }
  return 0;
}

std::int64_t take_above_min_p(const RowView& row, const SamplingParameters& sampling,
                              const RowSums& sums, RowWorkspace::Buffers& buffers) noexcept {
  const double depth = static_cast<double>(sampling.temperature) *
                       (log_positive(static_cast<double>(sampling.min_p)) - 1e-3);
  const double pivot =
      std::max(static_cast<double>(sums.maximum) + depth, static_cast<double>(kLowestFinite));
  const std::int64_t count = collect_candidates(row, static_cast<float>(pivot), sums, buffers);
  sort_candidates(count, buffers);
  weigh_candidates(count, 1.0f / sampling.temperature, sums, buffers);
  return count;
}

struct TileDraw {
  std::int64_t tile;
  double fraction;  // of the tile's mass, at which the draw lies
};

// By the masses of the tiles, in index order.
TileDraw draw_tile(const SamplingParameters& sampling, double uniform, const RowSums& sums,
                   const RowWorkspace::Buffers& buffers) noexcept {
  const auto mass_of_tile = [&](std::int64_t tile) {
    return mass_of_sum(
        terms_of(buffers.tiles[static_cast<std::size_t>(tile)], sums.maximum, sampling.temperature)
            .sampling);
  };
  Mass total = 0;
  for (std::int64_t tile = 0; tile < sums.num_tiles; ++tile) total += mass_of_tile(tile);
  const Mass unit = drawn_unit(uniform, total);
  Mass before = 0;
  for (std::int64_t tile = 0;; ++tile) {
    const Mass mass = mass_of_tile(tile);
    if (before + mass > unit) {
      return {tile, static_cast<double>(unit - before) / static_cast<double>(mass)};
    }
    before += mass;
  }
}

std::int32_t sample_unfiltered(const RowView& row, const SamplingParameters& sampling,
                               double uniform, const RowSums& sums,
                               RowWorkspace::Buffers& buffers) noexcept {
  const TileDraw draw = draw_tile(sampling, uniform, sums, buffers);
  const CpuKernels& kernels = active_backend();
  std::int32_t count = 0;
  const float* values = kernels.load_tile(row, draw.tile, buffers.tile_scratch.data(), &count);
  kernels.exponentials(values, count, buffers.tiles[static_cast<std::size_t>(draw.tile)].maximum,
                       1.0f / sampling.temperature, buffers.weights.data());
  Mass total = 0;
  for (std::int32_t i = 0; i < count; ++i) {
    total += mass_of(buffers.weights[static_cast<std::size_t>(i)]);
  }
  const Mass unit = drawn_unit(draw.fraction, total);
  std::int32_t index = 0;
  for (Mass prefix = 0;; ++index) {
    prefix += mass_of(buffers.weights[static_cast<std::size_t>(index)]);
    if (prefix > unit) break;
  }
  return static_cast<std::int32_t>(draw.tile * kTileSize) + index;
}

}  // namespace

std::int64_t take_top_k(const RowView& row, std::int64_t k, float inverse_temperature,
                        const RowSums& sums, RowWorkspace::Buffers& buffers) noexcept {
  constexpr double kSteps[] = {1.0, 1.4, 2.0};
  const bool few_tiles = k > sums.num_tiles;
  const float smallest = smallest_tile_maximum(sums, buffers);
  std::int64_t count = 0;
  for (int attempt = row.size <= kSmallVocabulary || 8 * k > row.size ? 3 : 0; attempt <= 3;
       ++attempt) {
    float pivot = kLowestFinite;
    if (attempt < 3 && !few_tiles) {
      pivot = kth_tile_maximum(k, sums, buffers);  // k tiles hold an element at least this large
    } else if (attempt < 3) {
      const double span = static_cast<double>(sums.maximum) - static_cast<double>(smallest);
      const double guess = static_cast<double>(sums.maximum) - span * kSteps[attempt];
      pivot = static_cast<float>(std::max(guess, static_cast<double>(kLowestFinite)));
    }
    count = collect_candidates(row, pivot, sums, buffers);
    if (count >= k || pivot == kLowestFinite) break;
  }
  if (count > k) {
    const auto begin = buffers.candidates.begin();
    std::nth_element(begin, begin + k, begin + count);
    count = k;
    std::sort(begin, begin + count);
  } else {
    sort_candidates(count, buffers);
  }
  weigh_candidates(count, inverse_temperature, sums, buffers);
  return count;
}

KeptCandidates filter_candidates(const RowView& row, const SamplingParameters& sampling,
                                 const RowSums& sums, RowWorkspace::Buffers& buffers) noexcept {
  const bool limits_mass = sampling.top_p < 1.0f;
  std::int64_t count = 0;
  if (restricts_count(sampling, row.size)) {
    count = take_top_k(row, sampling.top_k, 1.0f / sampling.temperature, sums, buffers);
    if (limits_mass) {
      Mass total = 0;
      for (std::int64_t i = 0; i < count; ++i) {
        total += mass_of(buffers.weights[static_cast<std::size_t>(i)]);
      }
      count = prefix_with_mass(count, mass_target(sampling.top_p, total), buffers);
    }
  } else if (limits_mass) {
    count = take_top_p(row, sampling, sums, buffers);
  } else if (sampling.min_p > 0.0f) {
    count = take_above_min_p(row, sampling, sums, buffers);
  } else {
    count = take_top_k(row, row.size, 1.0f / sampling.temperature, sums, buffers);
  }
  KeptCandidates kept{0, 0};
  for (std::int64_t i = 0; i < count; ++i) {
    const float weight = buffers.weights[static_cast<std::size_t>(i)];
    if (weight < sampling.min_p) break;
    const Mass mass = mass_of(weight);
    if (mass > 0) kept.count = i + 1;  // what has none at the end can never be drawn
    kept.mass += mass;
  }
  return kept;
}

std::int32_t sample_token(const RowView& row, const SamplingParameters& sampling,
                          const RandomKey& random, const RowSums& sums,
                          RowWorkspace::Buffers& buffers) noexcept {
  const double uniform = uniform_double(random);
  if (!restricts_count(sampling, row.size) && !(sampling.top_p < 1.0f) &&
      !(sampling.min_p > 0.0f)) {
    return sample_unfiltered(row, sampling, uniform, sums, buffers);
  }
  const KeptCandidates kept = filter_candidates(row, sampling, sums, buffers);
  const Mass unit = drawn_unit(uniform, kept.mass);
  std::int64_t chosen = 0;
  for (Mass prefix = 0;; ++chosen) {
    prefix += mass_of(buffers.weights[static_cast<std::size_t>(chosen)]);
    if (prefix > unit) break;
  }
  return candidate_id(buffers.candidates[static_cast<std::size_t>(chosen)]);
}

}  // namespace glimprouter
