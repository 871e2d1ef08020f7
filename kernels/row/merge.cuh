// From the tiles of a row to its status, its sums and its two largest elements, in the block that
// finishes the row: each by one warp, side by side.
#pragma once

#include <cstdint>

#include "arithmetic/row_statistics.hpp"
#include "arithmetic/tile_statistics.hpp"
#include "glimprouter/row_op.hpp"
#include "kernels/base/block.cuh"
#include "kernels/base/device.cuh"
#include "kernels/row/tile.cuh"

namespace glimprouter::device {

static_assert(kMergeLanes == static_cast<std::int32_t>(kWarpSize), "a merge lane a thread");

GR_DEVICE float element_of(const RowView& row, std::int32_t index) {
  return read_element(static_cast<const std::byte*>(row.data) + element_size(row.dtype) * index,
                      row.dtype);
}

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
  bool found = false;
  for (std::int64_t first = threadIdx.x; first < row.size; first += kTileSize) {
    float x[kTileSize / kLanes];
    read_strided(row, first, kLanes, x);
    GR_UNROLL
    for (const float element : x) found |= element != element;
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

// The quotients of a row's statistics, a division a lane. Valid in lane 0.
GR_DEVICE RowQuotients quotients_by_warp(const RowSums& sums) {
  const std::uint32_t lane = lane_of_thread();
  const double sum = __shfl_sync(kFullMask, sums.sum, 0);
  const double weighted = __shfl_sync(kFullMask, sums.weighted, 0);
  const double squared = __shfl_sync(kFullMask, sums.squared, 0);
  const double quotient = (lane == 0 ? weighted : lane == 1 ? squared : 1.0) / sum;
  RowQuotients result;
  result.log_sum = log_positive(sum);
  result.mean = __shfl_sync(kFullMask, quotient, 0);
  result.mean_square = __shfl_sync(kFullMask, quotient, 1);
  result.inverse = __shfl_sync(kFullMask, quotient, 2);
  return result;
}

struct TopTwo {
  std::int32_t argmax;  // lowest id of the maximum
  float value;          // its element: the maximum, or -0
  float second;         // largest of the other elements
};

// What each warp saw of the tile that holds the maximum; warp 0 is busy elsewhere.
struct TopTwoShared {
  std::uint32_t first[kWarps];
  std::uint32_t hits[kWarps];
  float value[kWarps];
  float second[kWarps];

  GR_DEVICE TopTwo merged(float maximum) const {
    TopTwo top{-1, 0.0f, kMinusInfinity};
    std::uint32_t best = ~0u;
    std::uint32_t all = 0;
    GR_UNROLL
    for (std::uint32_t warp = 1; warp < kWarps; ++warp) {
      if (first[warp] < best) {
        best = first[warp];
        top.value = value[warp];
      }
      all += hits[warp];
      top.second = larger_number(top.second, second[warp]);
    }
    top.argmax = static_cast<std::int32_t>(best);
    if (all > 1) top.second = maximum;
    return top;
  }
};

// By the warps 1 to 7, a piece of 256 elements each; the last one takes two.
GR_DEVICE void find_top_two(const RowView& row, const RowExtremes& extremes, TopTwoShared& shared) {
  const std::uint32_t warp = warp_of_thread();
  const std::int64_t tile_begin = static_cast<std::int64_t>(extremes.winner) * kTileSize;
  std::uint32_t first = ~0u;
  std::uint32_t hits = 0;
  float value = 0.0f;
  float other = extremes.runner_up;
  for (std::uint32_t piece = warp; piece < kWarps; piece = piece == kWarps - 1 ? 0 : kWarps) {
    const auto begin = static_cast<std::uint32_t>(tile_begin) + piece * kLanes + lane_of_thread();
    float x[8];
    read_strided(row, begin, static_cast<std::int32_t>(kWarpSize), x);
    GR_UNROLL
    for (std::uint32_t i = 0; i < 8; ++i) {
      const std::uint32_t id = begin + i * kWarpSize;
      if (x[i] == extremes.maximum) {
        if (id < first) value = x[i];
        first = id < first ? id : first;
        ++hits;
      } else {
        other = larger_number(other, x[i]);
      }
    }
    if (piece == 0) break;
  }
  const std::uint32_t lowest = __reduce_min_sync(kFullMask, first);
  hits = __reduce_add_sync(kFullMask, hits);
  other = warp_max(other);
  if (first == lowest && first != ~0u) shared.value[warp] = value;
  if (lane_of_thread() != 0) return;
  shared.first[warp] = lowest;
  shared.hits[warp] = hits;
  shared.second[warp] = other;
}

}  // namespace glimprouter::device
