// The elements of a row that top-k, top-p and min-p choose among, as keys that sort by descending
// logit and ascending id. A walk along the row sums what lies before a window of keys, and sorts
// what lies in it into bins; where that is not too much it also lies in shared memory as a list,
// unsorted. Sums are integers, so the order in which threads meet the elements does not matter.
#pragma once

#include <bit>
#include <cstdint>

#include "arithmetic/fixed_mass.hpp"
#include "arithmetic/tile_statistics.hpp"
#include "kernels/base/block.cuh"
#include "kernels/base/device.cuh"
#include "kernels/row/merge.cuh"

namespace glimprouter::device {

inline constexpr std::uint32_t kListCapacity = 2560;
inline constexpr std::uint32_t kBins = 1024;
inline constexpr std::uint32_t kFew = kBlockThreads;  // sorted at once, one a thread
inline constexpr Candidate kLastCandidate = ~Candidate{0};

struct Totals {
  std::uint64_t count;
  Mass mass;
};

// A candidate, and the sums up to and with it.
struct Crossing {
  Candidate key;
  Totals through;
};

// From a logit to the mass of its candidate.
struct MassScale {
  float maximum;
  float inverse_temperature;

  GR_DEVICE float weight(float logit) const {
    return exp_nonpositive((logit - maximum) * inverse_temperature);
  }
  GR_DEVICE Mass mass(float logit) const { return mass_of(weight(logit)); }
};

// The candidates of a row: every finite element.
struct CandidateSource {
  RowView row;
  const TileStatistics* tiles;
  MassScale scale;

  GR_DEVICE Candidate first() const { return candidate_of(scale.maximum, 0); }
};

// The candidates with keys in [lower, upper], and the sums of all smaller keys.
struct Window {
  Candidate lower;
  Candidate upper;
  Totals before;
};

// The candidates that are not asked for lie behind a key. Mass: about that of all up to it.
struct Limit {
  Candidate key;
  Mass mass;
};

enum class Measure : std::uint8_t { kCount, kMass };

GR_DEVICE std::uint64_t measured(Measure measure, const Totals& totals) {
  return measure == Measure::kCount ? totals.count : totals.mass;
}

// What is looked for, and a mass that will be looked for behind it; 0: none, or not yet known.
struct Target {
  Measure measure;
  std::uint64_t value;
  Mass next;
};

struct CandidateShared {
  CandidateSource source;
  Limit limit;
  Target target;
  Candidate lower;  // the crossing lies in [lower, upper]
  Candidate upper;
  Candidate list[kListCapacity];  // or a sample of the row
  Window window;
  Window next;          // for the search that follows, with sums from an earlier walk
  std::uint32_t count;  // of the window
  bool listed;          // the list holds the window
  bool binned;          // the bins are those of the window
  struct {
    Mass mass[kBins];
    std::uint32_t count[kBins];
  } bins;
  Candidate found[kFew];
  Candidate sorted[kFew];
  std::uint32_t bin_count;  // candidates in the bin of the crossing
  bool crossed;
  Crossing crossing;
  std::uint32_t walks;  // along the row, and those that sum what lies before a window: for tests
  std::uint32_t summing_walks;
  BlockShared block;
};

GR_DEVICE Candidate last_above(float lowest) { return candidate_of(lowest, -1); }

// Calls take(x, id of x[0]) for quads of the row that hold all candidates with keys in
// [first, last]; tiles by warps.
template <typename Take>
GR_DEVICE void walk_row(Candidate first, Candidate last, CandidateShared& shared, Take take) {
  const CandidateSource& source = shared.source;
  const float highest = candidate_value(first);
  const ValueRange range{candidate_value(last), highest, highest < source.scale.maximum};
  if (threadIdx.x == 0) ++shared.walks;
  GR_NO_UNROLL
  for (auto tile = static_cast<std::int32_t>(warp_of_thread());
       tile < static_cast<std::int32_t>(tiles_of(source.row.size));
       tile += static_cast<std::int32_t>(kWarps)) {
    if (source.tiles[tile].maximum >= range.lowest) for_quads_in(source.row, tile, range, take);
  }
}

// Visits every candidate up to `last`, from the list where that holds them.
template <typename Visit>
GR_DEVICE void for_candidates(Candidate last, CandidateShared& shared, Visit visit) {
  const auto visit_up_to = [&](Candidate key) {
    if (key <= last) visit(key);
  };
  if (shared.listed && shared.window.lower == shared.source.first() &&
      last <= shared.window.upper) {
    for (std::uint32_t i = threadIdx.x; i < shared.count; i += kBlockThreads) {
      visit_up_to(shared.list[i]);
    }
  } else {
    walk_row(shared.source.first(), last, shared, [&](const float(&x)[kQuad], std::int32_t id) {
      GR_UNROLL
      for (std::int32_t i = 0; i < kQuad; ++i) visit_up_to(candidate_of(x[i], id + i));
    });
  }
}

// The bits of a key below which a bin does not look, for a range of keys [lower, upper].
GR_DEVICE std::uint32_t bin_shift(Candidate lower, Candidate upper) {
  // Not std::countl_zero: nvcc compiles it for a device without a word, to something else.
  const auto bits = static_cast<std::uint32_t>(64 - __clzll(static_cast<long long>(upper - lower)));
  constexpr auto kBits = static_cast<std::uint32_t>(std::countr_zero(kBins));
  return bits > kBits ? bits - kBits : 0;
}

// Count and mass of neighbouring candidates of one thread that fall into one bin, before they are
// added to it: a uniform row would have all threads at one address for every element.
struct BinRun {
  std::uint32_t bin = 0;
  std::uint32_t count = 0;
  Mass mass = 0;

