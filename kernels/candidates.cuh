// The elements of a row in descending order, chunk by chunk: what top-k, top-p and min-p walk
// along.
//
// A chunk holds at most 1024 candidates in shared memory, sorted. The first is cut by a pivot taken
// from the tile maxima, so that a peaked row is read in a few tiles only; where that holds too
// many, and for every further chunk, a radix descent over the 64-bit keys finds how far a chunk
// reaches: at most six passes over the row, also when all elements are equal.
#pragma once

#include <cstdint>

#include "block.cuh"
#include "device.cuh"
#include "glimprouter/tile_statistics.hpp"
#include "row_tile.cuh"

namespace glimprouter::device {

inline constexpr std::uint32_t kChunkCapacity = 1024;
inline constexpr std::uint32_t kRadixBits = 11;
inline constexpr std::uint32_t kRadixBins = 1u << kRadixBits;
inline constexpr std::uint32_t kRankSortLimit = 256;
inline constexpr Candidate kLastCandidate = ~Candidate{0};

struct CandidateShared {
  Candidate keys[kChunkCapacity];
  union {
    float weights[kTileSize];  // of a chunk, or of the tile that an unfiltered draw reads again
    std::uint32_t bins[kRadixBins];    // while a bound is sought
    Candidate sorted[kRankSortLimit];  // while a chunk is sorted
  };
  Candidate bound;
  std::uint32_t count;
};

// What of a row a stream walks along.
struct CandidateSource {
  RowView row;
  const TileStatistics* tiles;
  float first_pivot;  // a guess: the first chunk holds the elements >= it when they fit
};

// Visits every finite element whose key lies in [lower, upper).
template <typename Visit>
GR_DEVICE void for_candidates(const CandidateSource& source, Candidate lower, Candidate upper,
                              TileShared& tile_shared, Visit visit) {
  const float lowest = upper == kLastCandidate ? kLowestFinite : candidate_value(upper - 1);
  for (std::int64_t tile = 0; tile < tiles_of(source.row.size); ++tile) {
    if (source.tiles[tile].maximum < lowest) continue;
    float x[kLaneElements];
    load_lane(source.row, tile, tile_shared, x);
    GR_UNROLL
    for (std::int32_t k = 0; k < kLaneElements; ++k) {
      const auto id = static_cast<std::int32_t>(tile * kTileSize) + k * kLanes +
                      static_cast<std::int32_t>(threadIdx.x);
      const Candidate key = candidate_of(x[k], id);
      if (x[k] >= kLowestFinite && key >= lower && key < upper) visit(key);
    }
  }
}

// Puts the candidates of [lower, upper) into shared.keys, in any order, and returns their number,
// which may exceed the capacity; then they are incomplete.
GR_DEVICE std::uint32_t collect(const CandidateSource& source, Candidate lower, Candidate upper,
                                TileShared& tile_shared, CandidateShared& shared) {
  __syncthreads();
  if (threadIdx.x == 0) shared.count = 0;
  __syncthreads();
  for_candidates(source, lower, upper, tile_shared, [&shared](Candidate key) {
    const std::uint32_t place = atomic_add_shared(&shared.count, 1u);
    if (place < kChunkCapacity) shared.keys[place] = key;
  });
  __syncthreads();
  return shared.count;
}

// One level of the descent, by thread 0: the bins in order until the next one would not fit.
// Returns the bin that did not fit, kRadixBins when all did; *fitting: candidates before it.
GR_DEVICE std::uint32_t first_overflowing_bin(const CandidateShared& shared,
                                              std::uint32_t* fitting) {
  std::uint32_t total = 0;
  std::uint32_t bin = 0;
  for (; bin < kRadixBins; ++bin) {
    if (total + shared.bins[bin] > kChunkCapacity) break;
    total += shared.bins[bin];
  }
  *fitting = total;
  return bin;
}

// The largest bound such that [lower, bound) holds at most kChunkCapacity candidates; it holds at
// least one while any is left.
GR_DEVICE Candidate find_bound(const CandidateSource& source, Candidate lower,
                               TileShared& tile_shared, CandidateShared& shared) {
  Candidate prefix = 0;  // the bits above `shift + kRadixBits` that are settled
  std::int32_t shift = 64;
  Candidate upper = kLastCandidate;
  for (;;) {
    const std::int32_t bits = shift < static_cast<std::int32_t>(kRadixBits)
                                  ? shift
                                  : static_cast<std::int32_t>(kRadixBits);
    shift -= bits;
    __syncthreads();
    for (std::uint32_t bin = threadIdx.x; bin < kRadixBins; bin += kBlockThreads) {
      shared.bins[bin] = 0;
    }
    __syncthreads();
    for_candidates(source, lower < prefix ? prefix : lower, upper, tile_shared,
                   [&shared, shift, bits](Candidate key) {
                     const auto bin =
                         static_cast<std::uint32_t>(key >> shift) & ((1u << bits) - 1u);
                     atomic_add_shared(&shared.bins[bin], 1u);
                   });
    __syncthreads();
    if (threadIdx.x == 0) {
      std::uint32_t fitting = 0;
      const std::uint32_t bin = first_overflowing_bin(shared, &fitting);
      shared.count = fitting;
      shared.bound = bin < (1u << bits) ? prefix + (static_cast<Candidate>(bin) << shift) : upper;
    }
    __syncthreads();
    const Candidate bound = shared.bound;
    if (shared.count > 0 || bound == upper) return bound;
    prefix = bound;  // the first bin with candidates holds too many: look inside it
    upper = bound + (Candidate{1} << shift);
    if (upper < bound) upper = kLastCandidate;
  }
}

// Unique keys into ascending order: by rank when there are few, else bitonic.
GR_DEVICE void sort_candidates(std::uint32_t count, CandidateShared& shared) {
  if (count <= kRankSortLimit) {
    const std::uint32_t own = threadIdx.x;
    if (own < count) {
      std::uint32_t rank = 0;
      for (std::uint32_t i = 0; i < count; ++i) rank += shared.keys[i] < shared.keys[own] ? 1 : 0;
      shared.sorted[rank] = shared.keys[own];
    }
    __syncthreads();
    if (own < count) shared.keys[own] = shared.sorted[own];
    __syncthreads();
    return;
  }
  std::uint32_t padded = 2 * kRankSortLimit;
  while (padded < count) padded *= 2;
  for (std::uint32_t i = count + threadIdx.x; i < padded; i += kBlockThreads) {
    shared.keys[i] = kLastCandidate;
  }
  __syncthreads();
  for (std::uint32_t size = 2; size <= padded; size *= 2) {
    for (std::uint32_t stride = size / 2; stride >= 1; stride /= 2) {
      for (std::uint32_t pair = threadIdx.x; pair < padded / 2; pair += kBlockThreads) {
        const std::uint32_t low = 2 * pair - (pair & (stride - 1));
        const Candidate first = shared.keys[low];
        const Candidate second = shared.keys[low + stride];
        const bool ascending = (low & size) == 0;
        if ((first > second) == ascending) {
          shared.keys[low] = second;
          shared.keys[low + stride] = first;
        }
      }
      __syncthreads();
    }
  }
}

// The candidates of a row in descending order. All threads of the block call every member together.
class CandidateStream {
 public:
  // inverse_temperature: of the weights e^((x - maximum) / T).
  GR_DEVICE CandidateStream(const CandidateSource& source, float maximum, float inverse_temperature,
                            TileShared& tile_shared, CandidateShared& shared)
      : source_(source),
        maximum_(maximum),
        inverse_temperature_(inverse_temperature),
        tile_shared_(tile_shared),
        shared_(shared) {}

