// The specified reduction of one tile (tile_statistics.hpp), by one warp, in registers: a thread
// holds eight neighbouring virtual lanes, so that their elements come in 16-byte loads.
#pragma once

#include <cstdint>

#include "block.cuh"
#include "device.cuh"
#include "glimprouter/numeric.hpp"
#include "glimprouter/row_view.hpp"
#include "glimprouter/tile_statistics.hpp"
#include "row_vectors.cuh"

namespace glimprouter::device {

inline constexpr std::int32_t kThreadLanes = kLanes / static_cast<std::int32_t>(kWarpSize);
inline constexpr std::int32_t kLaneElements = kTileSize / kLanes;
static_assert(kThreadLanes == 8, "a piece holds one element of each of a thread's lanes");

struct TileRequest {
  bool sampling;  // the sum at the sampling temperature is wanted
  bool squared;
  float inverse_temperature;
};

// What a thread holds of a tile, as it lies in memory: of each of its lanes the elements in order.
template <DataType kType>
struct TilePieces {
  static constexpr int kVectors = kType == DataType::kFloat32 ? 2 : 1;  // a piece
  static constexpr int kElements = kThreadLanes / kVectors;             // a vector
  Vec16 vectors[kLaneElements][kVectors];

  // Floats are made from their bits again by the next pass, not kept beside them.
  GR_DEVICE void forget_floats() {
    if constexpr (kType != DataType::kFloat32) {
      GR_UNROLL
      for (std::int32_t k = 0; k < kLaneElements; ++k) {
        GR_UNROLL
        for (int word = 0; word < 4; ++word) {
          vectors[k][0].word[word] = opaque(vectors[k][0].word[word]);
        }
      }
    }
  }

  // The elements of the k-th piece.
  GR_DEVICE void read(std::int32_t k, float (&x)[kThreadLanes]) const {
    GR_UNROLL
    for (int part = 0; part < kVectors; ++part) {
      float values[kElements];
      floats_of<kType>(vectors[k][part], values);
      GR_UNROLL
      for (int i = 0; i < kElements; ++i) x[part * kElements + i] = values[i];
    }
  }
};

// The first element of a thread's k-th piece of a tile, counted within it.
GR_DEVICE std::int32_t piece_begin(std::int32_t k) {
  return k * kLanes + static_cast<std::int32_t>(lane_of_thread()) * kThreadLanes;
}

// Elements as bits, -inf behind the row's end: of the tiles at a row's ends.
template <DataType kType>
GR_DEVICE TilePieces<kType> load_edge_tile(const RowView& row, std::int64_t tile) {
  constexpr bool kWide = kType == DataType::kFloat32;
  constexpr std::uint32_t kInfinity =
      kWide ? 0xFF800000u : (kType == DataType::kFloat16 ? 0xFC00u : 0xFF80u);
  constexpr std::int32_t kSize = kWide ? 4 : 2;
  const std::int64_t first = tile * kTileSize + piece_begin(0);
  const std::byte* const source = static_cast<const std::byte*>(row.data) + first * kSize;
  const std::int64_t left = row.size - first;
  const std::int32_t present = left < kTileSize ? static_cast<std::int32_t>(left) : kTileSize;
  const auto bits = [&](std::int32_t index) -> std::uint32_t {
    if (index >= present) return kInfinity;
    if constexpr (kWide) return read_as<std::uint32_t>(source + index * kSize);
    return read_as<std::uint16_t>(source + index * kSize);
  };
  TilePieces<kType> result;
  GR_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) {
    GR_UNROLL
    for (int part = 0; part < TilePieces<kType>::kVectors; ++part) {
      GR_UNROLL
      for (int word = 0; word < 4; ++word) {
        const std::int32_t index = k * kLanes + (kWide ? part * 4 + word : 2 * word);
        std::uint32_t value = bits(index);
        if constexpr (!kWide) value |= bits(index + 1) << 16;
        result.vectors[k][part].word[word] = value;
      }
    }
  }
  return result;
}

template <DataType kType>
GR_DEVICE TilePieces<kType> load_tile(const RowView& row, const RowVectors& vectors,
                                      std::uint32_t tile) {
  constexpr int kVectors = TilePieces<kType>::kVectors;
  constexpr std::int32_t kTileVectors = kTileSize / TilePieces<kType>::kElements;
  const auto first = static_cast<std::int32_t>(tile) * kTileVectors;
  if (first < vectors.first || first + kTileVectors > vectors.end) {
    return load_edge_tile<kType>(row, tile);
  }
  TilePieces<kType> result;
  if (vectors.phase == 0) {
    GR_UNROLL
    for (std::int32_t k = 0; k < kLaneElements; ++k) {
      const std::int32_t own = first + piece_begin(k) / TilePieces<kType>::kElements;
      GR_UNROLL
      for (int part = 0; part < kVectors; ++part) {
        result.vectors[k][part] = vectors.load_aligned(own + part);
      }
    }
    return result;
  }
  GR_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) {
    const std::int32_t own = first + piece_begin(k) / TilePieces<kType>::kElements;
    vectors.load_shifted(own, result.vectors[k]);
    if (k % 4 == 3) __syncwarp(kFullMask);  // or all loads, twice as many, would be on their way
  }
  return result;
}

