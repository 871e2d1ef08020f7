// Which elements of a row are worth listing: a pivot taken from the maxima of its tiles, moved when
// the elements above it turn out to be too few or too many. Whatever the pivots, the token is the
// same.
#pragma once

#include <cstdint>

#include "arithmetic/numeric.hpp"
#include "kernels/select/candidates.cuh"

namespace glimprouter::device {

// What the listed candidates must reach; 0 where one does not matter.
struct Wanted {
  std::uint64_t count;
  Mass mass;

  GR_DEVICE bool met_by(const Totals& totals) const {
    return totals.count >= count && totals.mass >= mass;
  }
};

// So many elements of the row are at least so large, about.
struct RankedValue {
  double count;
  float value;
};

// The tiles by descending maxima: into shared.cut the maxima at rank `high` and at another one,
// which goes into shared.cut_rank: `rank`, or the next one after those whose mass reaches `mass` (>
// 0).
GR_DEVICE void rank_tiles(std::int32_t high, std::int32_t rank, Mass mass,
                          CandidateShared& shared) {
  const auto num_tiles = static_cast<std::int32_t>(tiles_of(shared.source.row.size));
  const TileStatistics* const tiles = shared.source.tiles;
  __syncthreads();
  if (threadIdx.x == 0) shared.cut_rank = mass > 0 ? num_tiles : rank;
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < num_tiles; i += kLanes) {
    shared.ranked.maximum[i] = tiles[i].maximum;
    shared.ranked.mass[i] =
        mass_of_sum(terms_of(tiles[i], shared.source.scale.maximum, shared.temperature).sampling);
  }
  __syncthreads();
  // At most two tiles a thread.
  std::int32_t ranks[2] = {0, 0};
  for (int k = 0; k < 2; ++k) {
    const std::int32_t i = static_cast<std::int32_t>(threadIdx.x) + k * kLanes;
    if (i >= num_tiles) continue;
    const float own = shared.ranked.maximum[i];
    Mass through = 0;
    GR_UNROLL_BY(4)
    for (std::int32_t j = 0; j < num_tiles; ++j) {
      const float other = shared.ranked.maximum[j];
      const bool counts = other > own || (other == own && j <= i);
      ranks[k] += counts ? 1 : 0;
      through += counts ? shared.ranked.mass[j] : 0;
    }
    if (ranks[k] == high) shared.cut[0] = own;
    if (through >= mass && through - shared.ranked.mass[i] < mass && ranks[k] < num_tiles) {
      shared.cut_rank = ranks[k] + 1;
    }
  }
  __syncthreads();
  for (int k = 0; k < 2; ++k) {
    const std::int32_t i = static_cast<std::int32_t>(threadIdx.x) + k * kLanes;
    if (i < num_tiles && ranks[k] == shared.cut_rank) shared.cut[1] = shared.ranked.maximum[i];
  }
  __syncthreads();
}

// Where the count of larger elements would be `count`, if its logarithm went on as between the two.
GR_DEVICE float pivot_at(const RankedValue& above, const RankedValue& below, double count) {
  const double distance = static_cast<double>(above.value) - static_cast<double>(below.value);
  const double steps = log_positive(below.count) - log_positive(above.count);
  double pivot = below.value;
  if (distance > 0 && steps > 0) {
    pivot -= (log_positive(count) - log_positive(below.count)) * distance / steps;
  }
  return pivot > static_cast<double>(kLowestFinite) ? static_cast<float>(pivot) : kLowestFinite;
}

// What a list aims at once the first one turned out too short: well in the capacity, then near it.
inline constexpr double kSecondCount = 1500;
inline constexpr double kThirdCount = 2300;
inline constexpr int kAttempts = 5;
inline constexpr float kNoPivot = kMinusInfinity;

// What is known of a row's counts before a list is made, and what the list aims at.
struct PivotGuess {
  RankedValue above;
  RankedValue below;
  double aim;
};

