// The specified reduction of one tile (tile_statistics.hpp), by a whole block, a virtual lane a
// thread: the quickest way where there are as many blocks as tiles. Elsewhere a warp takes a tile
// (tile.cuh); both give the same bits.
#pragma once

#include <cstdint>

#include "arithmetic/numeric.hpp"
#include "arithmetic/tile_statistics.hpp"
#include "glimprouter/types/row_view.hpp"
#include "kernels/base/block.cuh"
#include "kernels/base/device.cuh"
#include "kernels/base/elements.cuh"
#include "kernels/row/tile.cuh"

namespace glimprouter::device {

static_assert(kLanes == static_cast<std::int32_t>(kBlockThreads), "one virtual lane a thread");

struct LanesShared {
  float sums[4][kLanes];  // s, t, u, z
  float maxima[kWarps];
};

// A thread's elements of a tile: those of its lane, in order; -inf behind the row's end.
struct LaneElements {
  float x[kLaneElements];

  GR_DEVICE LaneElements(const RowView& row, std::int64_t tile) {
    const std::int64_t first = tile * kTileSize + static_cast<std::int64_t>(threadIdx.x);
    read_strided(row, first, kLanes, x);
  }
};

// The fixed tree over the 256 lanes by one warp: +128, +64, +32 in registers, then by shuffles.
// The result is that of lane 0.
GR_DEVICE float tree_sum(const float (&lanes)[kLanes]) {
  const std::uint32_t lane = lane_of_thread();
  float part[8];
  GR_UNROLL
  for (std::uint32_t k = 0; k < 8; ++k) part[k] = lanes[lane + k * kWarpSize];
  GR_UNROLL
  for (std::uint32_t k = 0; k < 4; ++k) part[k] = part[k] + part[k + 4];
  part[0] = part[0] + part[2];
  part[1] = part[1] + part[3];
  float sum = part[0] + part[1];
  GR_UNROLL
  for (std::uint32_t width = kWarpSize / 2; width >= 1; width /= 2) {
    sum = sum + __shfl_down_sync(kFullMask, sum, width);
  }
  return sum;
}

// Statistics of one tile, by the whole block, into global memory: each sum by a warp of its own.
GR_DEVICE void sum_lanes(const LaneElements& elements, const TileRequest& request,
                         LanesShared& shared, TileStatistics* out) {
  float best = kMinusInfinity;
  GR_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) best = larger_number(best, elements.x[k]);
  best = warp_max(best);
  if (lane_of_thread() == 0) shared.maxima[warp_of_thread()] = best;
  __syncthreads();
  GR_UNROLL
  for (std::uint32_t warp = 0; warp < kWarps; ++warp) {
    best = larger_number(best, shared.maxima[warp]);
  }
  const float maximum = best + 0.0f;  // -0 becomes +0
  const float reference = maximum == kMinusInfinity ? 0.0f : maximum;
  float s = 0, t = 0, u = 0, z = 0;
  GR_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) {
    const float difference = elements.x[k] - reference;
    const float d = larger_or_nan(difference, exp_constants::kFloor);
    const float e = exp_from_floor(d);
    s = s + e;
    t = std::fma(d, e, t);
    if (request.squared) u = std::fma(d * d, e, u);
    if (request.sampling) {
      z = z + exp_from_floor(
                  larger_or_nan(difference * request.inverse_temperature, exp_constants::kFloor));
    }
  }
  shared.sums[0][threadIdx.x] = s;
  shared.sums[1][threadIdx.x] = t;
  shared.sums[2][threadIdx.x] = u;
  shared.sums[3][threadIdx.x] = z;
  __syncthreads();
  const std::uint32_t warp = warp_of_thread();
  if (warp >= 4) return;
  const float total = tree_sum(shared.sums[warp]);
  if (lane_of_thread() != 0) return;
  if (warp == 0) {
    out->maximum = maximum;
    out->sum = total;
    if (!request.sampling) out->sampling = total;
  }
  if (warp == 1) out->weighted = total;
  if (warp == 2) out->squared = total;
  if (warp == 3 && request.sampling) out->sampling = total;
}

}  // namespace glimprouter::device