// The fixed tree over the 256 lanes of a warp. Where two threads add the same two sums, each takes
// one half of its lanes instead, down to one lane a thread. Every thread gets the result.
GR_DEVICE float sum_of_lanes(const float (&lanes)[kThreadLanes]) {
  const std::uint32_t thread = lane_of_thread();
  float four[4];
  const bool upper = (thread & 16) != 0;
  GR_UNROLL
  for (int i = 0; i < 4; ++i) {  // + 128
    const float given = __shfl_xor_sync(kFullMask, upper ? lanes[i] : lanes[i + 4], 16);
    four[i] = (upper ? lanes[i + 4] : lanes[i]) + given;
  }
  float two[2];
  const bool odd_pair = (thread & 8) != 0;
  GR_UNROLL
  for (int i = 0; i < 2; ++i) {  // + 64
    const float given = __shfl_xor_sync(kFullMask, odd_pair ? four[i] : four[i + 2], 8);
    two[i] = (odd_pair ? four[i + 2] : four[i]) + given;
  }
  const bool odd = (thread & 4) != 0;
  const float given = __shfl_xor_sync(kFullMask, odd ? two[0] : two[1], 4);
  float sum = (odd ? two[1] : two[0]) + given;      // + 32
  sum = sum + __shfl_xor_sync(kFullMask, sum, 2);   // + 16
  sum = sum + __shfl_xor_sync(kFullMask, sum, 1);   // + 8
  sum = sum + __shfl_xor_sync(kFullMask, sum, 16);  // lanes 4 apart lie in these threads now
  sum = sum + __shfl_xor_sync(kFullMask, sum, 8);
  return sum + __shfl_xor_sync(kFullMask, sum, 4);
}

// Adds up term(d) over the elements' distances d = x - reference, lane by lane.
template <DataType kType, typename Term>
GR_DEVICE float sum_of_terms(const TilePieces<kType>& tile, float reference, Term term) {
  float lanes[kThreadLanes] = {};
  GR_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) {
    float x[kThreadLanes];
    tile.read(k, x);
    GR_UNROLL
    for (std::int32_t i = 0; i < kThreadLanes; ++i) lanes[i] = term(lanes[i], x[i] - reference);
  }
  return sum_of_lanes(lanes);
}

template <DataType kType>
GR_DEVICE float tile_maximum(const TilePieces<kType>& tile) {
  float best = kMinusInfinity;
  GR_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) {
    float x[kThreadLanes];
    tile.read(k, x);
    GR_UNROLL
    for (std::int32_t i = 0; i < kThreadLanes; ++i) best = larger_number(best, x[i]);
  }
  return warp_max(best) + 0.0f;  // -0 becomes +0
}

// s and t of every lane.
template <DataType kType>
GR_DEVICE void sum_plain(const TilePieces<kType>& tile, float reference, TileStatistics& out) {
  float s[kThreadLanes] = {};
  float t[kThreadLanes] = {};
  GR_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) {
    float x[kThreadLanes];
    tile.read(k, x);
    GR_UNROLL
    for (std::int32_t i = 0; i < kThreadLanes; ++i) {
      const float d = larger_or_nan(x[i] - reference, exp_constants::kFloor);
      const float e = exp_from_floor(d);
      s[i] = s[i] + e;
      t[i] = std::fma(d, e, t[i]);
    }
  }
  out.sum = out.sampling = sum_of_lanes(s);
  out.weighted = sum_of_lanes(t);
}

// Statistics of one tile, by a warp, into global memory.
template <DataType kType>
GR_DEVICE void sum_tile(TilePieces<kType>& tile, const TileRequest& request, TileStatistics* out) {
  TileStatistics statistics;
  statistics.maximum = tile_maximum(tile);
  statistics.squared = 0.0f;
  const float origin = statistics.maximum == kMinusInfinity ? 0.0f : statistics.maximum;
  // In a loop, because a compiler that saw three passes side by side would do them all at once, and
  // run out of registers.
  const int passes = request.squared ? 3 : request.sampling ? 2 : 1;
  GR_NO_UNROLL
  for (int pass = 0; pass < passes; ++pass) {
    tile.forget_floats();
    const float reference = std::bit_cast<float>(opaque(std::bit_cast<std::uint32_t>(origin)));
    if (pass == 0) {
      sum_plain(tile, reference, statistics);
    } else if (pass == 1) {
      if (!request.sampling) continue;
      const float inverse = request.inverse_temperature;
      statistics.sampling = sum_of_terms(tile, reference, [inverse](float sum, float difference) {
        return sum + exp_from_floor(larger_or_nan(difference * inverse, exp_constants::kFloor));
      });
    } else {
      statistics.squared = sum_of_terms(tile, reference, [](float sum, float difference) {
        const float d = larger_or_nan(difference, exp_constants::kFloor);
        return std::fma(d * d, exp_from_floor(d), sum);
      });
    }
  }
  if (lane_of_thread() == 0) *out = statistics;
}

}  // namespace glimprouter::device
