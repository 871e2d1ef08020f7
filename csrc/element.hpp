// One element of a row as fp32. For files compiled for the base instruction set only (an inline
// function must not be compiled twice for different processors).
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include "glimprouter/row_view.hpp"

namespace glimprouter {

inline float float_from_bfloat16(std::uint16_t bits) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

inline float float_from_half(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16;
  const std::uint32_t exponent = half >> 10 & 0x1Fu;
  const std::uint32_t mantissa = half & 0x3FFu;
  if (exponent == 0x1Fu) return std::bit_cast<float>(sign | 0x7F800000u | mantissa << 13);
  if (exponent != 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
  const float magnitude = static_cast<float>(mantissa) * 0x1.0p-24f;  // subnormal: exact
  return sign != 0 ? -magnitude : magnitude;
}

inline float element(const RowView& row, std::int64_t index) {
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

}  // namespace glimprouter
