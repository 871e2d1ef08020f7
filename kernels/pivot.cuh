// Which elements of a row are worth listing: a pivot taken from the maxima of its tiles, moved when
// the elements above it turn out to be too few or too many. Whatever the pivots, the token is the
// same.
#pragma once

#include <cstdint>

#include "candidates.cuh"
#include "glimprouter/numeric.hpp"

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

// The rank-th largest and the other-th largest of the tiles' maxima.
struct RankedMaxima {
  float first;
  float second;
};

GR_DEVICE RankedMaxima rank_maxima(std::int32_t first, std::int32_t second,
                                   CandidateShared& shared) {
  const CandidateSource& source = shared.source;
  const auto num_tiles = static_cast<std::int32_t>(tiles_of(source.row.size));
  __syncthreads();
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < num_tiles; i += kLanes) {
    shared.maxima[i] = source.tiles[i].maximum;
  }
  __syncthreads();
  for (auto i = static_cast<std::int32_t>(threadIdx.x); i < num_tiles; i += kLanes) {
    const float own = shared.maxima[i];
    std::int32_t rank = 1;
    for (std::int32_t j = 0; j < num_tiles; ++j) {
      rank += shared.maxima[j] > own || (shared.maxima[j] == own && j < i) ? 1 : 0;
    }
    if (rank == first) shared.ranked[0] = own;
    if (rank == second) shared.ranked[1] = own;
  }
  __syncthreads();
  return {shared.ranked[0], shared.ranked[1]};
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

inline constexpr double kFirstCount = 200;    // what the first list of a nucleus aims at
inline constexpr double kSecondCount = 2400;  // and the second: near the capacity
inline constexpr int kAttempts = 3;

// What is known of a row's counts before a list is made, and what the list aims at.
struct PivotGuess {
  RankedValue above;
  RankedValue below;
  double aim;
};

GR_DEVICE PivotGuess guess_from_maxima(std::int32_t tiles, std::int32_t count,
                                       CandidateShared& shared) {
  std::int32_t high = 1 + tiles / 16;
  std::int32_t low = 1 + tiles / 2;
  double aim = count > 0 ? 1.5 * count : kFirstCount;
  if (count > 0 && count <= tiles) {  // so many tiles have an element at least as large
    low = count;
    high = count > 1 ? 1 : low;
    aim = count;
  }
  const RankedMaxima maxima = rank_maxima(high, low, shared);
  return {
      {static_cast<double>(high), maxima.first}, {static_cast<double>(low), maxima.second}, aim};
}

// Lists the candidates from the guess on, moving the pivot when they are not what is wanted. False
// when no list of the capacity would do.
GR_DEVICE bool list_from(PivotGuess guess, const Wanted& wanted, CandidateShared& shared) {
  for (int attempt = 0; attempt < kAttempts; ++attempt) {
    const float pivot = pivot_at(guess.above, guess.below, guess.aim);
    const Totals totals = list_candidates(pivot, shared);
    const bool fits = totals.count <= kListCapacity;
    const bool met = wanted.met_by(totals) || pivot == kLowestFinite;
    if (fits && met) return true;
    if (!fits && !met) return false;
    const RankedValue reached{static_cast<double>(totals.count) + 1, pivot};
    if (fits && reached.count > kSecondCount) return false;
    if (!fits || reached.value < guess.below.value) guess.above = guess.below;
    guess.below = reached;
    guess.aim = fits ? kSecondCount : kSecondCount / 2;  // deeper, or between the two
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
      guess = guess_from_maxima(static_cast<std::int32_t>(num_tiles),
                                static_cast<std::int32_t>(wanted.count), shared);
    }
    listed = list_from(guess, wanted, shared);
  }
  __syncthreads();
  if (threadIdx.x == 0) shared.source.listed = listed;
  __syncthreads();
}

}  // namespace glimprouter::device
