// The elements of a row by 16-byte loads, wherever the row begins; at its two ends, where a whole
// vector does not lie in the row, one by one.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "block.cuh"
#include "device.cuh"
#include "elements.cuh"
#include "glimprouter/row_view.hpp"
#include "glimprouter/tile_statistics.hpp"

namespace glimprouter::device {

inline constexpr float kMinusInfinity = std::bit_cast<float>(0xFF800000u);
inline constexpr std::int32_t kVectorBytes = 16;
inline constexpr std::int32_t kVectorElements = 8;  // of the 16-bit types; of fp32 half as many

// 16 bytes from `phase` bytes behind the boundary at which the first vector lies.
GR_DEVICE Vec16 shifted(const Vec16& first, const Vec16& second, std::uint32_t phase) {
  std::uint32_t words[8];
  GR_UNROLL
  for (int i = 0; i < 4; ++i) {
    words[i] = first.word[i];
    words[4 + i] = second.word[i];
  }
  if ((phase & 8) != 0) {
    GR_UNROLL
    for (int i = 0; i < 6; ++i) words[i] = words[i + 2];
  }
  if ((phase & 4) != 0) {
    GR_UNROLL
    for (int i = 0; i < 5; ++i) words[i] = words[i + 1];
  }
  Vec16 result;
  GR_UNROLL
  for (int i = 0; i < 4; ++i) {
    result.word[i] = (phase & 2) != 0 ? words[i] >> 16 | words[i + 1] << 16 : words[i];
  }
  return result;
}

template <DataType kType>
GR_DEVICE void floats_of(const Vec16& vector,
                         float (&x)[kType == DataType::kFloat32 ? 4 : kVectorElements]) {
  if constexpr (kType == DataType::kFloat32) {
    GR_UNROLL
    for (int i = 0; i < 4; ++i) x[i] = std::bit_cast<float>(vector.word[i]);
  } else {
    GR_UNROLL
    for (int i = 0; i < kVectorElements; ++i) {
      const std::uint32_t word = vector.word[i / 2];
      if constexpr (kType == DataType::kFloat16) {
        x[i] = float_of_half(i % 2 == 0 ? word & 0xFFFFu : word >> 16);
      } else {
        x[i] = std::bit_cast<float>(i % 2 == 0 ? word << 16 : word & 0xFFFF0000u);
      }
    }
  }
}

// A row cut in vectors: vector v holds the elements v * elements, ...
struct RowVectors {
  const std::byte* data;
  std::uint32_t phase;    // bytes from a 16-byte boundary to the row
  std::int32_t elements;  // of a vector
  std::int32_t first;     // vectors [first, end) may be loaded; what lies before and behind them is
  std::int32_t end;       // read one by one

  GR_DEVICE explicit RowVectors(const RowView& row)
      : data(static_cast<const std::byte*>(row.data)),
        phase(static_cast<std::uint32_t>(reinterpret_cast<std::uintptr_t>(row.data) % 16)),
        elements(kVectorBytes / static_cast<std::int32_t>(element_size(row.dtype))) {
    const std::int64_t bytes = row.size * element_size(row.dtype);
    // Off the boundary a vector takes the two around it, and both must lie in the row.
    const std::int64_t whole =
        phase == 0 ? bytes / kVectorBytes : (bytes + phase) / kVectorBytes - 1;
    first = phase == 0 ? 0 : 1;
    end = whole > first ? static_cast<std::int32_t>(whole) : first;
  }

  GR_DEVICE Vec16 load(std::int32_t vector) const {
    const std::byte* const source = data + std::int64_t{vector} * kVectorBytes - phase;
    const Vec16 own = load16(source);
    return phase == 0 ? own : shifted(own, load16(source + kVectorBytes), phase);
  }
};

// The elements of a vector as floats; of fp32 there are four, the others are -inf.
GR_DEVICE void floats_of(const Vec16& vector, DataType dtype, float (&x)[kVectorElements]) {
  if (dtype == DataType::kFloat32) {
    GR_UNROLL
    for (int i = 0; i < kVectorElements; ++i) {
      x[i] = i < 4 ? std::bit_cast<float>(vector.word[i % 4]) : kMinusInfinity;
    }
  } else if (dtype == DataType::kFloat16) {
    floats_of<DataType::kFloat16>(vector, x);
  } else {
    floats_of<DataType::kBFloat16>(vector, x);
  }
}

inline constexpr std::int32_t kVectorsInFlight = 4;  // on their way at once

// Visits (x, id) of a tile, by a warp; vectors first, then what lies outside of them. Padding may
// be visited as (-inf, some id).
template <typename Visit>
GR_DEVICE void for_tile(const RowView& row, const RowVectors& vectors, std::int64_t tile,
                        Visit visit) {
  const std::int32_t a_tile = kTileSize / vectors.elements;
  const auto tile_begin = static_cast<std::int32_t>(tile) * a_tile;
  const std::int32_t begin = tile_begin < vectors.first ? vectors.first : tile_begin;
  const std::int32_t end = tile_begin + a_tile < vectors.end ? tile_begin + a_tile : vectors.end;
  const auto lane = static_cast<std::int32_t>(lane_of_thread());
  constexpr auto kStride = static_cast<std::int32_t>(kWarpSize);
  for (std::int32_t base = begin + lane; base < end; base += kVectorsInFlight * kStride) {
    Vec16 loaded[kVectorsInFlight];
    GR_UNROLL
    for (int k = 0; k < kVectorsInFlight; ++k) {
      if (base + k * kStride < end) loaded[k] = vectors.load(base + k * kStride);
    }
    GR_UNROLL
    for (int k = 0; k < kVectorsInFlight; ++k) {
      if (base + k * kStride >= end) continue;
      float x[kVectorElements];
      floats_of(loaded[k], row.dtype, x);
      const std::int32_t id = (base + k * kStride) * vectors.elements;
      GR_UNROLL
      for (int i = 0; i < kVectorElements; ++i) visit(x[i], id + i);
    }
  }
  const auto first = static_cast<std::int32_t>(tile) * kTileSize;
  const std::int64_t last = (tile + 1) * kTileSize < row.size ? (tile + 1) * kTileSize : row.size;
  const std::int32_t vectors_begin = begin * vectors.elements;
  const std::int32_t vectors_end = (end > begin ? end : begin) * vectors.elements;
  for (std::int32_t id = first + lane; id < static_cast<std::int32_t>(last);) {
    if (id >= vectors_begin && id < vectors_end) {  // over the vectors, the lane kept
      id += (vectors_end - id + kStride - 1) / kStride * kStride;
      continue;
    }
    visit(read_element(vectors.data + id * element_size(row.dtype), row.dtype), id);
    id += kStride;
  }
}

}  // namespace glimprouter::device
