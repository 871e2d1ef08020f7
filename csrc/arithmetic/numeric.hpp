// The specified elementary functions, one element at a time. The vector kernels of csrc/cpu perform
// the same operations in the same order, so that every instruction set gives the same bits.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "glimprouter/types/host_device.hpp"

namespace glimprouter {

// Constants of exp as 2^y, y = d log2 e: n = round(y) by adding a number whose unit in the last
// place is 1 (its low bits then hold n + 127, the biased exponent of 2^n), f = y - n exactly, a
// polynomial in f, and a multiplication by 2^n.
namespace exp_constants {
inline constexpr float kFloor = -88.0f;  // exp of anything below is exactly 0: n + 127 = 0
inline constexpr float kLog2E = 1.44269504f;
inline constexpr float kRounding = 12582912.0f + 127.0f;
// Minimax for the relative error of 2^f over |f| <= 1/2 with the first coefficient fixed at 1.
inline constexpr float kC1 = 0.6931470036506653f;
inline constexpr float kC2 = 0.24022240936756134f;
inline constexpr float kC3 = 0.055507343262434006f;
inline constexpr float kC4 = 0.00967156607657671f;
inline constexpr float kC5 = 0.0013264658628031611f;
}  // namespace exp_constants

// e^d for d in [kFloor, 0] or NaN, which gives NaN.
GR_HOST_DEVICE inline float exp_from_floor(float d) {
  using namespace exp_constants;
  const float y = d * kLog2E;
  const float shifted = y + kRounding;
  const float f = y - (shifted - kRounding);
  float p = std::fma(kC5, f, kC4);
  p = std::fma(p, f, kC3);
  p = std::fma(p, f, kC2);
  p = std::fma(p, f, kC1);
  p = std::fma(p, f, 1.0f);
  return p * std::bit_cast<float>(std::bit_cast<std::uint32_t>(shifted) << 23);
}

// e^d for d <= 0; NaN gives NaN. Relative error at most 1.8e-7 + 6e-8 |d| (the second term is the
// rounding of y; it moves an entropy by at most 1e-6 of itself). Exactly 1 at 0, and exactly 0
// below about -87.7, where 2^n would be subnormal.
GR_HOST_DEVICE inline float exp_nonpositive(float d) {
  return exp_from_floor(d < exp_constants::kFloor ? exp_constants::kFloor : d);
}

// ln x for finite normal x > 0 by x = 2^k f, f in [sqrt(1/2), sqrt 2), ln f = 2
// artanh((f-1)/(f+1)). Own code, because the C library's result may differ between machines.
// Absolute error below 1e-12.
GR_HOST_DEVICE inline double log_positive(double x) {
  const std::uint64_t bits = std::bit_cast<std::uint64_t>(x);
  int exponent = static_cast<int>(bits >> 52) - 1023;
  double f = std::bit_cast<double>((bits & 0x000FFFFFFFFFFFFFu) | 0x3FF0000000000000u);
  if (f > 1.4142135623730951) {
    f *= 0.5;
    ++exponent;
  }
  const double s = (f - 1.0) / (f + 1.0);
  const double z = s * s;
  double series = 0.0;
  for (int k = 17; k >= 3; k -= 2) series = (series + 1.0 / k) * z;
  return static_cast<double>(exponent) * 0.6931471805599453 + (2.0 * s + 2.0 * s * series);
}

}  // namespace glimprouter
