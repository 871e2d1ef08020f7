// Squares of four by four floats, turned over in registers.
#pragma once

#include <cstdint>
#include <cstring>

namespace glimprouter {

typedef float FourFloats __attribute__((vector_size(16)));

inline FourFloats load_four(const float* source) {
  FourFloats values;
  std::memcpy(&values, source, sizeof values);
  return values;
}

inline void store_four(FourFloats values, float* target) {
  std::memcpy(target, &values, sizeof values);
}

// columns[j][i] = source[i * stride + j]
inline void transpose_four(const float* source, std::int64_t stride, FourFloats (&columns)[4]) {
  const FourFloats a = load_four(source);
  const FourFloats b = load_four(source + stride);
  const FourFloats c = load_four(source + 2 * stride);
  const FourFloats d = load_four(source + 3 * stride);
  const FourFloats ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const FourFloats ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const FourFloats cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const FourFloats cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  columns[0] = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  columns[1] = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  columns[2] = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  columns[3] = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

}  // namespace glimprouter
