// From the tiles of a row to its status, its sums and its two largest elements, in the block that
// finishes the row: each by one warp, side by side.
#pragma once

#include <cstdint>

#include "block.cuh"
#include "device.cuh"
#include "glimprouter/row_op.hpp"
#include "glimprouter/row_statistics.hpp"
#include "glimprouter/tile_statistics.hpp"
#include "row_tile.cuh"

namespace glimprouter::device {

static_assert(kMergeLanes == static_cast<std::int32_t>(kWarpSize), "a merge lane a thread");

struct RowExtremes {
  float maximum;         // of the row
  float runner_up;       // largest maximum of the tiles but the winner
  std::uint32_t winner;  // first tile that holds the maximum
  bool undefined;        // a tile holds NaN or +inf
};

// By a warp; every warp of the block may do it for itself.
GR_DEVICE RowExtremes find_extremes(const TileStatistics* tiles, std::int64_t count) {
  const auto num_tiles = static_cast<std::uint32_t>(count);
  float best = kMinusInfinity;
  bool undefined = false;
  for (std::uint32_t i = lane_of_thread(); i < num_tiles; i += kWarpSize) {
    best = larger_number(best, tiles[i].maximum);
    undefined |= tiles[i].sum != tiles[i].sum;
  }
  RowExtremes extremes;
  extremes.maximum = warp_max(best);
  extremes.undefined = __any_sync(kFullMask, undefined) != 0;
  std::uint32_t winner = num_tiles;
  for (std::uint32_t i = lane_of_thread(); i < num_tiles; i += kWarpSize) {
    if (tiles[i].maximum == extremes.maximum && i < winner) winner = i;
  }
  extremes.winner = __reduce_min_sync(kFullMask, winner);
  float other = kMinusInfinity;
  for (std::uint32_t i = lane_of_thread(); i < num_tiles; i += kWarpSize) {
    if (i != extremes.winner) other = larger_number(other, tiles[i].maximum);
  }
  extremes.runner_up = warp_max(other);
  return extremes;
}

// By the whole block.
GR_DEVICE bool row_has_nan(const RowView& row, BlockShared& shared) {
  const RowVectors vectors(row);
  bool found = false;
  for (std::int64_t tile = warp_of_thread(); tile < tiles_of(row.size); tile += kWarps) {
    for_tile(row, vectors, tile, [&found](float x, std::int32_t) { found |= x != x; });
  }
  return block_any(found, shared);
}

// The status that row_op.hpp defines, by the whole block.
GR_DEVICE RowStatus row_status(const RowView& row, const RowExtremes& extremes,
                               BlockShared& shared) {
  if (extremes.maximum == -kMinusInfinity) {
    return row_has_nan(row, shared) ? RowStatus::kNan : RowStatus::kPositiveInfinity;
  }
  if (extremes.undefined) return RowStatus::kNan;
  return extremes.maximum == kMinusInfinity ? RowStatus::kAllMasked : RowStatus::kOk;
}

// The specified merge, by a warp. Valid in its lane 0.
GR_DEVICE RowSums merge_tiles(const TileStatistics* tiles, std::int64_t num_tiles, float maximum,
                              float temperature) {
  TileTerms terms;
  for (std::int64_t i = lane_of_thread(); i < num_tiles; i += kMergeLanes) {
    terms.add(terms_of(tiles[i], maximum, temperature));
  }
  GR_UNROLL
  for (std::uint32_t width = kWarpSize / 2; width >= 1; width /= 2) {
    TileTerms other;
    other.sum = __shfl_down_sync(kFullMask, terms.sum, width);
    other.weighted = __shfl_down_sync(kFullMask, terms.weighted, width);
    other.squared = __shfl_down_sync(kFullMask, terms.squared, width);
    other.sampling = __shfl_down_sync(kFullMask, terms.sampling, width);
    terms.add(other);
  }
  return {terms.sum, terms.weighted, terms.squared, terms.sampling, num_tiles, maximum};
}

struct TopTwo {
  std::int32_t argmax;  // lowest id of the maximum
  float second;         // largest of the other elements
};

// By a warp.
GR_DEVICE TopTwo find_top_two(const RowView& row, const RowExtremes& extremes) {
  std::uint32_t first = ~0u;
  std::uint32_t hits = 0;
  float other = extremes.runner_up;
  for_tile(row, RowVectors(row), extremes.winner, [&](float x, std::int32_t id) {
    if (x == extremes.maximum) {
      const auto own = static_cast<std::uint32_t>(id);
      first = own < first ? own : first;
      ++hits;
    } else {
      other = larger_number(other, x);
    }
  });
  first = __reduce_min_sync(kFullMask, first);
  hits = __reduce_add_sync(kFullMask, hits);
  other = warp_max(other);
  return {static_cast<std::int32_t>(first), hits > 1 ? extremes.maximum : other};
}

}  // namespace glimprouter::device
