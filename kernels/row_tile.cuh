// One tile of a row: 16-byte loads into shared memory, one virtual lane a thread, and the specified
// reduction (tile_statistics.hpp).
#pragma once

#include <cstdint>

#include "block.cuh"
#include "device.cuh"
#include "elements.cuh"
#include "glimprouter/numeric.hpp"
#include "glimprouter/row_view.hpp"
#include "glimprouter/tile_statistics.hpp"

namespace glimprouter::device {

static_assert(kLanes == static_cast<std::int32_t>(kBlockThreads), "one virtual lane a thread");
inline constexpr std::int32_t kLaneElements = kTileSize / kLanes;
inline constexpr std::int32_t kVectorBytes = 16;
// 512 vectors of fp32, and one more when the row does not begin at a 16-byte boundary.
inline constexpr std::int32_t kThreadVectors = 3;
inline constexpr float kMinusInfinity = std::bit_cast<float>(0xFF800000u);

struct TileShared {
  alignas(kVectorBytes) std::byte bytes[kTileSize * 4 + kVectorBytes];
  float lanes[4][kLanes];  // s, t, u, z
  BlockShared block;
};

// Where a tile lies in memory. phase: bytes between the 16-byte boundary before it and its start;
// the copy in shared memory keeps it, so that vectors stay whole.
struct TileSpan {
  const std::byte* source;
  std::int32_t bytes;
  std::int32_t phase;
  std::int32_t present;  // elements

  GR_DEVICE TileSpan(const RowView& row, std::int64_t tile) {
    const auto size = static_cast<std::int32_t>(element_size(row.dtype));
    const std::int64_t left = row.size - tile * kTileSize;
    present = left < kTileSize ? static_cast<std::int32_t>(left) : kTileSize;
    bytes = present * size;
    source = static_cast<const std::byte*>(row.data) + tile * kTileSize * size;
    phase = static_cast<std::int32_t>(reinterpret_cast<std::uintptr_t>(source) % kVectorBytes);
  }
};

// A vector of which only some elements belong to the row: they are copied one by one, because the
// others may lie outside the allocation.
GR_DEVICE void stage_edge(const TileSpan& span, std::int32_t begin, std::int32_t size,
                          std::byte* target) {
  for (std::int32_t byte = 0; byte < kVectorBytes; byte += size) {
    if (begin + byte < 0 || begin + byte >= span.bytes) continue;
    const std::byte* const source = span.source + begin + byte;
    if (size == 4) {
      write_as(target + byte, read_as<std::uint32_t>(source));
    } else {
      write_as(target + byte, read_as<std::uint16_t>(source));
    }
  }
}

// What a thread has loaded of a tile: on its way while the tile before is being summed.
struct TileVectors {
  Vec16 loaded[kThreadVectors];
};

GR_DEVICE std::int32_t vector_of_thread(std::int32_t k) {
  return static_cast<std::int32_t>(threadIdx.x) + k * kLanes;
}

GR_DEVICE bool is_whole(const TileSpan& span, std::int32_t vector) {
  const std::int32_t begin = vector * kVectorBytes - span.phase;
  return begin >= 0 && begin + kVectorBytes <= span.bytes;
}

GR_DEVICE void fetch_tile(const TileSpan& span, TileVectors& vectors) {
  GR_UNROLL
  for (std::int32_t k = 0; k < kThreadVectors; ++k) {
    const std::int32_t vector = vector_of_thread(k);
    if (!is_whole(span, vector)) continue;
    vectors.loaded[k] = load16(span.source + vector * kVectorBytes - span.phase);
  }
}

// Copies a fetched tile into shared memory. A barrier must follow before it is read.
GR_DEVICE void stage_tile(const TileSpan& span, DataType dtype, const TileVectors& vectors,
                          TileShared& shared) {
  const auto size = static_cast<std::int32_t>(element_size(dtype));
  GR_UNROLL
  for (std::int32_t k = 0; k < kThreadVectors; ++k) {
    const std::int32_t vector = vector_of_thread(k);
    const std::int32_t begin = vector * kVectorBytes - span.phase;
    if (begin >= span.bytes) continue;
    std::byte* const target = shared.bytes + vector * kVectorBytes;
    if (is_whole(span, vector)) {
      store16(target, vectors.loaded[k]);
    } else {
      stage_edge(span, begin, size, target);
    }
  }
}

// Element of a staged tile; -inf behind its end.
GR_DEVICE float staged_element(const TileSpan& span, DataType dtype, const TileShared& shared,
                               std::int32_t index) {
  if (index >= span.present) return kMinusInfinity;
  return read_element(shared.bytes + span.phase + element_size(dtype) * index, dtype);
}

// The 8 elements of this thread's lane, in index order.
GR_DEVICE void read_lane(const TileSpan& span, DataType dtype, const TileShared& shared,
                         float (&x)[kLaneElements]) {
  GR_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) {
    x[k] = staged_element(span, dtype, shared, vector_of_thread(k));
  }
}