  GR_DEVICE void flush(CandidateShared& shared) {
    if (count == 0) return;
    atomic_add_shared(&shared.bins.count[bin], count);
    atomic_add_shared(&shared.bins.mass[bin], mass);
    count = 0;
    mass = 0;
  }
  GR_DEVICE void add(std::uint32_t of_bin, Mass of_mass, CandidateShared& shared) {
    if (of_bin != bin) flush(shared);
    bin = of_bin;
    ++count;
    mass += of_mass;
  }
};

// By the whole block; a barrier follows.
GR_DEVICE void clear_bins(CandidateShared& shared) {
  __syncthreads();
  for (std::uint32_t bin = threadIdx.x; bin < kBins; bin += kBlockThreads) {
    shared.bins.mass[bin] = 0;
    shared.bins.count[bin] = 0;
  }
  __syncthreads();
}

// The bins of the listed candidates with keys in [lower, upper]. A barrier follows.
GR_DEVICE void bin_list(Candidate lower, Candidate upper, CandidateShared& shared) {
  clear_bins(shared);
  const std::uint32_t shift = bin_shift(lower, upper);
  BinRun run;
  for (std::uint32_t i = threadIdx.x; i < shared.count; i += kBlockThreads) {
    const Candidate key = shared.list[i];
    if (key < lower || key > upper) continue;
    run.add(static_cast<std::uint32_t>((key - lower) >> shift),
            shared.source.scale.mass(candidate_value(key)), shared);
  }
  run.flush(shared);
  __syncthreads();
}

// What one walk is for, besides the list.
struct WalkFor {
  bool sums;  // of the keys before the window, and before shared.next; else they are known
  bool bins;
};

// Of the masses those of the keys before another one.
GR_DEVICE Mass mass_before(Candidate key, const Candidate (&keys)[kQuad],
                           const Mass (&masses)[kQuad]) {
  Mass mass = 0;
  GR_UNROLL
  for (std::int32_t i = 0; i < kQuad; ++i) mass += keys[i] < key ? masses[i] : 0;
  return mass;
}

// Walks along the row for a window, with the sums before it where these are known. A barrier
// follows.
GR_DEVICE void walk_window(const Window& wanted, WalkFor purpose, CandidateShared& shared) {
  clear_bins(shared);
  if (threadIdx.x == 0) {
    shared.window = wanted;
    shared.count = 0;
  }
  __syncthreads();
  const std::uint32_t shift = bin_shift(wanted.lower, wanted.upper);
  std::uint32_t count_before = 0;
  Mass before = 0;
  Mass before_next = 0;
  BinRun run;
  const Candidate first = purpose.sums ? shared.source.first() : wanted.lower;
  walk_row(first, wanted.upper, shared, [&](const float(&x)[kQuad], std::int32_t id) {
    // From shared memory each time: the registers are needed for loads.
    const Candidate lower = shared.window.lower;
    const Candidate upper = shared.window.upper;
    Candidate keys[kQuad];
    std::uint32_t within = 0;
    std::uint32_t above = 0;
    GR_UNROLL
    for (std::int32_t i = 0; i < kQuad; ++i) {
      keys[i] = candidate_of(x[i], id + i);
      above += keys[i] < lower ? 1 : 0;
      within |= keys[i] >= lower && keys[i] <= upper ? 1u << i : 0;
    }
    Mass masses[kQuad] = {};
    if (purpose.bins && ((purpose.sums && above > 0) || within != 0)) {
      GR_UNROLL
      for (std::int32_t i = 0; i < kQuad; ++i) masses[i] = shared.source.scale.mass(x[i]);
    }
    if (purpose.sums) {
      count_before += above;
      before += mass_before(lower, keys, masses);
      before_next += mass_before(shared.next.lower, keys, masses);
    }
    if (within == 0) return;
    std::uint32_t place =
        atomic_add_shared(&shared.count, static_cast<std::uint32_t>(__popc(within)));
    GR_UNROLL
    for (std::int32_t i = 0; i < kQuad; ++i) {
      if ((within >> i & 1) == 0) continue;
      if (place < kListCapacity) shared.list[place] = keys[i];
      ++place;
      if (!purpose.bins) continue;
      run.add(static_cast<std::uint32_t>((keys[i] - lower) >> shift), masses[i], shared);
    }
  });
  run.flush(shared);
  Totals sums{0, 0};
  Mass next = 0;
  if (purpose.sums) {
    sums = {block_prefix(count_before, shared.block).total,
            block_prefix(before, shared.block).total};
    next = block_prefix(before_next, shared.block).total;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.listed = shared.count <= kListCapacity;
    shared.binned = purpose.bins;
    if (purpose.sums) {
      shared.window.before = sums;
      shared.next.before = {0, next};  // a search for a mass asks for no count
      ++shared.summing_walks;
    }
  }
  __syncthreads();
}

}  // namespace glimprouter::device
