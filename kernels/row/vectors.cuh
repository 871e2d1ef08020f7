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

  GR_DEVICE Vec16 load(std::int32_t vector) const {
    if (phase == 0) return load_aligned(vector);
    Vec16 result[1];
    load_shifted(vector, result);
    return result[0];
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

inline constexpr int kVectorsInFlight = 4;

// What of a tile is read by vectors, and what one by one.
struct TileSpan {
  std::int32_t first_vector;  // of the row
  std::int32_t end_vector;
  std::int32_t first;  // element
  std::int32_t end;

  GR_DEVICE TileSpan(const RowView& row, const RowVectors& vectors, std::int64_t tile) {
    const std::int32_t a_tile = kTileSize / vectors.elements;
    const std::int32_t begin = static_cast<std::int32_t>(tile) * a_tile;
    first_vector = begin > vectors.first ? begin : vectors.first;
    end_vector = begin + a_tile < vectors.end ? begin + a_tile : vectors.end;
    if (end_vector < first_vector) end_vector = first_vector;
    first = static_cast<std::int32_t>(tile) * kTileSize;
    end = first + kTileSize < row.size ? first + kTileSize : static_cast<std::int32_t>(row.size);
  }
};

// Hands a warp's vectors of a tile to take(loaded, vector), several at a time: loaded[k] is vector
// `vector + k kWarpSize` where that lies before the span's end.
template <typename Take>
GR_DEVICE void for_vectors(const RowVectors& vectors, const TileSpan& span, Take take) {
  constexpr auto kStride = static_cast<std::int32_t>(kWarpSize);
  for (std::int32_t vector = span.first_vector + static_cast<std::int32_t>(lane_of_thread());
       vector < span.end_vector; vector += kVectorsInFlight * kStride) {
    Vec16 loaded[kVectorsInFlight];
    GR_UNROLL
    for (int k = 0; k < kVectorsInFlight; ++k) {
      const std::int32_t own = vector + k * kStride;
      if (own < span.end_vector) loaded[k] = vectors.load(own);
    }
    take(loaded, vector);
  }
}

// Visits (x, id) of a warp's elements of a tile that no vector holds.
template <typename Visit>
GR_DEVICE void for_edges(const RowView& row, const RowVectors& vectors, const TileSpan& span,
                         Visit visit) {
  constexpr auto kStride = static_cast<std::int32_t>(kWarpSize);
  const std::int32_t held = span.first_vector * vectors.elements;
  const std::int32_t held_end = span.end_vector * vectors.elements;
  std::int32_t id = span.first + static_cast<std::int32_t>(lane_of_thread());
  while (id < span.end) {
    if (id >= held && id < held_end) {
      id += (held_end - id + kStride - 1) / kStride * kStride;
      continue;
    }
    visit(read_element(vectors.data + id * element_size(row.dtype), row.dtype), id);
    id += kStride;
  }
}

// The largest element of a vector; NaN does not count.
GR_DEVICE float largest_of(const Vec16& vector, DataType dtype) {
  if (dtype == DataType::kFloat32) {
    float best = std::bit_cast<float>(vector.word[0]);
    GR_UNROLL
    for (int i = 1; i < 4; ++i) best = larger_number(best, std::bit_cast<float>(vector.word[i]));
    return best;
  }
  std::uint32_t pair = vector.word[0];
  GR_UNROLL
  for (int i = 1; i < 4; ++i) {
    pair = dtype == DataType::kFloat16 ? larger_halves(pair, vector.word[i])
                                       : larger_bfloat16s(pair, vector.word[i]);
  }
  return larger_number(float_of_bits(pair & 0xFFFFu, dtype), float_of_bits(pair >> 16, dtype));
}

// A bit for each element of a vector that is at least lowest.
GR_DEVICE std::uint32_t elements_above(const Vec16& vector, DataType dtype, float lowest) {
  if (!(largest_of(vector, dtype) >= lowest)) return 0;
  std::uint32_t above = 0;
  GR_UNROLL
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t word = vector.word[i];
    if (dtype == DataType::kFloat32) {
      above |= std::bit_cast<float>(word) >= lowest ? 1u << i : 0u;
    } else {
      above |= float_of_bits(word & 0xFFFFu, dtype) >= lowest ? 1u << (2 * i) : 0u;
      above |= float_of_bits(word >> 16, dtype) >= lowest ? 2u << (2 * i) : 0u;
    }
  }
  return above;
}

// Visits (x, id) of those elements of a tile that are at least lowest, a finite number; by a warp.
// They are few as a rule: their bits are read again, so that `visit` is compiled once.
template <typename Visit>
GR_DEVICE void for_tile_above(const RowView& row, const RowVectors& vectors, std::int64_t tile,
                              float lowest, Visit visit) {
  constexpr auto kStride = static_cast<std::int32_t>(kWarpSize);
  const TileSpan span(row, vectors, tile);
  for_vectors(vectors, span, [&](const Vec16(&loaded)[kVectorsInFlight], std::int32_t vector) {
    std::uint32_t above = 0;
    GR_UNROLL
    for (int k = 0; k < kVectorsInFlight; ++k) {
      if (vector + k * kStride >= span.end_vector) continue;
      above |= elements_above(loaded[k], row.dtype, lowest) << (k * kVectorElements);
    }
    for (; above != 0; above &= above - 1) {
      const std::int32_t bit = __ffs(static_cast<int>(above)) - 1;
      const std::int32_t own = vector + bit / kVectorElements * kStride;
      const std::int32_t id = own * vectors.elements + bit % kVectorElements;
      visit(read_element(vectors.data + id * element_size(row.dtype), row.dtype), id);
    }
  });
  for_edges(row, vectors, span, [&](float x, std::int32_t id) {
    if (x >= lowest) visit(x, id);
  });
}

}  // namespace glimprouter::device
