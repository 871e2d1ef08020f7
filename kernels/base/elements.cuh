// Elements of keys and values in registers: 4 or 8 at a time where they are aligned, else one by
// one; cast as the CPU casts them (element.hpp).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "arithmetic/element.hpp"
#include "glimprouter/types/row_view.hpp"
#include "kernels/base/device.cuh"

namespace glimprouter::device {

// Through memcpy, because the bytes have another type than the value; the promised alignment makes
// it one instruction.
template <typename Value>
GR_DEVICE Value read_as(const std::byte* source) {
  Value value;
  std::memcpy(&value, __builtin_assume_aligned(source, sizeof value), sizeof value);
  return value;
}
template <typename Value>
GR_DEVICE void write_as(std::byte* target, Value value) {
  std::memcpy(__builtin_assume_aligned(target, sizeof value), &value, sizeof value);
}

// float_from_half without a branch: a multiplication moves the exponent, exactly for subnormal
// numbers too.
GR_DEVICE float float_of_half(std::uint32_t half) {
  const std::uint32_t shifted = (half & 0x7FFFu) << 13;
  const float scaled = std::bit_cast<float>(shifted) * 0x1p112f;
  const std::uint32_t magnitude =
      shifted >= 0x0F800000u ? shifted | 0x7F800000u : std::bit_cast<std::uint32_t>(scaled);
  return std::bit_cast<float>(magnitude | (half & 0x8000u) << 16);
}

template <DataType kType>
GR_DEVICE float float_of_bits(std::uint32_t bits) {
  static_assert(kType != DataType::kFloat32);
  return kType == DataType::kFloat16 ? float_of_half(bits & 0xFFFFu)
                                     : std::bit_cast<float>(bits << 16);
}

// An element in two steps, so that several loads are on their way before the first is looked at.
GR_DEVICE std::uint32_t read_bits(const std::byte* source, DataType dtype) {
  return dtype == DataType::kFloat32 ? read_as<std::uint32_t>(source)
                                     : read_as<std::uint16_t>(source);
}
GR_DEVICE float float_of_bits(std::uint32_t bits, DataType dtype) {
  return dtype == DataType::kFloat32    ? std::bit_cast<float>(bits)
         : dtype == DataType::kBFloat16 ? float_of_bits<DataType::kBFloat16>(bits)
                                        : float_of_bits<DataType::kFloat16>(bits);
}

GR_DEVICE float read_element(const std::byte* source, DataType dtype) {
  return float_of_bits(read_bits(source, dtype), dtype);
}

GR_DEVICE std::uint32_t bits_of(float value, DataType dtype) {
  return dtype == DataType::kFloat16 ? half_from_float(value) : bfloat16_from_float(value);
}

GR_DEVICE void write_element(std::byte* target, DataType dtype, float value) {
  if (dtype == DataType::kFloat32) {
    write_as(target, value);
  } else {
    write_as(target, static_cast<std::uint16_t>(bits_of(value, dtype)));
  }
}

// Four elements as they lie in memory: 16 bytes of fp32, or 8 of the others.
template <DataType kType>
struct RawQuad {
  std::uint32_t word[kType == DataType::kFloat32 ? 4 : 2];
};

// The pointer is a multiple of the quad's size.
template <DataType kType>
GR_DEVICE RawQuad<kType> read_quad(const std::byte* source) {
  if constexpr (kType == DataType::kFloat32) {
    return std::bit_cast<RawQuad<kType>>(load16(source));
  } else {
    return std::bit_cast<RawQuad<kType>>(read_as<std::uint64_t>(source));
  }
}

template <DataType kType>
GR_DEVICE void floats_of(const RawQuad<kType>& quad, float (&values)[4]) {
  if constexpr (kType == DataType::kFloat32) {
    GR_UNROLL
    for (int i = 0; i < 4; ++i) values[i] = std::bit_cast<float>(quad.word[i]);
  } else {
    GR_UNROLL
    for (int i = 0; i < 2; ++i) {
      values[2 * i] = float_of_bits<kType>(quad.word[i]);
      values[2 * i + 1] = kType == DataType::kFloat16
                              ? float_of_half(quad.word[i] >> 16)
                              : std::bit_cast<float>(quad.word[i] & 0xFFFF0000u);
    }
  }
}

// Elements that one thread moves: 16 bytes of the 16-bit types.
inline constexpr std::int32_t kPieceElements = 8;

GR_DEVICE bool aligned_to_16(const std::byte* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % 16 == 0;
}

GR_DEVICE void read_piece(const std::byte* source, DataType dtype,
                          float (&values)[kPieceElements]) {
  const Vec16 low = load16(source);
  if (dtype == DataType::kFloat32) {
    const Vec16 high = load16(source + 16);
    GR_UNROLL
    for (int i = 0; i < 4; ++i) {
      values[i] = std::bit_cast<float>(low.word[i]);
      values[4 + i] = std::bit_cast<float>(high.word[i]);
    }
    return;
  }
  GR_UNROLL
  for (int i = 0; i < 4; ++i) {
    const bool half = dtype == DataType::kFloat16;
    const std::uint32_t first = low.word[i] & 0xFFFFu;
    const std::uint32_t second = low.word[i] >> 16;
    values[2 * i] = half ? float_of_half(first) : std::bit_cast<float>(first << 16);
    values[2 * i + 1] = half ? float_of_half(second) : std::bit_cast<float>(second << 16);
  }
}

GR_DEVICE void write_piece(std::byte* target, DataType dtype,
                           const float (&values)[kPieceElements]) {
  Vec16 low;
  if (dtype == DataType::kFloat32) {
    Vec16 high;
    GR_UNROLL
    for (int i = 0; i < 4; ++i) {
      low.word[i] = std::bit_cast<std::uint32_t>(values[i]);
      high.word[i] = std::bit_cast<std::uint32_t>(values[4 + i]);
    }
    store16(target, low);
    store16(target + 16, high);
    return;
  }
  GR_UNROLL
  for (int i = 0; i < 4; ++i) {
    low.word[i] = bits_of(values[2 * i], dtype) | bits_of(values[2 * i + 1], dtype) << 16;
  }
  store16(target, low);
}

// Some elements one by one: the end of a head, or memory that is not aligned to 16 bytes. Equal
// types are copied as bits, so that a NaN keeps its payload.
GR_DEVICE void copy_elements(const std::byte* source, DataType from, std::byte* target, DataType to,
                             std::int32_t count) {
  const auto source_size = static_cast<std::int32_t>(element_size(from));
  const auto target_size = static_cast<std::int32_t>(element_size(to));
  for (std::int32_t i = 0; i < count; ++i) {
    const std::byte* const read = source + i * source_size;
    std::byte* const write = target + i * target_size;
    if (from != to) {
      write_element(write, to, read_element(read, from));
    } else if (source_size == 4) {
      write_as(write, read_as<std::uint32_t>(read));
    } else {
      write_as(write, read_as<std::uint16_t>(read));
    }
  }
}

// At most kPieceElements elements.
GR_DEVICE void copy_piece(const std::byte* source, DataType from, std::byte* target, DataType to,
                          std::int32_t count) {
  if (count < kPieceElements || !aligned_to_16(source) || !aligned_to_16(target)) {
    copy_elements(source, from, target, to, count);
  } else if (from == to) {
    const Vec16 low = load16(source);
    if (from == DataType::kFloat32) store16(target + 16, load16(source + 16));
    store16(target, low);
  } else {
    float values[kPieceElements];
    read_piece(source, from, values);
    write_piece(target, to, values);
  }
}

}  // namespace glimprouter::device
