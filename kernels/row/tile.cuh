// The specified reduction of one tile (tile_statistics.hpp), by one warp, in registers: a thread
// holds eight neighbouring virtual lanes, so that their elements come in 16-byte loads.
#pragma once

#include <cstdint>

#include "arithmetic/numeric.hpp"
#include "arithmetic/tile_statistics.hpp"
#include "glimprouter/types/row_view.hpp"
#include "kernels/base/block.cuh"
#include "kernels/base/device.cuh"
#include "kernels/row/vectors.cuh"

namespace glimprouter::device {

inline constexpr std::int32_t kThreadLanes = kLanes / static_cast<std::int32_t>(kWarpSize);
inline constexpr std::int32_t kLaneElements = kTileSize / kLanes;
static_assert(kThreadLanes == 8, "a piece holds one element of each of a thread's lanes");

struct TileRequest {
  bool sampling;  // the sum at the sampling temperature is wanted
  bool squared;
  float inverse_temperature;
};

// Eight neighbouring elements, one of each of a thread's lanes, as they lie in memory.
template <DataType kType>
struct RawPiece {
  static constexpr int kVectors = kType == DataType::kFloat32 ? 2 : 1;
  static constexpr int kElements = kThreadLanes / kVectors;  // a vector
  Vec16 vectors[kVectors];

  GR_DEVICE void read(float (&x)[kThreadLanes]) const {
    GR_UNROLL
    for (int part = 0; part < kVectors; ++part) {
      float values[kElements];
      floats_of<kType>(vectors[part], values);
      GR_UNROLL
      for (int i = 0; i < kElements; ++i) x[part * kElements + i] = values[i];
    }
  }
};

// A thread's pieces of a tile: of each of its lanes the elements in order.
template <DataType kType>
class TilePieces {
 public:
  GR_DEVICE TilePieces(const RowView& row, const RowVectors& vectors, std::uint32_t tile)
      : vectors_(vectors) {
    constexpr int kTileVectors = kTileSize / RawPiece<kType>::kElements;
    const auto first = static_cast<std::int32_t>(tile) * kTileVectors;
    const std::int32_t own = static_cast<std::int32_t>(lane_of_thread()) * kThreadLanes;
    whole_ = first >= vectors.first && first + kTileVectors <= vectors.end;
    vector_ = first + own / RawPiece<kType>::kElements;
    const std::int64_t left = row.size - static_cast<std::int64_t>(tile) * kTileSize - own;
    present_ = left < kTileSize ? static_cast<std::int32_t>(left) : kTileSize;
  }

  // Whether the pieces are whole vectors that begin at 16-byte boundaries.
  GR_DEVICE bool aligned() const { return whole_ && vectors_.phase == 0; }

  // The k-th piece of an aligned tile.
  GR_DEVICE RawPiece<kType> load_aligned(std::int32_t k) const {
    RawPiece<kType> piece;
    GR_UNROLL
    for (int part = 0; part < RawPiece<kType>::kVectors; ++part) {
      piece.vectors[part] = vectors_.load_aligned(vector_ + k * kStride + part);
    }
    return piece;
  }

  // The k-th piece; -inf behind the row's end.
  GR_DEVICE RawPiece<kType> load(std::int32_t k) const {
    if (aligned()) return load_aligned(k);
    RawPiece<kType> piece;
    if (whole_) {
      vectors_.load_shifted(vector_ + k * kStride, piece.vectors);
    } else {
      load_edge(k, piece);
    }
    return piece;
  }

 private:
  static constexpr std::int32_t kStride = kLanes / RawPiece<kType>::kElements;

  GR_DEVICE void load_edge(std::int32_t k, RawPiece<kType>& piece) const {
    constexpr bool kWide = kType == DataType::kFloat32;
    constexpr std::int32_t kSize = kWide ? 4 : 2;
    constexpr std::uint32_t kInfinity =
        kWide ? 0xFF800000u : (kType == DataType::kFloat16 ? 0xFC00u : 0xFF80u);
    const std::byte* const source =
        vectors_.data + std::int64_t{vector_} * kVectorBytes + k * kLanes * kSize;
    const std::int32_t present = present_ - k * kLanes;
    const auto bits = [&](std::int32_t index) -> std::uint32_t {
      if (index >= present) return kInfinity;
      if constexpr (kWide) return read_as<std::uint32_t>(source + index * kSize);
      return read_as<std::uint16_t>(source + index * kSize);
    };
    GR_UNROLL
    for (int word = 0; word < 4 * RawPiece<kType>::kVectors; ++word) {
      std::uint32_t value = bits(kWide ? word : 2 * word);
      if constexpr (!kWide) value |= bits(2 * word + 1) << 16;
      piece.vectors[word / 4].word[word % 4] = value;
    }
  }

