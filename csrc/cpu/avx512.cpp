// Row kernels for AVX-512 (F, BW, VL, DQ).
#include <immintrin.h>

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
  static constexpr int kWidth = 16;
  static constexpr int kUnroll = 4;
  __m512 value;

  static Vec load(const float* source) { return {_mm512_loadu_ps(source)}; }
  static Vec broadcast(float x) { return {_mm512_set1_ps(x)}; }
  void store(float* target) const { _mm512_storeu_ps(target, value); }
  static void convert(const void* source, DataType dtype, float* out) {
    const __m256i bits = _mm256_loadu_si256(static_cast<const __m256i*>(source));
    _mm512_storeu_ps(out, dtype == DataType::kFloat16 ? _mm512_cvtph_ps(bits)
                                                      : _mm512_castsi512_ps(_mm512_slli_epi32(
                                                            _mm512_cvtepu16_epi32(bits), 16)));
  }
};

inline Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.value, b.value)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.value, b.value)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.value, b.value)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.value, b.value, c.value)}; }
// The instruction returns its second operand when either is NaN: the order of operands matters.
inline Vec max_number(Vec best, Vec x) { return {_mm512_max_ps(x.value, best.value)}; }
inline Vec max_propagate(Vec floor, Vec x) { return {_mm512_max_ps(floor.value, x.value)}; }
inline Vec exponent_of(Vec shifted) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(shifted.value), 23))};
}
inline std::uint32_t mask_equal(Vec a, Vec b) {
  return _mm512_cmp_ps_mask(a.value, b.value, _CMP_EQ_OQ);
}
inline std::uint32_t mask_at_least(Vec a, Vec b) {
  return _mm512_cmp_ps_mask(a.value, b.value, _CMP_GE_OQ);
}
// The 16 virtual lanes of an attention score, in a tree of halves.
inline float sum_of_lanes(const Vec* lanes) {
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(lanes[0].value),
                                    _mm512_extractf32x8_ps(lanes[0].value, 1));
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}

// The same for sixteen keys at a time: each step adds halves of two vectors.
inline Vec sums_of_lanes(const Vec (*lanes)[1]) {
  __m512 quarters[4];  // of the keys i, 4 + i, 8 + i, 12 + i: four lanes each
  for (int i = 0; i < 4; ++i) {
    const __m512 a = lanes[i][0].value;
    const __m512 b = lanes[i + 4][0].value;
    const __m512 c = lanes[i + 8][0].value;
    const __m512 d = lanes[i + 12][0].value;
    const __m512 ab =
        _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    const __m512 cd =
        _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
    quarters[i] =
        _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  }
  auto halves = [](__m512 x, __m512 y) {
    return _mm512_add_ps(_mm512_shuffle_ps(x, y, 0x44), _mm512_shuffle_ps(x, y, 0xEE));
  };
  const __m512 low = halves(quarters[0], quarters[1]);
  const __m512 high = halves(quarters[2], quarters[3]);
  return {_mm512_add_ps(_mm512_shuffle_ps(low, high, 0x88), _mm512_shuffle_ps(low, high, 0xDD))};
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

extern const CpuKernels kAvx512Kernels{"avx512", row_statistics, load_tile, top_two,
                                       collect,  exponentials,   attend,    cast,
                                       product,  product_block};

}  // namespace glimprouter
