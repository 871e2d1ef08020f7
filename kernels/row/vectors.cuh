// The elements of a row by 16-byte loads, wherever the row begins; at its two ends, where a whole
// vector does not lie in the row, one by one.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "arithmetic/tile_statistics.hpp"
#include "glimprouter/types/row_view.hpp"
#include "kernels/base/block.cuh"
#include "kernels/base/device.cuh"
#include "kernels/base/elements.cuh"

namespace glimprouter::device {

inline constexpr float kMinusInfinity = std::bit_cast<float>(0xFF800000u);
inline constexpr std::int32_t kVectorBytes = 16;
inline constexpr std::int32_t kVectorElements = 8;  // of the 16-bit types; of fp32 half as many

// Elements first, first + stride, ... of a row, one by one; -inf behind its end.
template <int kCount>
GR_DEVICE void read_strided(const RowView& row, std::int64_t first, std::int32_t stride,
                            float (&x)[kCount]) {
  const std::int64_t size = element_size(row.dtype);
  const std::byte* const source = static_cast<const std::byte*>(row.data) + first * size;
  std::uint32_t bits[kCount];
  GR_UNROLL
  for (int k = 0; k < kCount; ++k) {
    bits[k] = 0;
    if (first + k * stride < row.size) bits[k] = read_bits(source + k * stride * size, row.dtype);
  }
  GR_UNROLL
  for (int k = 0; k < kCount; ++k) {
    x[k] = first + k * stride < row.size ? float_of_bits(bits[k], row.dtype) : kMinusInfinity;
  }
}

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

  GR_DEVICE Vec16 load_aligned(std::int32_t vector) const {
    return load16(data + std::int64_t{vector} * kVectorBytes);
  }
  // Neighbouring vectors off the boundary.
  template <int kCount>
  GR_DEVICE void load_shifted(std::int32_t vector, Vec16 (&result)[kCount]) const {
    const std::byte* const source = data + std::int64_t{vector} * kVectorBytes - phase;
    Vec16 before = load16(source);
    GR_UNROLL
    for (int k = 0; k < kCount; ++k) {
      const Vec16 next = load16(source + (k + 1) * kVectorBytes);
      result[k] = shifted(before, next, phase);
      before = next;
    }
  }
};

inline constexpr int kVectorsInFlight = 8;  // a thread's share of a tile of a 16-bit type
inline constexpr std::int32_t kQuad = 4;

// The elements [begin, end) of a tile, on the grid of the 16-byte boundaries of memory, wherever
// the row begins: of vectors that lie in it only in part, nothing else is read.
struct TileGrid {
  const std::byte* data;  // of the row
  DataType dtype;
  std::int32_t begin;
  std::int32_t end;
  std::int32_t elements;  // of a vector
  std::int32_t origin;    // first element of the first vector: at or before `begin`

  GR_DEVICE TileGrid(const RowView& row, std::int64_t tile)
      : data(static_cast<const std::byte*>(row.data)), dtype(row.dtype) {
    const auto size = static_cast<std::int32_t>(element_size(row.dtype));
    begin = static_cast<std::int32_t>(tile) * kTileSize;
    end = begin + kTileSize < row.size ? begin + kTileSize : static_cast<std::int32_t>(row.size);
    elements = kVectorBytes / size;
    const auto phase = static_cast<std::int32_t>(reinterpret_cast<std::uintptr_t>(data) % 16);
    origin = begin - phase / size;
  }

  GR_DEVICE bool holds(std::int32_t first, std::int32_t count) const {
    return first >= begin && first + count <= end;
  }
  GR_DEVICE const std::byte* at(std::int32_t element) const {
    return data + std::int64_t{element} * (kVectorBytes / elements);
  }

  // Four elements from a quarter, or a half, of a vector on; -inf for what is not the tile's.
  GR_DEVICE void read(std::int32_t first, float (&x)[kQuad]) const {
    if (!holds(first, kQuad)) {
      GR_UNROLL
      for (std::int32_t i = 0; i < kQuad; ++i) {
        x[i] = holds(first + i, 1) ? read_element(at(first + i), dtype) : kMinusInfinity;
      }
    } else if (dtype == DataType::kFloat32) {
      floats_of(read_quad<DataType::kFloat32>(at(first)), x);
    } else if (dtype == DataType::kBFloat16) {
      floats_of(read_quad<DataType::kBFloat16>(at(first)), x);
    } else {
      floats_of(read_quad<DataType::kFloat16>(at(first)), x);
    }
  }
};