// All of it for one tile. Two barriers.
GR_DEVICE void load_lane(const RowView& row, std::int64_t tile, TileShared& shared,
                         float (&x)[kLaneElements]) {
  const TileSpan span(row, tile);
  TileVectors vectors;
  fetch_tile(span, vectors);
  __syncthreads();
  stage_tile(span, row.dtype, vectors, shared);
  __syncthreads();
  read_lane(span, row.dtype, shared, x);
}

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

struct TileRequest {
  bool sampling;  // the sum at the sampling temperature is wanted
  bool squared;
  float inverse_temperature;
};

// Statistics of one tile, by the whole block, into global memory.
GR_DEVICE void sum_lane(const float (&x)[kLaneElements], const TileRequest& request,
                        TileShared& shared, TileStatistics* out) {
  float best = kMinusInfinity;
  GR_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) best = x[k] > best ? x[k] : best;
  const float maximum = block_max(best, shared.block) + 0.0f;  // -0 becomes +0
  const float reference = maximum == kMinusInfinity ? 0.0f : maximum;
  float s = 0, t = 0, u = 0, z = 0;
  GR_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) {
    const float difference = x[k] - reference;
    const float d = difference < exp_constants::kFloor ? exp_constants::kFloor : difference;
    const float e = exp_nonpositive(d);
    s = s + e;
    t = std::fma(d, e, t);
    if (request.squared) u = std::fma(d * d, e, u);
    if (request.sampling) z = z + exp_nonpositive(difference * request.inverse_temperature);
  }
  const std::uint32_t lane = threadIdx.x;
  shared.lanes[0][lane] = s;
  shared.lanes[1][lane] = t;
  if (request.squared) shared.lanes[2][lane] = u;
  if (request.sampling) shared.lanes[3][lane] = z;
  __syncthreads();
  const std::uint32_t warp = warp_of_thread();
  const bool wanted = warp < 2 || (warp == 2 && request.squared) || (warp == 3 && request.sampling);
  if (!wanted) return;
  const float total = tree_sum(shared.lanes[warp]);
  if (lane_of_thread() != 0) return;
  if (warp == 0) {
    out->maximum = maximum;
    out->sum = total;
    if (!request.sampling) out->sampling = total;
    if (!request.squared) out->squared = 0.0f;
  }
  if (warp == 1) out->weighted = total;
  if (warp == 2) out->squared = total;
  if (warp == 3) out->sampling = total;
}

// Statistics of the tiles first, first + stride, ...; the next one is loaded while one is summed.
GR_DEVICE void sum_tiles(const RowView& row, std::int64_t first, std::int64_t stride,
                         const TileRequest& request, TileShared& shared, TileStatistics* tiles) {
  const std::int64_t num_tiles = tiles_of(row.size);
  if (first >= num_tiles) return;
  TileVectors vectors;
  fetch_tile(TileSpan(row, first), vectors);
  for (std::int64_t tile = first; tile < num_tiles; tile += stride) {
    const TileSpan span(row, tile);
    stage_tile(span, row.dtype, vectors, shared);
    if (tile + stride < num_tiles) fetch_tile(TileSpan(row, tile + stride), vectors);
    __syncthreads();
    float x[kLaneElements];
    read_lane(span, row.dtype, shared, x);
    sum_lane(x, request, shared, tiles + tile);  // its barriers let the stage be written again
  }
}

}  // namespace glimprouter::device
