// Host side of kernels/base/device.cuh, which says what each function does.
#pragma once

#include <cmath>

#include "emulator/intrinsics.hpp"

namespace glimprouter::device {

GR_DEVICE Vec16 load16(const void* source) { return *static_cast<const Vec16*>(source); }

GR_DEVICE void store16(void* target, const Vec16& value) { *static_cast<Vec16*>(target) = value; }

GR_DEVICE float larger_number(float a, float b) { return b > a || a != a ? b : a; }
GR_DEVICE float larger_or_nan(float a, float b) { return b > a || b != b ? b : a; }

// Of 16-bit elements: sign and magnitude in the order of integers; what exceeds infinity is NaN.
GR_DEVICE std::uint32_t larger_16(std::uint32_t a, std::uint32_t b, std::uint32_t infinity) {
  if ((a & 0x7FFFu) > infinity) return b;
  if ((b & 0x7FFFu) > infinity) return a;
  const auto order = [](std::uint32_t bits) {
    const auto magnitude = static_cast<std::int32_t>(bits & 0x7FFFu);
    return (bits & 0x8000u) != 0 ? -magnitude : magnitude;
  };
  return order(b) > order(a) ? b : a;
}
GR_DEVICE std::uint32_t larger_halves(std::uint32_t a, std::uint32_t b) {
  return larger_16(a & 0xFFFFu, b & 0xFFFFu, 0x7C00u) | larger_16(a >> 16, b >> 16, 0x7C00u) << 16;
}
GR_DEVICE std::uint32_t larger_bfloat16s(std::uint32_t a, std::uint32_t b) {
  return larger_16(a & 0xFFFFu, b & 0xFFFFu, 0x7F80u) | larger_16(a >> 16, b >> 16, 0x7F80u) << 16;
}

GR_DEVICE float inverse_square_root(float x) { return 1.0f / std::sqrt(x); }
GR_DEVICE float exponential(float x) { return std::exp(x); }
GR_DEVICE float hyperbolic_tangent(float x) { return std::tanh(x); }

GR_DEVICE void prefetch_global(const void*) {}

GR_DEVICE std::uint32_t ticket_increment(std::uint32_t* counter, std::uint32_t last) {
  simt::count_atomic();
  std::uint32_t seen = __atomic_load_n(counter, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(counter, &seen, seen >= last ? 0 : seen + 1, false,
                                      __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
  }
  return seen;
}

GR_DEVICE std::uint32_t atomic_add(std::uint32_t* target, std::uint32_t value) {
  simt::count_atomic();
  return __atomic_fetch_add(target, value, __ATOMIC_RELAXED);
}

GR_DEVICE std::uint64_t atomic_add(std::uint64_t* target, std::uint64_t value) {
  simt::count_atomic();
  return __atomic_fetch_add(target, value, __ATOMIC_RELAXED);
}

GR_DEVICE std::uint32_t atomic_add_shared(std::uint32_t* target, std::uint32_t value) {
  return atomic_add(target, value);
}

GR_DEVICE std::uint64_t atomic_add_shared(std::uint64_t* target, std::uint64_t value) {
  return atomic_add(target, value);
}

GR_DEVICE void launch_dependents() {}
GR_DEVICE void wait_for_dependencies() {}

}  // namespace glimprouter::device
