// Keys, values and queries for the tests of the kernels on pages: tensors with odd strides and
// alignments, and casts written on their own, by arithmetic in double precision.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <vector>

#include "device/device_kv.hpp"
#include "glimprouter/kv_ops.hpp"

namespace glimprouter::simt {

// The value rounded to so many mantissa bits, with no exponent below `lowest`; ties to even.
inline double rounded(double value, int mantissa_bits, int lowest) {
  if (value == 0.0) return value;
  const int exponent = std::max(std::ilogb(value), lowest);
  const double unit = std::ldexp(1.0, exponent - mantissa_bits);
  return std::nearbyint(value / unit) * unit;
}

// A finite value as the type holds it.
inline double as_type(double value, DataType dtype) {
  if (dtype == DataType::kFloat32) return static_cast<float>(value);
  return dtype == DataType::kFloat16 ? rounded(value, 10, -14) : rounded(value, 7, -126);
}

// An element that the type holds exactly, as bits, and back.
inline std::uint32_t exact_bits(double value, DataType dtype) {
  const auto single = std::bit_cast<std::uint32_t>(static_cast<float>(value));
  if (dtype == DataType::kFloat32) return single;
  if (dtype == DataType::kBFloat16) return single >> 16;
  const std::uint32_t sign = std::signbit(value) ? 0x8000u : 0u;
  const double magnitude = std::fabs(value);
  if (magnitude < 0x1p-14) return sign | static_cast<std::uint32_t>(magnitude * 0x1p24);
  const int exponent = std::ilogb(magnitude);
  const auto mantissa = static_cast<std::uint32_t>(std::ldexp(magnitude, 10 - exponent)) - 1024u;
  return sign | static_cast<std::uint32_t>(exponent + 15) << 10 | mantissa;
}

inline double exact_value(const std::byte* source, DataType dtype) {
  if (dtype == DataType::kFloat32) {
    float value = 0;
    std::memcpy(&value, source, 4);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, source, 2);
  if (dtype == DataType::kBFloat16) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  }
  const int exponent = bits >> 10 & 31;
  const double mantissa = bits & 1023;
  const double magnitude =
      exponent == 0 ? mantissa * 0x1p-24 : std::ldexp(1024.0 + mantissa, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

struct HeadsShape {
  std::int32_t layers;
  std::int64_t tokens;
  std::int32_t heads;
  std::int32_t head_dim;
};

// [layers, tokens, heads, head_dim] in memory, by an order of axes and gaps that follow from the
// seed; perhaps off the 16-byte boundary by one element.
class HeadsTensor {
 public:
  HeadsTensor(std::uint64_t seed, const HeadsShape& shape, DataType dtype)
      : shape_(shape), dtype_(dtype) {
    std::mt19937_64 random(seed);
    const std::int64_t gap = static_cast<std::int64_t>(random() % 3) * (random() % 2 != 0 ? 8 : 1);
    const bool tokens_first = random() % 2 != 0;
    const std::int64_t head = shape.head_dim + gap;
    const std::int64_t others = tokens_first ? shape.heads : shape.tokens;
    head_stride_ = tokens_first ? head : head * others;
    token_stride_ = tokens_first ? head * others : head;
    layer_stride_ = head * shape.heads * shape.tokens + gap;
    offset_ = static_cast<std::int64_t>(random() % 2);
    if (random() % 4 == 0) reverse_tokens();
    bytes_.resize(static_cast<std::size_t>((layer_stride_ * shape.layers + 8) * size()),
                  std::byte{0xFF});
  }

  void fill(std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal;
    for (std::int32_t layer = 0; layer < shape_.layers; ++layer) {
      for (std::int64_t token = 0; token < shape_.tokens; ++token) {
        for (std::int32_t head = 0; head < shape_.heads; ++head) {
          for (std::int32_t i = 0; i < shape_.head_dim; ++i) {
            // Down to the subnormal numbers of float16.
            const double value = normal(random) * std::ldexp(1.0, -static_cast<int>(random() % 24));
            const std::uint32_t bits = exact_bits(as_type(value, dtype_), dtype_);
            std::memcpy(at(layer, token, head, i), &bits, static_cast<std::size_t>(size()));
          }
        }
      }
    }
  }

  std::byte* at(std::int32_t layer, std::int64_t token, std::int32_t head, std::int32_t i) {
    const std::int64_t index = offset_ + first_token_ + layer * layer_stride_ +
                               token * token_stride_ + head * head_stride_ + i;
    return bytes_.data() + index * size();
  }
  double value(std::int32_t layer, std::int64_t token, std::int32_t head, std::int32_t i) {
    return exact_value(at(layer, token, head, i), dtype_);
  }

  DeviceHeads device_view() {
    return {at(0, 0, 0, 0), dtype_, layer_stride_ * size(), token_stride_ * size(),
            head_stride_ * size()};
  }
  HeadsView cpu_view(std::int32_t layer) {
    return {at(layer, 0, 0, 0), dtype_,        shape_.tokens, shape_.heads,
            shape_.head_dim,    token_stride_, head_stride_};
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }
  std::int64_t layer_stride() const { return layer_stride_; }
  DataType dtype() const { return dtype_; }

 private:
  std::int64_t size() const { return element_size(dtype_); }
  void reverse_tokens() {
    first_token_ = (shape_.tokens > 0 ? shape_.tokens - 1 : 0) * token_stride_;
    token_stride_ = -token_stride_;
  }

  HeadsShape shape_;
  DataType dtype_;
  std::int64_t head_stride_;
  std::int64_t token_stride_;
  std::int64_t layer_stride_;
  std::int64_t offset_;
  std::int64_t first_token_ = 0;
  std::vector<std::byte> bytes_;
};

// Where an element lies in a page, from the shape alone: [layer][key, value][head][token][element],
// where all layers are alike and each begins at a multiple of 16 bytes.
inline std::int64_t place_in_page(const KvLayout& layout, std::int32_t layer, bool value,
                                  std::int32_t head, std::int64_t token, std::int32_t i) {
  const LayerShape& shape = layout.shape(layer);
  const std::int64_t size = layout.dtype() == DataType::kFloat32 ? 4 : 2;
  const std::int64_t rows = std::int64_t{shape.num_kv_heads} * layout.page_size();
  const std::int64_t keys = rows * shape.head_dim * size;
  const std::int64_t values = shape.latent ? 0 : rows * shape.value_dim * size;
  const bool behind = value && !shape.latent;
  const std::int64_t row = head * std::int64_t{layout.page_size()} + token;
  return layer * ((keys + values + 15) / 16 * 16) + (behind ? keys : 0) +
         (row * (behind ? shape.value_dim : shape.head_dim) + i) * size;
}

inline std::int64_t page_offset(PageId page) { return std::int64_t{page} * 256; }

// Scattered, distinct pages in shuffled order.
inline std::vector<PageId> take_pages(PagePool& pool, std::int32_t model, std::int64_t count,
                                      std::uint64_t seed) {
  std::vector<PageId> pages;
  for (std::int64_t i = 0; i < count; ++i) pages.push_back(pool.take(model));
  std::shuffle(pages.begin(), pages.end(), std::mt19937_64(seed));
  return pages;
}

// The whole arena of a pool.
inline std::span<std::byte> arena_of(PagePool& pool) {
  return {pool.address(kNullPage),
          static_cast<std::size_t>((pool.num_sectors() + 1) * pool.sector_bytes())};
}

}  // namespace glimprouter::simt