  const RowVectors& vectors_;
  std::int32_t vector_;   // of the first piece
  std::int32_t present_;  // elements from the first piece's first on
  bool whole_;            // vectors hold all of the tile
};

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

// Calls take(x) for the pieces in order: in a loop of few instructions, because a kernel that is
// called once a token finds little of its code in the caches.
template <DataType kType, typename Take>
GR_DEVICE void for_pieces(const TilePieces<kType>& tile, Take take) {
  GR_NO_UNROLL
  for (std::int32_t k = 0; k < kLaneElements; ++k) {
    float x[kThreadLanes];
    tile.load(k).read(x);
    take(x);
  }
}

// All pieces are on their way at once: so they come into the first-level cache, where the passes
// that follow find them.
template <DataType kType>
GR_DEVICE float tile_maximum(const TilePieces<kType>& tile) {
  float best = kMinusInfinity;
  const auto take = [&best](const float(&x)[kThreadLanes]) {
    GR_UNROLL
    for (std::int32_t i = 0; i < kThreadLanes; ++i) best = larger_number(best, x[i]);
  };
  if (tile.aligned()) {
    RawPiece<kType> pieces[kLaneElements];
    GR_UNROLL
    for (std::int32_t k = 0; k < kLaneElements; ++k) pieces[k] = tile.load_aligned(k);
    GR_UNROLL
    for (std::int32_t k = 0; k < kLaneElements; ++k) {
      float x[kThreadLanes];
      pieces[k].read(x);
      take(x);
    }
  } else {
    for_pieces(tile, take);
  }
  return warp_max(best) + 0.0f;  // -0 becomes +0
}

// s and t.
template <DataType kType>
GR_DEVICE void sum_plain(const TilePieces<kType>& tile, float reference, TileStatistics& out) {
  float s[kThreadLanes] = {};
  float t[kThreadLanes] = {};
  for_pieces(tile, [&](const float(&x)[kThreadLanes]) {
    GR_UNROLL
    for (std::int32_t i = 0; i < kThreadLanes; ++i) {
      const float d = larger_or_nan(x[i] - reference, exp_constants::kFloor);
      const float e = exp_from_floor(d);
      s[i] = s[i] + e;
      t[i] = std::fma(d, e, t[i]);
    }
  });
  out.sum = out.sampling = sum_of_lanes(s);
  out.weighted = sum_of_lanes(t);
}

template <DataType kType>
GR_DEVICE float sum_sampling(const TilePieces<kType>& tile, float reference, float inverse) {
  float z[kThreadLanes] = {};
  for_pieces(tile, [&](const float(&x)[kThreadLanes]) {
    GR_UNROLL
    for (std::int32_t i = 0; i < kThreadLanes; ++i) {
      const float d = (x[i] - reference) * inverse;
      z[i] = z[i] + exp_from_floor(larger_or_nan(d, exp_constants::kFloor));
    }
  });
  return sum_of_lanes(z);
}

template <DataType kType>
GR_DEVICE float sum_squared(const TilePieces<kType>& tile, float reference) {
  float u[kThreadLanes] = {};
  for_pieces(tile, [&](const float(&x)[kThreadLanes]) {
    GR_UNROLL
    for (std::int32_t i = 0; i < kThreadLanes; ++i) {
      const float d = larger_or_nan(x[i] - reference, exp_constants::kFloor);
      u[i] = std::fma(d * d, exp_from_floor(d), u[i]);
    }
  });
  return sum_of_lanes(u);
}

// Statistics of one tile, by a warp, into global memory. maximum: of tile_maximum().
template <DataType kType>
GR_DEVICE void sum_tile(const TilePieces<kType>& tile, float maximum, const TileRequest& request,
                        TileStatistics* out) {
  TileStatistics statistics;
  statistics.maximum = maximum;
  const float reference = maximum == kMinusInfinity ? 0.0f : maximum;
  sum_plain(tile, reference, statistics);
  statistics.squared = request.squared ? sum_squared(tile, reference) : 0.0f;
  if (request.sampling) {
    statistics.sampling = sum_sampling(tile, reference, request.inverse_temperature);
  }
  if (lane_of_thread() == 0) *out = statistics;
}

}  // namespace glimprouter::device
