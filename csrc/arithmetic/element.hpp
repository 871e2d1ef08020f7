// One element of a row as fp32, and back. For files compiled for the base instruction set only (an
// inline function must not be compiled twice for different processors).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "glimprouter/types/host_device.hpp"
#include "glimprouter/types/row_view.hpp"

namespace glimprouter {

GR_HOST_DEVICE inline float float_from_bfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

GR_HOST_DEVICE inline float float_from_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = half >> 10 & 0x1Fu;
  const std::uint32_t mantissa = half & 0x3FFu;
  if (exponent == 0x1Fu) return std::bit_cast<float>(sign | 0x7F800000u | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1.0p-24f;  // subnormal: exact
  return sign != 0 ? -magnitude : magnitude;
}

GR_HOST_DEVICE inline float element(const RowView& row, std::int64_t index) {
  const char* source = static_cast<const char*>(row.data) + index * element_size(row.dtype);
  if (row.dtype == DataType::kFloat32) {
    float value = 0;
    std::memcpy(&value, source, sizeof value);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, source, sizeof bits);
  return row.dtype == DataType::kFloat16 ? float_from_half(bits) : float_from_bfloat16(bits);
}

GR_HOST_DEVICE inline std::uint16_t half_from_float(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude >= 0x7F800000u) {
    return static_cast<std::uint16_t>(sign | 0x7C00u | (magnitude > 0x7F800000u ? 0x200u : 0u));
  }
  if (magnitude >= 0x477FF000u) return static_cast<std::uint16_t>(sign | 0x7C00u);
  if (magnitude < 0x38800000u) {  // subnormal: adding 1/2 rounds at units of 2^-24
    const float units = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<std::uint16_t>(sign | (std::bit_cast<std::uint32_t>(units) - 0x3F000000u));
  }
  const std::uint32_t rounded = magnitude + 0xFFFu + (magnitude >> 13 & 1u);
  return static_cast<std::uint16_t>(sign | (rounded - 0x38000000u) >> 13);
}

GR_HOST_DEVICE inline std::uint16_t bfloat16_from_float(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<std::uint16_t>(bits >> 16 | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

// Rounds to nearest, ties to even.
GR_HOST_DEVICE inline void store_element(std::byte* target, DataType dtype, float value) {
  if (dtype == DataType::kFloat32) {
    std::memcpy(target, &value, 4);
    return;
  }
  const std::uint16_t bits =
      dtype == DataType::kFloat16 ? half_from_float(value) : bfloat16_from_float(value);
  std::memcpy(target, &bits, 2);
}

}  // namespace glimprouter
