// Row kernels in plain C++, for any processor: the specification in its most readable form.
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "arithmetic/element.hpp"
#include "arithmetic/numeric.hpp"
#include "cpu/attention_task.hpp"
#include "cpu/cpu_backend.hpp"
#include "cpu/kernel_tables.hpp"
#include "cpu/product_task.hpp"

namespace glimprouter {
namespace {

struct Vec {
  static constexpr int kWidth = 1;
  static constexpr int kUnroll = 4;
  float value;

  static Vec load(const float* source) {
    Vec result{};
    __builtin_memcpy(&result.value, source, sizeof(float));  // a row may start at any address
    return result;
  }
  static Vec broadcast(float x) { return {x}; }
  void store(float* target) const { *target = value; }
  static void convert(const void* source, DataType dtype, float* out) {
    std::uint16_t bits = 0;
    __builtin_memcpy(&bits, source, sizeof bits);
    *out = dtype == DataType::kFloat16 ? float_from_half(bits) : float_from_bfloat16(bits);
  }
};

inline Vec operator+(Vec a, Vec b) { return {a.value + b.value}; }
inline Vec operator-(Vec a, Vec b) { return {a.value - b.value}; }
inline Vec operator*(Vec a, Vec b) { return {a.value * b.value}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {std::fma(a.value, b.value, c.value)}; }
inline Vec max_number(Vec best, Vec x) { return {x.value > best.value ? x.value : best.value}; }
inline Vec max_propagate(Vec floor, Vec x) {
  return {floor.value > x.value ? floor.value : x.value};
}
inline Vec exponent_of(Vec shifted) {
  return {std::bit_cast<float>(std::bit_cast<std::uint32_t>(shifted.value) << 23)};
}
inline std::uint32_t mask_equal(Vec a, Vec b) { return a.value == b.value ? 1u : 0u; }
inline std::uint32_t mask_at_least(Vec a, Vec b) { return a.value >= b.value ? 1u : 0u; }
// The 16 virtual lanes of an attention score, in a tree of halves.
inline float sum_of_lanes(const Vec* lanes) {
  float sums[kAttentionLanes];
  for (int i = 0; i < kAttentionLanes; ++i) sums[i] = lanes[i].value;
  for (int width = kAttentionLanes / 2; width >= 1; width /= 2) {
    for (int i = 0; i < width; ++i) sums[i] += sums[width + i];
  }
  return sums[0];
}

// The same for as many keys as a vector has elements: one.
inline Vec sums_of_lanes(const Vec (*lanes)[kAttentionLanes]) { return {sum_of_lanes(lanes[0])}; }

#include "cpu/row_kernels-inl.hpp"
// Needs what stands above.
#include "cpu/attention_kernels-inl.hpp"
// Needs what stands above.
#include "cpu/attention_blocks-inl.hpp"
// Needs the lanes of attention.
#include "cpu/product_kernels-inl.hpp"
// Needs the lanes of products.
#include "cpu/product_blocks-inl.hpp"
// Needs nothing of them.
#include "cpu/cast_kernels-inl.hpp"

}  // namespace

extern const CpuKernels kGenericKernels{"generic", row_statistics, load_tile, top_two,
                                        collect,   exponentials,   attend,    cast,
                                        product,   product_block};

}  // namespace glimprouter
