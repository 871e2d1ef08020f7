// The elements of a row that top-k, top-p and min-p choose among, as keys that sort by descending
// logit and ascending id. Few of them lie in shared memory as a list, unsorted; where a row has too
// many, its tiles are read again whenever they are walked along. Sums over them are integers, so
// the order in which threads meet them does not matter.
#pragma once

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
inline constexpr std::int64_t kMaxRankedTiles = 512;
inline constexpr Candidate kLastCandidate = ~Candidate{0};

// A candidate, and the sums up to and with it.
struct Crossing {
  Candidate key;
  Mass mass;
  std::uint64_t count;
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

// The candidates of a row: listed, or every finite element.
struct CandidateSource {
  RowView row;
  const TileStatistics* tiles;
  MassScale scale;
  bool listed;
};

struct CandidateShared {
  CandidateSource source;
  float temperature;
  Candidate list[kListCapacity];
  Candidate last;       // of the list's range: no smaller key is listed
  std::uint32_t count;  // in the list
  union {
    struct {
      Mass mass[kBins];
      std::uint32_t count[kBins];
    } bins;
    struct {
      Mass mass[kMaxRankedTiles];
      float maximum[kMaxRankedTiles];
    } ranked;  // before there are bins
  };
  bool binned;  // the bins are those of the whole source
  Candidate found[kFew];
  Candidate sorted[kFew];
  std::uint32_t bin_count;  // candidates in the bin of the crossing
  bool crossed;
  Crossing crossing;
  std::int32_t cut_rank;
  float cut[2];
  BlockShared block;
};

// Visits the elements >= lowest of a row, tiles by warps. lowest is finite.
template <typename Visit>
GR_DEVICE void for_elements(const RowView& row, const TileStatistics* tiles, float lowest,
                            Visit visit) {
  const RowVectors vectors(row);
  for (std::int64_t tile = warp_of_thread(); tile < tiles_of(row.size); tile += kWarps) {
    if (tiles[tile].maximum < lowest) continue;
    for_tile_above(row, vectors, tile, lowest,
                   [&](float x, std::int32_t id) { visit(candidate_of(x, id)); });
  }
}

// Visits every candidate whose key lies in [lower, upper].
template <typename Visit>
GR_DEVICE void for_candidates(const CandidateShared& shared, Candidate lower, Candidate upper,
                              Visit visit) {
  const CandidateSource& source = shared.source;
  const auto visit_between = [&](Candidate key) {
    if (key >= lower && key <= upper) visit(key);
  };
  if (source.listed) {
    for (std::uint32_t i = threadIdx.x; i < shared.count; i += kBlockThreads) {
      visit_between(shared.list[i]);
    }
  } else {
    const float lowest = candidate_value(upper);  // of what lies behind the numbers: NaN or -inf
    for_elements(source.row, source.tiles, lowest > kLowestFinite ? lowest : kLowestFinite,
                 visit_between);
  }
}

struct Totals {
  std::uint64_t count;
  Mass mass;
};

// Lists the elements >= pivot. Their number may exceed the capacity: then the list is incomplete.
GR_DEVICE Totals list_candidates(float pivot, CandidateShared& shared) {
  const CandidateSource& source = shared.source;
  __syncthreads();
  if (threadIdx.x == 0) {
    shared.count = 0;
    shared.last = candidate_of(pivot, -1);  // the largest id: ties are included
    shared.binned = false;
  }
  __syncthreads();
  Mass mass = 0;
  for_elements(source.row, source.tiles, pivot, [&](Candidate key) {
    const std::uint32_t place = atomic_add_shared(&shared.count, 1u);
    if (place < kListCapacity) shared.list[place] = key;
    mass += source.scale.mass(candidate_value(key));
  });
  mass = block_prefix(mass, shared.block).total;
  return {shared.count, mass};
}

}  // namespace glimprouter::device
