// Host side of kernels/base/device.cuh, which says what each function does.
#pragma once

#include <cmath>

#include "arithmetic/element.hpp"
#include "emulator/intrinsics.hpp"

namespace glimprouter::device {

GR_DEVICE Vec16 load16(const void* source) { return *static_cast<const Vec16*>(source); }

GR_DEVICE Vec16 load16_if(const void* source, bool condition) {
  return condition ? load16(source) : Vec16{{0, 0, 0, 0}};
}
GR_DEVICE Vec16 load16_once_if(const void* source, bool condition) {
  return load16_if(source, condition);
}

GR_DEVICE void store16(void* target, const Vec16& value) { *static_cast<Vec16*>(target) = value; }

// From here on the target belongs to the copy: what is there is no number.
GR_DEVICE void copy16_async(void* shared, const void* global) {
  simt::begin_copy(shared, global);
  store16(shared, Vec16{{~0u, ~0u, ~0u, ~0u}});
}

GR_DEVICE void commit_copies() { simt::commit_copies(); }

template <unsigned kLeft>
GR_DEVICE void wait_copies() {
  for (simt::Copy copy = simt::next_finished_copy(kLeft); copy.target != nullptr;
       copy = simt::next_finished_copy(kLeft)) {
    store16(copy.target, load16(copy.source));
  }
}

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

// Lane 0 lends the warp a table of what all lanes hold.
template <bool kBFloat16>
GR_DEVICE void multiply_tile(const std::uint32_t (&left)[4], const std::uint32_t (&right)[2],
                             float (&sums)[4]) {
  struct Lane {
    std::uint32_t left[4];
    std::uint32_t right[2];
  };
  Lane table[kWarpSize];
  const auto address = __shfl_sync(kFullMask, reinterpret_cast<std::uint64_t>(table), 0);
  Lane* const lanes = reinterpret_cast<Lane*>(address);
  const unsigned lane = threadIdx.x % kWarpSize;
  for (int i = 0; i < 4; ++i) lanes[lane].left[i] = left[i];
  for (int i = 0; i < 2; ++i) lanes[lane].right[i] = right[i];
  __syncwarp();
  const auto number = [](std::uint32_t pair, unsigned k) {
    const auto bits = static_cast<std::uint16_t>(k % 2 == 0 ? pair : pair >> 16);
    return kBFloat16 ? float_from_bfloat16(bits) : float_from_half(bits);
  };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8;
    const unsigned column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned part = k % 8 / 2;
      const float a = number(lanes[row % 8 * 4 + part].left[row / 8 + k / 8 * 2], k);
      const float b = number(lanes[column * 4 + part].right[k / 8], k);
      sums[i] = std::fma(a, b, sums[i]);
    }
  }
  __syncwarp();
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

GR_DEVICE void atomic_add_shared(std::uint64_t* target, std::uint64_t value) {
  atomic_add(target, value);
}

GR_DEVICE void launch_dependents() {}
GR_DEVICE void wait_for_dependencies() { simt::note_wait(); }

}  // namespace glimprouter::device