  // Back to the largest candidate. Its chunk is read again only where another has replaced it.
  GR_DEVICE void restart() {
    repeat_ = count_ > 0 && lower_ == 0;
    if (!repeat_) lower_ = upper_ = 0;
  }

  // Sorts the next chunk into shared memory, with its weights. False when none is left.
  GR_DEVICE bool next() {
    if (repeat_) {
      repeat_ = false;
      return true;
    }
    lower_ = upper_;
    const std::uint32_t count = fetch();
    count_ = count;
    if (count == 0) return false;
    sort_candidates(count, shared_);
    for (std::uint32_t i = threadIdx.x; i < count; i += kBlockThreads) {
      shared_.weights[i] =
          exp_nonpositive((candidate_value(shared_.keys[i]) - maximum_) * inverse_temperature_);
    }
    __syncthreads();
    return true;
  }

  GR_DEVICE std::uint32_t count() const { return count_; }
  GR_DEVICE Candidate key(std::uint32_t index) const { return shared_.keys[index]; }
  GR_DEVICE float weight(std::uint32_t index) const { return shared_.weights[index]; }

 private:
  GR_DEVICE std::uint32_t fetch() {
    if (lower_ == 0) {
      upper_ = candidate_of(source_.first_pivot, -1);  // the largest id: ties are included
      const std::uint32_t count = collect(source_, lower_, upper_, tile_shared_, shared_);
      if (count > 0 && count <= kChunkCapacity) return count;
    }
    upper_ = find_bound(source_, lower_, tile_shared_, shared_);
    return collect(source_, lower_, upper_, tile_shared_, shared_);
  }

  CandidateSource source_;
  float maximum_;
  float inverse_temperature_;
  TileShared& tile_shared_;
  CandidateShared& shared_;
  Candidate lower_ = 0;  // keys below it have been given out
  Candidate upper_ = 0;
  std::uint32_t count_ = 0;
  bool repeat_ = false;
};

}  // namespace glimprouter::device
