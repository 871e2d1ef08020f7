// From the tiles of a row to its status, its sums and its two largest elements, by the block that
// finishes the row.
#pragma once

#include <cstdint>

#include "block.cuh"
#include "device.cuh"
#include "glimprouter/row_op.hpp"
#include "glimprouter/row_statistics.hpp"
#include "glimprouter/tile_statistics.hpp"
#include "row_tile.cuh"

namespace glimprouter::device {

inline constexpr std::int32_t kMergedTiles = 128;  // terms that lie in shared memory at a time

struct MergeShared {
  double terms[4][kMergedTiles];
};

struct RowExtremes {
  RowStatus status;
  float maximum;        // of the row
  float runner_up;      // largest maximum of the tiles but the winner
  std::int64_t winner;  // first tile that holds the maximum
};

GR_DEVICE bool row_has_nan(const RowView& row, TileShared& shared) {
  bool found = false;
  for (std::int64_t tile = 0; tile < tiles_of(row.size); ++tile) {
    float x[kLaneElements];
    load_lane(row, tile, shared, x);
    GR_UNROLL
    for (std::int32_t k = 0; k < kLaneElements; ++k) found |= x[k] != x[k];
  }
  return block_any(found, shared.block);
}

// The status that row_op.hpp defines, and where the maximum lies.
GR_DEVICE RowExtremes find_extremes(const RowView& row, const TileStatistics* tiles,
                                    TileShared& shared) {
  const auto num_tiles = static_cast<std::uint32_t>(tiles_of(row.size));
  float best = kMinusInfinity;
  bool undefined = false;
  for (std::uint32_t i = threadIdx.x; i < num_tiles; i += kBlockThreads) {
    best = tiles[i].maximum > best ? tiles[i].maximum : best;
    undefined |= tiles[i].sum != tiles[i].sum;
  }
  RowExtremes extremes{};
  extremes.maximum = block_max(best, shared.block);
  undefined = block_any(undefined, shared.block);
  if (extremes.maximum == -kMinusInfinity) {
    extremes.status = row_has_nan(row, shared) ? RowStatus::kNan : RowStatus::kPositiveInfinity;
    return extremes;
  }
  if (undefined) {
    extremes.status = RowStatus::kNan;
    return extremes;
  }
  if (extremes.maximum == kMinusInfinity) {
    extremes.status = RowStatus::kAllMasked;
    return extremes;
  }
  std::uint32_t winner = num_tiles;
  for (std::uint32_t i = threadIdx.x; i < num_tiles; i += kBlockThreads) {
    if (tiles[i].maximum == extremes.maximum && i < winner) winner = i;
  }
  winner = block_min(winner, shared.block);
  float other = kMinusInfinity;
  for (std::uint32_t i = threadIdx.x; i < num_tiles; i += kBlockThreads) {
    if (i != winner && tiles[i].maximum > other) other = tiles[i].maximum;
  }
  extremes.status = RowStatus::kOk;
  extremes.winner = winner;
  extremes.runner_up = block_max(other, shared.block);
  return extremes;
}

// Tiles in index order: the terms by one thread a tile, each of the four sums by one thread.
GR_DEVICE void merge_tiles(const TileStatistics* tiles, std::int64_t num_tiles, float maximum,
                           float temperature, MergeShared& shared, RowSums& sums) {
  double sum = 0;
  for (std::int64_t first = 0; first < num_tiles; first += kMergedTiles) {
    const std::int64_t left = num_tiles - first;
    const auto count = static_cast<std::int32_t>(left < kMergedTiles ? left : kMergedTiles);
    __syncthreads();
    for (auto i = static_cast<std::int32_t>(threadIdx.x); i < count; i += kLanes) {
      const TileTerms terms = terms_of(tiles[first + i], maximum, temperature);
      shared.terms[0][i] = terms.sum;
      shared.terms[1][i] = terms.weighted;
      shared.terms[2][i] = terms.squared;
      shared.terms[3][i] = terms.sampling;
    }
    __syncthreads();
    if (lane_of_thread() == 0 && warp_of_thread() < 4) {
      for (std::int32_t i = 0; i < count; ++i) sum += shared.terms[warp_of_thread()][i];
    }
  }
  if (threadIdx.x == 0) {
    sums.maximum = maximum;
    sums.num_tiles = num_tiles;
    sums.sum = sum;
  }
  if (threadIdx.x == kWarpSize) sums.weighted = sum;
  if (threadIdx.x == 2 * kWarpSize) sums.squared = sum;
  if (threadIdx.x == 3 * kWarpSize) sums.sampling = sum;
  __syncthreads();
}

struct TopTwo {
  std::int32_t argmax;  // lowest id of the maximum
  float second;         // largest of the other elements
};

GR_DEVICE TopTwo find_top_two(const RowView& row, const RowExtremes& extremes, TileShared& shared) {
  float x[kLaneElements];
  load_lane(row, extremes.winner, shared, x);
  std::uint32_t first = kTileSize;
  std::uint32_t hits = 0;
  float other = extremes.runner_up;
  GR_UNROLL
  for (std::int32_t k = kLaneElements - 1; k >= 0; --k) {
    if (x[k] == extremes.maximum) {
      first = threadIdx.x + static_cast<std::uint32_t>(k * kLanes);
      ++hits;
    } else if (x[k] > other) {
      other = x[k];
    }
  }
  first = block_min(first, shared.block);
  hits = block_add(hits, shared.block);
  other = block_max(other, shared.block);
  return {static_cast<std::int32_t>(extremes.winner * kTileSize) + static_cast<std::int32_t>(first),
          hits > 1 ? extremes.maximum : other};
}

}  // namespace glimprouter::device
