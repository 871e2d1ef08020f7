// Elements of rows in one type that the compiler knows: eight at a time, rounded as a framework
// does that stores every result of an operation.
#pragma once

#include <cstddef>
#include <cstdint>

#include "device/device_layers.hpp"
#include "kernels/base/device.cuh"
#include "kernels/base/elements.cuh"

namespace glimprouter::device {

// As if it were stored and read again.
template <DataType kType>
GR_DEVICE float rounded(float value) {
  if constexpr (kType == DataType::kFloat32) return value;
  return float_of_bits < kType == DataType::kFloat32 ? DataType::kBFloat16
                                                     : kType > (bits_of(value, kType));
}

template <DataType kType>
GR_DEVICE float read_at(const std::byte* row, std::int64_t index) {
  return read_element(row + index * element_size(kType), kType);
}

// The eight elements from `first` on, zeros behind the end. vectors: the row begins at a multiple
// of 16 bytes and has whole pieces.
template <DataType kType>
GR_DEVICE void read_eight(const std::byte* row, std::int64_t first, std::int64_t size, bool vectors,
                          float (&values)[kPieceElements]) {
  if (vectors && first < size) {
    read_piece(row + first * element_size(kType), kType, values);
    return;
  }
  GR_UNROLL
  for (std::int32_t i = 0; i < kPieceElements; ++i) {
    values[i] = first + i < size ? read_at<kType>(row, first + i) : 0.0f;
  }
}

template <DataType kType>
GR_DEVICE void write_eight(std::byte* row, std::int64_t first, std::int64_t size, bool vectors,
                           const float (&values)[kPieceElements]) {
  std::byte* const target = row + first * element_size(kType);
  if (vectors && first < size) {
    write_piece(target, kType, values);
    return;
  }
  GR_UNROLL
  for (std::int32_t i = 0; i < kPieceElements; ++i) {
    if (first + i < size) write_element(target + i * element_size(kType), kType, values[i]);
  }
}

// Where a row begins, counted as if the rows were compact.
template <DataType kType>
GR_DEVICE const std::byte* row_begin(const LayerRows& rows, std::uint32_t index) {
  const auto third = static_cast<std::uint32_t>(rows.shape[2]);
  const auto second = static_cast<std::uint32_t>(rows.shape[1]);
  const std::uint32_t outer = index / third;
  const std::uint32_t first = outer / second;
  return rows.data + element_size(kType) *
                         (first * rows.strides[0] + (outer - first * second) * rows.strides[1] +
                          (index - outer * third) * rows.strides[2]);
}

}  // namespace glimprouter::device
