// Row kernels for 64-bit ARM (Advanced SIMD is part of the base architecture).
#include <arm_neon.h>

#include <cstddef>
#include <cstdint>

#include "arithmetic/numeric.hpp"
#include "cpu/attention_task.hpp"
#include "cpu/cpu_backend.hpp"
#include "cpu/kernel_tables.hpp"
#include "cpu/product_task.hpp"

namespace glimprouter {
namespace {

struct Vec {
  static constexpr int kWidth = 4;
  static constexpr int kUnroll = 4;
  float32x4_t value;

  // Through bytes: a row may start at any address, and an element load wants its alignment.
  static Vec load(const float* source) {
    return {vreinterpretq_f32_u8(vld1q_u8(reinterpret_cast<const std::uint8_t*>(source)))};
  }
  static Vec broadcast(float x) { return {vdupq_n_f32(x)}; }
  void store(float* target) const { vst1q_f32(target, value); }
  static void convert(const void* source, DataType dtype, float* out) {
    const uint16x4_t bits = vreinterpret_u16_u8(vld1_u8(static_cast<const std::uint8_t*>(source)));
    vst1q_f32(out, dtype == DataType::kFloat16 ? vcvt_f32_f16(vreinterpret_f16_u16(bits))
                                               : vreinterpretq_f32_u32(vshll_n_u16(bits, 16)));
  }
};

inline Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.value, b.value)}; }
inline Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.value, b.value)}; }
inline Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.value, b.value)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.value, a.value, b.value)}; }
inline Vec max_number(Vec best, Vec x) { return {vmaxnmq_f32(best.value, x.value)}; }
inline Vec max_propagate(Vec floor, Vec x) { return {vmaxq_f32(floor.value, x.value)}; }
inline Vec exponent_of(Vec shifted) {
  return {vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(shifted.value), 23))};
}
inline std::uint32_t bits_of(uint32x4_t lanes) {
  const uint32x4_t weights = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(lanes, weights));
}
inline std::uint32_t mask_equal(Vec a, Vec b) { return bits_of(vceqq_f32(a.value, b.value)); }
inline std::uint32_t mask_at_least(Vec a, Vec b) { return bits_of(vcgeq_f32(a.value, b.value)); }
// The 16 virtual lanes of an attention score, in a tree of halves.
inline float sum_of_lanes(const Vec* lanes) {
  const float32x4_t quarter = vaddq_f32(vaddq_f32(lanes[0].value, lanes[2].value),
                                        vaddq_f32(lanes[1].value, lanes[3].value));
  const float32x2_t pair = vadd_f32(vget_low_f32(quarter), vget_high_f32(quarter));
  return vget_lane_f32(pair, 0) + vget_lane_f32(pair, 1);
}

// The same for four keys at a time: each step adds halves of two vectors.
inline Vec sums_of_lanes(const Vec (*lanes)[4]) {
  float32x4_t quarters[4];
  for (int i = 0; i < 4; ++i) {
    quarters[i] = vaddq_f32(vaddq_f32(lanes[i][0].value, lanes[i][2].value),
                            vaddq_f32(lanes[i][1].value, lanes[i][3].value));
  }
  auto halves = [](float32x4_t x, float32x4_t y) {
    return vaddq_f32(vcombine_f32(vget_low_f32(x), vget_low_f32(y)),
                     vcombine_f32(vget_high_f32(x), vget_high_f32(y)));
  };
  const float32x4_t low = halves(quarters[0], quarters[1]);
  const float32x4_t high = halves(quarters[2], quarters[3]);
  return {vaddq_f32(vuzp1q_f32(low, high), vuzp2q_f32(low, high))};
}

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

extern const CpuKernels kNeonKernels{"neon",  row_statistics, load_tile, top_two,
                                     collect, exponentials,   attend,    cast,
                                     product, product_block};

}  // namespace glimprouter
