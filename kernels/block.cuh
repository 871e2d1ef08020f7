// Reductions over the 256 threads of a block whose result does not depend on the order: maxima,
// minima, "any".
#pragma once

#include <bit>
#include <cstdint>

#include "device.cuh"

namespace glimprouter::device {

inline constexpr std::uint32_t kBlockThreads = 256;
inline constexpr std::uint32_t kWarps = kBlockThreads / kWarpSize;

struct BlockShared {
  std::uint32_t warp_values[kWarps];
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

// Every thread gets the result. The barrier before it lets the shared words be used again.
GR_DEVICE std::uint32_t block_max(std::uint32_t value, BlockShared& shared) {
  const std::uint32_t warp_value = __reduce_max_sync(kFullMask, value);
  __syncthreads();
  if (lane_of_thread() == 0) shared.warp_values[warp_of_thread()] = warp_value;
  __syncthreads();
  std::uint32_t result = shared.warp_values[0];
  for (std::uint32_t warp = 1; warp < kWarps; ++warp) {
    const std::uint32_t other = shared.warp_values[warp];
    result = other > result ? other : result;
  }
  return result;
}

GR_DEVICE std::uint32_t block_min(std::uint32_t value, BlockShared& shared) {
  return ~block_max(~value, shared);
}

GR_DEVICE float block_max(float value, BlockShared& shared) {
  return from_ordered_bits(block_max(ordered_bits(value), shared));
}

GR_DEVICE bool block_any(bool value, BlockShared& shared) {
  return block_max(value ? 1u : 0u, shared) != 0;
}

// Sum of small counts.
GR_DEVICE std::uint32_t block_add(std::uint32_t value, BlockShared& shared) {
  const std::uint32_t warp_value = __reduce_add_sync(kFullMask, value);
  __syncthreads();
  if (lane_of_thread() == 0) shared.warp_values[warp_of_thread()] = warp_value;
  __syncthreads();
  std::uint32_t result = 0;
  for (std::uint32_t warp = 0; warp < kWarps; ++warp) result += shared.warp_values[warp];
  return result;
}

}  // namespace glimprouter::device