// The largest of two 16-bit pairs; NaN does not count.
template <DataType kType>
GR_DEVICE float largest_of_pairs(std::uint32_t a, std::uint32_t b) {
  const std::uint32_t pair =
      kType == DataType::kFloat16 ? larger_halves(a, b) : larger_bfloat16s(a, b);
  return larger_number(float_of_bits<kType>(pair), float_of_bits<kType>(pair >> 16));
}

// Elements in question: from `lowest` to `highest`, finite numbers; bounded: some of the row are
// larger.
struct ValueRange {
  float lowest;
  float highest;
  bool bounded;

  // Without a branch, by which the loads of several vectors would follow one another.
  GR_DEVICE std::uint32_t holds(float x) const {
    return static_cast<std::uint32_t>(x >= lowest) & static_cast<std::uint32_t>(x <= highest);
  }
};

// A bit for each quad of a vector with an element in the range.
template <DataType kType>
GR_DEVICE std::uint32_t quads_in(const Vec16& vector, const ValueRange& range) {
  if constexpr (kType == DataType::kFloat32) {
    float x[kQuad];
    floats_of<kType>(vector, x);
    return range.holds(x[0]) | range.holds(x[1]) | range.holds(x[2]) | range.holds(x[3]);
  } else {
    if (!range.bounded) {
      const float first = largest_of_pairs<kType>(vector.word[0], vector.word[1]);
      const float second = largest_of_pairs<kType>(vector.word[2], vector.word[3]);
      return (first >= range.lowest ? 1u : 0u) | (second >= range.lowest ? 2u : 0u);
    }
    float x[kVectorElements];
    floats_of<kType>(vector, x);
    std::uint32_t quads = 0;
    GR_UNROLL
    for (int i = 0; i < kVectorElements; ++i) quads |= range.holds(x[i]) << i / kQuad;
    return quads;
  }
}

// The same for the vectors from element `own` on, kVectorsInFlight of them, kWarpSize vectors
// apart: two bits each. A vector that belongs to the tile only in part is not looked at: its quads
// count.
template <DataType kType>
GR_DEVICE std::uint32_t quads_in(const TileGrid& grid, std::int32_t own, const ValueRange& range) {
  constexpr std::int32_t kElements = kType == DataType::kFloat32 ? kQuad : kVectorElements;
  constexpr std::int32_t kStride = kElements * static_cast<std::int32_t>(kWarpSize);
  Vec16 loaded[kVectorsInFlight];
  GR_UNROLL
  for (int k = 0; k < kVectorsInFlight; ++k) {
    loaded[k] = {};
    if (grid.holds(own + k * kStride, kElements)) loaded[k] = load16(grid.at(own + k * kStride));
  }
  __syncwarp();  // no load may sink behind it, to where its vector is looked at
  std::uint32_t quads = 0;
  GR_UNROLL
  for (int k = 0; k < kVectorsInFlight; ++k) {
    const std::int32_t first = own + k * kStride;
    std::uint32_t found = first < grid.end ? (1u << kElements / kQuad) - 1 : 0;
    if (grid.holds(first, kElements)) found = quads_in<kType>(loaded[k], range);
    quads |= found << (2 * k);
  }
  return quads;
}

GR_DEVICE std::uint32_t quads_in(const TileGrid& grid, std::int32_t own, const ValueRange& range) {
  switch (grid.dtype) {
    case DataType::kFloat32:
      return quads_in<DataType::kFloat32>(grid, own, range);
    case DataType::kBFloat16:
      return quads_in<DataType::kBFloat16>(grid, own, range);
    case DataType::kFloat16:
      return quads_in<DataType::kFloat16>(grid, own, range);
  }
  return 0;
}

// Calls take(x, id of x[0]) for the quads of a tile with an element in the range; by a warp, whose
// lanes part ways. All vectors of the tile are on their way before the first is looked at. A quad
// that counts is read again, from the first-level cache, so that `take` is compiled once.
template <typename Take>
GR_DEVICE void for_quads_in(const RowView& row, std::int64_t tile, const ValueRange& range,
                            Take take) {
  const TileGrid grid(row, tile);
  const std::int32_t stride = grid.elements * static_cast<std::int32_t>(kWarpSize);
  GR_NO_UNROLL
  for (std::int32_t base = grid.origin; base < grid.end; base += kVectorsInFlight * stride) {
    const std::int32_t own = base + static_cast<std::int32_t>(lane_of_thread()) * grid.elements;
    std::uint32_t quads = quads_in(grid, own, range);
    GR_NO_UNROLL
    for (; quads != 0; quads &= quads - 1) {
      const std::int32_t bit = __ffs(static_cast<int>(quads)) - 1;
      const std::int32_t first = own + bit / 2 * stride + bit % 2 * kQuad;
      float x[kQuad];
      grid.read(first, x);
      take(x, first);
    }
  }
}

}  // namespace glimprouter::device
