// Row kernels for AVX2 with FMA and F16C.
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
  static constexpr int kWidth = 8;
  static constexpr int kUnroll = 2;
  __m256 value;

  static Vec load(const float* source) { return {_mm256_loadu_ps(source)}; }
  static Vec broadcast(float x) { return {_mm256_set1_ps(x)}; }
  void store(float* target) const { _mm256_storeu_ps(target, value); }
  static void convert(const void* source, DataType dtype, float* out) {
    const __m128i bits = _mm_loadu_si128(static_cast<const __m128i*>(source));
    _mm256_storeu_ps(out, dtype == DataType::kFloat16 ? _mm256_cvtph_ps(bits)
                                                      : _mm256_castsi256_ps(_mm256_slli_epi32(
                                                            _mm256_cvtepu16_epi32(bits), 16)));
  }
};

inline Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.value, b.value)}; }
inline Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.value, b.value)}; }
inline Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.value, b.value)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.value, b.value, c.value)}; }
// The instruction returns its second operand when either is NaN: the order of operands matters.
inline Vec max_number(Vec best, Vec x) { return {_mm256_max_ps(x.value, best.value)}; }
inline Vec max_propagate(Vec floor, Vec x) { return {_mm256_max_ps(floor.value, x.value)}; }
inline Vec exponent_of(Vec shifted) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(shifted.value), 23))};
}
inline std::uint32_t mask_equal(Vec a, Vec b) {
  return static_cast<std::uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(a.value, b.value, _CMP_EQ_OQ)));
}
inline std::uint32_t mask_at_least(Vec a, Vec b) {
  return static_cast<std::uint32_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(a.value, b.value, _CMP_GE_OQ)));
}
// The 16 virtual lanes of an attention score, in a tree of halves.
inline float sum_of_lanes(const Vec* lanes) {
  const __m256 half = _mm256_add_ps(lanes[0].value, lanes[1].value);
  __m128 quarter = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  quarter = _mm_add_ps(quarter, _mm_movehl_ps(quarter, quarter));
  return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps(quarter, quarter, 1)));
}

// The same for eight keys at a time: each step adds halves of two vectors.
inline Vec sums_of_lanes(const Vec (*lanes)[2]) {
  __m256 quarters[4];  // of the keys i and 4 + i: four lanes each
  for (int i = 0; i < 4; ++i) {
    const __m256 a = _mm256_add_ps(lanes[i][0].value, lanes[i][1].value);
    const __m256 b = _mm256_add_ps(lanes[i + 4][0].value, lanes[i + 4][1].value);
    quarters[i] =
        _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
  }
  auto halves = [](__m256 x, __m256 y) {
    return _mm256_add_ps(_mm256_shuffle_ps(x, y, 0x44), _mm256_shuffle_ps(x, y, 0xEE));
  };
  const __m256 low = halves(quarters[0], quarters[1]);
  const __m256 high = halves(quarters[2], quarters[3]);
  return {_mm256_add_ps(_mm256_shuffle_ps(low, high, 0x88), _mm256_shuffle_ps(low, high, 0xDD))};
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

extern const CpuKernels kAvx2Kernels{"avx2",  row_statistics, load_tile, top_two,
                                     collect, exponentials,   attend,    cast,
                                     product, product_block};

}  // namespace glimprouter