GR_DEVICE PivotGuess guess_from_maxima(std::int32_t tiles, const Wanted& wanted,
                                       CandidateShared& shared) {
  const auto count = static_cast<std::int32_t>(wanted.count);
  const std::int32_t high = 1 + tiles / 16;
  // Where few tiles hold the mass, the nucleus is their elements above all other tiles. As many
  // tiles as elements are wanted hold enough of them.
  const std::int32_t rank = count > 0 && count <= tiles ? count : tiles / 2;
  rank_tiles(high, rank, wanted.mass, shared);
  const auto reached = static_cast<double>(shared.cut_rank);
  PivotGuess guess{{static_cast<double>(high), shared.cut[0]}, {reached, shared.cut[1]}, reached};
  if (guess.above.count >= reached) guess.above = guess.below;
  if (count > tiles) guess.aim = 1.5 * count;
  return guess;
}

// The pivot to try after one that listed `totals`; kNoPivot where no list would do.
GR_DEVICE float next_pivot(PivotGuess& guess, float pivot, const Totals& totals, bool fits,
                           float temperature) {
  const RankedValue reached{static_cast<double>(totals.count) + 1, pivot};
  if (fits && guess.aim == kThirdCount && reached.count > 0.8 * kThirdCount) return kNoPivot;
  if (fits) {  // too few: deeper
    guess.aim = reached.count < kSecondCount / 2 ? kSecondCount : kThirdCount;
    if (reached.count > kThirdCount) return kNoPivot;
    if (reached.value < guess.below.value) guess.above = guess.below;
  } else {  // too many: between what was too few and this
    guess.aim = (guess.below.count + static_cast<double>(kListCapacity)) / 2;
    guess.above = guess.below;
  }
  guess.below = reached;
  const float next = pivot_at(guess.above, guess.below, guess.aim);
  if (!fits) return next > pivot ? next : kNoPivot;
  if (next < pivot) return next;
  const float deeper = pivot - temperature;  // nothing is known of how the counts grow
  return deeper > kLowestFinite ? deeper : kLowestFinite;
}

// Lists the candidates from the guess on, moving the pivot when they are not what is wanted. False
// when no list of the capacity would do.
GR_DEVICE bool list_from(PivotGuess guess, const Wanted& wanted, int attempts,
                         CandidateShared& shared) {
  float pivot = pivot_at(guess.above, guess.below, guess.aim);
  for (int attempt = 0; attempt < attempts; ++attempt) {
    const Totals totals = list_candidates(pivot, shared);
    const bool fits = totals.count <= kListCapacity;
    const bool met = wanted.met_by(totals) || pivot == kLowestFinite;
    if (fits && met) return true;
    if (!fits && !met) return false;
    pivot = next_pivot(guess, pivot, totals, fits, shared.temperature);
    if (!(pivot >= kLowestFinite)) return false;
  }
  return false;
}

// Lists what `wanted` asks for, with all larger candidates, where the list can hold it, and says so
// in shared.source.listed. lowest: no smaller element is asked for; finite.
GR_DEVICE void list_wanted(const Wanted wanted, float lowest, CandidateShared& shared) {
  const std::int64_t size = shared.source.row.size;
  const std::int64_t num_tiles = tiles_of(size);
  const bool all = size <= static_cast<std::int64_t>(kListCapacity) || lowest > kLowestFinite;
  bool listed = false;
  if (all || (num_tiles <= kMaxRankedTiles && wanted.count <= kListCapacity)) {
    PivotGuess guess{{1, lowest}, {1, lowest}, 1};
    if (!all) {
      guess = guess_from_maxima(static_cast<std::int32_t>(num_tiles), wanted, shared);
    }
    listed = list_from(guess, wanted, all ? 1 : kAttempts, shared);
  }
  __syncthreads();
  if (threadIdx.x == 0) shared.source.listed = listed;
  __syncthreads();
}

}  // namespace glimprouter::device
