// Reductions and prefix sums over the 256 threads of a block whose result does not depend on the
// order: of integers, of maxima.
#pragma once

#include <bit>
#include <cstdint>

#include "kernels/base/device.cuh"

namespace glimprouter::device {

inline constexpr std::uint32_t kBlockThreads = 256;
inline constexpr std::uint32_t kWarps = kBlockThreads / kWarpSize;

struct BlockShared {
  std::uint32_t warp_values[kWarps];
  std::uint64_t warp_sums[kWarps];
};

GR_DEVICE std::uint32_t warp_of_thread() { return threadIdx.x / kWarpSize; }
GR_DEVICE std::uint32_t lane_of_thread() { return threadIdx.x % kWarpSize; }

// Unsigned integers in the order of the floats; NaN has no place in it.
GR_DEVICE std::uint32_t ordered_bits(float value) {
  const auto bits = std::bit_cast<std::uint32_t>(value);
  return (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
}
GR_DEVICE float from_ordered_bits(std::uint32_t ordered) {
  return std::bit_cast<float>((ordered >> 31) != 0 ? ordered & 0x7FFFFFFFu : ~ordered);
}
GR_DEVICE float warp_max(float value) {
  return from_ordered_bits(__reduce_max_sync(kFullMask, ordered_bits(value)));
}

// Every thread gets the result. The barrier before it lets the shared words be used again.
GR_DEVICE bool block_any(bool value, BlockShared& shared) {
  const bool any = __any_sync(kFullMask, value) != 0;
  __syncthreads();
  if (lane_of_thread() == 0) shared.warp_values[warp_of_thread()] = any ? 1u : 0u;
  __syncthreads();
  std::uint32_t result = 0;
  for (std::uint32_t warp = 0; warp < kWarps; ++warp) result |= shared.warp_values[warp];
  return result != 0;
}

// Sum over the lanes up to and with this one.
GR_DEVICE std::uint64_t warp_prefix(std::uint64_t value) {
  GR_UNROLL
  for (std::uint32_t distance = 1; distance < kWarpSize; distance *= 2) {
    const std::uint64_t before = __shfl_up_sync(kFullMask, value, distance);
    if (lane_of_thread() >= distance) value += before;
  }
  return value;
}

// The smallest value of the block; every thread gets it.
GR_DEVICE std::uint64_t block_min(std::uint64_t value, BlockShared& shared) {
  GR_UNROLL
  for (std::uint32_t distance = kWarpSize / 2; distance >= 1; distance /= 2) {
    const std::uint64_t other = __shfl_xor_sync(kFullMask, value, distance);
    value = other < value ? other : value;
  }
  __syncthreads();
  if (lane_of_thread() == 0) shared.warp_sums[warp_of_thread()] = value;
  __syncthreads();
  for (std::uint32_t warp = 0; warp < kWarps; ++warp) {
    const std::uint64_t other = shared.warp_sums[warp];
    value = other < value ? other : value;
  }
  return value;
}

struct PrefixSum {
  std::uint64_t before;  // over the threads before this one
  std::uint64_t total;
};

GR_DEVICE PrefixSum block_prefix(std::uint64_t value, BlockShared& shared) {
  const std::uint64_t through = warp_prefix(value);
  __syncthreads();
  if (lane_of_thread() == kWarpSize - 1) shared.warp_sums[warp_of_thread()] = through;
  __syncthreads();
  PrefixSum sum{through - value, 0};
  for (std::uint32_t warp = 0; warp < kWarps; ++warp) {
    const std::uint64_t own = shared.warp_sums[warp];
    if (warp < warp_of_thread()) sum.before += own;
    sum.total += own;
  }
  return sum;
}

}  // namespace glimprouter::device
