// Rows of elements for the tests of the layers' kernels: values, roundings and references that
// share nothing with the kernels but the formats.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "arithmetic/element.hpp"
#include "device/device_layers.hpp"
#include "glimprouter/types/row_view.hpp"

namespace glimprouter::simt {

// Elements at any alignment to 16 bytes.
class Elements {
 public:
  Elements(std::size_t count, DataType dtype, std::int64_t shift = 0)
      : count_(count), dtype_(dtype), shift_(shift), memory_((count + 16) * 4 / 16 + 2, Sixteen{}) {
    for (std::size_t i = 0; i < count; ++i) set(i, std::nan(""));
  }

  std::byte* data() { return memory_.data()->byte + shift_ * element_size(dtype_); }
  std::size_t count() const { return count_; }
  DataType dtype() const { return dtype_; }

  void set(std::size_t i, double value) {
    store_element(data() + static_cast<std::int64_t>(i) * element_size(dtype_), dtype_,
                  static_cast<float>(value));
  }
  double at(std::size_t i) {
    return element({data(), dtype_, static_cast<std::int64_t>(count_)},
                   static_cast<std::int64_t>(i));
  }
  std::vector<double> values() {
    std::vector<double> all(count_);
    for (std::size_t i = 0; i < count_; ++i) all[i] = at(i);
    return all;
  }
  // Normal numbers.
  Elements& fill(std::uint64_t seed, double spread = 1.0) {
    std::mt19937_64 random(seed);
    std::normal_distribution<double> normal(0.0, spread);
    for (std::size_t i = 0; i < count_; ++i) set(i, normal(random));
    return *this;
  }

 private:
  struct alignas(16) Sixteen {
    std::byte byte[16];
  };

  std::size_t count_;
  DataType dtype_;
  std::int64_t shift_;
  std::vector<Sixteen> memory_;
};

// Significant bits of a type, the leading one included.
inline int precision(DataType dtype) {
  return dtype == DataType::kFloat32 ? 24 : dtype == DataType::kFloat16 ? 11 : 8;
}

// To nearest, ties to even, of numbers in the normal range (fp16: subnormal ones, too).
inline double round_to(double value, DataType dtype) {
  if (value == 0.0) return value;
  const int lowest = dtype == DataType::kFloat16 ? -14 : -126;
  int exponent = std::ilogb(value);
  if (exponent < lowest) exponent = lowest;
  const double unit = std::ldexp(1.0, exponent - precision(dtype) + 1);
  return std::nearbyint(value / unit) * unit;
}

// One unit in the last place of numbers of that size.
inline double unit_of(double value, DataType dtype) {
  return std::ldexp(1.0, std::ilogb(value == 0.0 ? 1e-30 : value) - precision(dtype) + 1);
}

// [1, 1, rows, size], compact.
inline LayerRows compact_rows(Elements& elements, std::int32_t rows, std::int32_t size) {
  return {elements.data(), {1, 1, rows}, {0, 0, size}};
}

}  // namespace glimprouter::simt
