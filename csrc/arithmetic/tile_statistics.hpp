// What the reduction leaves of a row, and the order of its elements: shared by the CPU kernels, the
// device kernels and the selection.
//
// Specification of the reduction (the same for every instruction set and for device code):
//   - a row is cut in tiles of 2048 elements; missing elements of the last tile count as -inf;
//   - in a tile, m is the maximum (-0 counts as +0), d = x - m, e = e^d (numeric.hpp);
//   - element i belongs to virtual lane i mod 256; a lane adds its 8 elements in index order:
//     s = s + e, t = fma(d, e, t), u = fma(d d, e, u), z = z + e^(d / T);
//   - the 256 lanes are added in a tree: lane i takes lane i + 128, then + 64, ... then + 1;
//   - tiles are merged in double precision: tile i belongs to merge lane i mod 32, which adds its
//     tiles in index order; the 32 lanes are added in a tree: lane i takes lane i + 16, ... then
//     i + 1.
#pragma once

#include <bit>
#include <cstdint>

#include "arithmetic/numeric.hpp"
#include "glimprouter/types/host_device.hpp"

namespace glimprouter {

inline constexpr std::int32_t kTileSize = 2048;
inline constexpr std::int32_t kLanes = 256;
inline constexpr std::int32_t kMergeLanes = 32;
inline constexpr float kLowestFinite = -0x1.fffffep127f;

GR_HOST_DEVICE constexpr std::int64_t tiles_of(std::int64_t vocabulary) {
  return (vocabulary + kTileSize - 1) / kTileSize;
}

struct TileStatistics {
  float maximum;   // -inf when every element is
  float sum;       // s = sum e^d; NaN when an element is NaN
  float weighted;  // t = sum d e^d
  float squared;   // u = sum d^2 e^d, when asked for
  float sampling;  // z = sum e^(d / T), when asked for; else s
};

// The tiles of a valid row merged, relative to the row's maximum.
struct RowSums {
  double sum;       // sum e^(x - m)
  double weighted;  // sum (x - m) e^(x - m)
  double squared;   // sum (x - m)^2 e^(x - m), when asked for
  double sampling;  // sum e^((x - m) / T)
  std::int64_t num_tiles;
  float maximum;
};

// A tile whose maximum lies more than 40 max(1, T) below the row's contributes exactly nothing.
GR_HOST_DEVICE inline bool tile_counts(float tile_maximum, float row_maximum, float temperature) {
  return tile_maximum - row_maximum >= -40.0f * (temperature > 1.0f ? temperature : 1.0f);
}

// What a tile adds to the row's sums; nothing where the tile does not count.
struct TileTerms {
  double sum = 0;
  double weighted = 0;
  double squared = 0;
  double sampling = 0;

  GR_HOST_DEVICE void add(const TileTerms& other) {
    sum += other.sum;
    weighted += other.weighted;
    squared += other.squared;
    sampling += other.sampling;
  }
};

// temperature: 0 and 1 need no sum of their own.
GR_HOST_DEVICE inline TileTerms terms_of(const TileStatistics& tile, float row_maximum,
                                         float temperature) {
  TileTerms terms;
  const float d = tile.maximum - row_maximum;
  if (tile_counts(tile.maximum, row_maximum, 1.0f)) {
    const auto distance = static_cast<double>(d);
    const auto scale = static_cast<double>(exp_nonpositive(d));
    const auto s = static_cast<double>(tile.sum);
    const auto t = static_cast<double>(tile.weighted);
    const auto u = static_cast<double>(tile.squared);
    terms.sum = scale * s;
    terms.weighted = scale * (t + distance * s);
    terms.squared = scale * (u + 2.0 * distance * t + distance * distance * s);
  }
  if (tile_counts(tile.maximum, row_maximum, temperature)) {
    const bool tempered = temperature != 0.0f && temperature != 1.0f;
    const float inverse_temperature = tempered ? 1.0f / temperature : 1.0f;
    const auto scale = static_cast<double>(exp_nonpositive(d * inverse_temperature));
    terms.sampling = scale * static_cast<double>(tile.sampling);
  }
  return terms;
}

// A candidate of the selection in 64 bits that sort as unsigned integers: by descending logit, then
// by ascending id. High word: order-reversing image of the float; low word: the id.
using Candidate = std::uint64_t;

GR_HOST_DEVICE inline Candidate candidate_of(float value, std::int32_t id) {
  value += 0.0f;  // -0 becomes +0: the two tie
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t descending = (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);
  return static_cast<Candidate>(descending) << 32 | static_cast<std::uint32_t>(id);
}

GR_HOST_DEVICE inline float candidate_value(Candidate candidate) {
  const auto descending = static_cast<std::uint32_t>(candidate >> 32);
  return std::bit_cast<float>((descending >> 31) != 0 ? descending : ~descending & 0x7FFFFFFFu);
}

GR_HOST_DEVICE inline std::int32_t candidate_id(Candidate candidate) {
  return static_cast<std::int32_t>(candidate & 0xFFFFFFFFu);
}

}  // namespace glimprouter
