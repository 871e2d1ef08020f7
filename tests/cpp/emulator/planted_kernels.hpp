// Kernels with one planted bug each, and their fixed twins: kBroken is the only difference. For the
// emulator only.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "kernels/base/launch.cuh"

namespace glimprouter::device::planted {

struct Tile {
  float value[64];
};

// Sums tile after tile through the same shared memory. Without the second barrier a fast thread
// overwrites what a slow one still reads.
template <bool kBroken>
GR_KERNEL(64)
void reuse(const float* input, unsigned tiles, float* output) {
  GR_SHARED(Tile, tile);
  float sum = 0.0f;
  for (unsigned i = 0; i < tiles; ++i) {
    tile.value[threadIdx.x] = input[i * blockDim.x + threadIdx.x];
    __syncthreads();
    sum += tile.value[blockDim.x - 1 - threadIdx.x];
    if constexpr (!kBroken) __syncthreads();
  }
  output[threadIdx.x] = sum;
}

// What ticket_increment would be if its order were forgotten.
inline std::uint32_t relaxed_ticket(std::uint32_t* counter, std::uint32_t last) {
  const std::uint32_t ticket = __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED);
  if (ticket == last) __atomic_store_n(counter, 0, __ATOMIC_RELAXED);
  return ticket;
}

// The last block sums what all blocks wrote.
template <bool kBroken>
GR_KERNEL(32)
void publish(float* partial, std::uint32_t* counter, float* output) {
  if (threadIdx.x != 0) return;
  const std::uint32_t last = gridDim.x - 1;
  partial[blockIdx.x] = static_cast<float>(blockIdx.x);
  const std::uint32_t ticket =
      kBroken ? relaxed_ticket(counter, last) : ticket_increment(counter, last);
  if (ticket != last) return;
  __threadfence();
  float sum = 0.0f;
  for (unsigned i = 0; i <= last; ++i) sum += partial[i];
  *output = sum;
}

// A lane reads what its neighbour wrote. A shuffle meets the lanes but does not order their memory.
template <bool kBroken>
GR_KERNEL(64)
void neighbour(float* output) {
  GR_SHARED(Tile, tile);
  tile.value[threadIdx.x] = static_cast<float>(threadIdx.x);
  if constexpr (kBroken) {
    __shfl_sync(kFullMask, 0, 0);
  } else {
    __syncwarp(kFullMask);
  }
  output[threadIdx.x] = tile.value[threadIdx.x ^ 1];
}

// What each bug of copies leaves out, or does too early.
enum class CopyBug { kNone, kNoWait, kNoBarrier, kEarlyReuse, kMisaligned, kLeftBehind };

struct CopyRing {
  alignas(16) float value[2][64 * 4];
};

// Sums tile after tile, 16 bytes a thread, while the next one is copied.
template <CopyBug kBug>
GR_KERNEL(64)
void copy_ahead(const float* input, unsigned tiles, float* output) {
  GR_SHARED(CopyRing, ring);
  const unsigned own = threadIdx.x * 4;
  const unsigned other = (blockDim.x - 1 - threadIdx.x) * 4;
  const auto begin = [&](unsigned tile) {
    const float* const source = input + tile * 256 + own + (kBug == CopyBug::kMisaligned ? 1 : 0);
    if (tile < tiles) copy16_async(&ring.value[tile % 2][own], source);
    commit_copies();
  };
  begin(0);
  float sum = 0.0f;
  for (unsigned tile = 0; tile < tiles; ++tile) {
    if constexpr (kBug == CopyBug::kEarlyReuse) begin(tile + 1);
    if constexpr (kBug != CopyBug::kNoWait) wait_copies<kBug == CopyBug::kEarlyReuse ? 1 : 0>();
    if constexpr (kBug != CopyBug::kNoBarrier) __syncthreads();
    if constexpr (kBug != CopyBug::kEarlyReuse) begin(tile + 1);
    for (unsigned i = 0; i < 4; ++i) sum += ring.value[tile % 2][other + i];
  }
  if constexpr (kBug == CopyBug::kNoWait) wait_copies<0>();
  if constexpr (kBug == CopyBug::kLeftBehind) copy16_async(&ring.value[0][own], input);
  output[threadIdx.x] = sum;
}

// The last thread writes past the end of its object.
template <bool kBroken>
GR_KERNEL(64)
void overrun(float* output) {
  GR_SHARED(Tile, tile);
  float* value = tile.value;
  value[threadIdx.x + (kBroken ? 1 : 0)] = 1.0f;
  __syncthreads();
  output[threadIdx.x] = value[threadIdx.x];
}

// A row that begins in the middle of 16 bytes.
template <bool kBroken>
GR_KERNEL(32)
void misaligned(const float* input, float* output) {
  const Vec16 loaded = load16(input + (kBroken ? 1 : 0));
  output[threadIdx.x] = std::bit_cast<float>(loaded.word[0]);
}

// Two warps at two barriers.
template <bool kBroken>
GR_KERNEL(64)
void divergent_barrier(float* output) {
  if (kBroken && threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  output[threadIdx.x] = 1.0f;
}

// Threads without work leave before the barrier.
template <bool kBroken>
GR_KERNEL(64)
void early_return(float* output) {
  output[threadIdx.x] = 1.0f;
  if (kBroken && threadIdx.x >= 50) return;
  __syncthreads();
}

// Lanes without work leave before the shuffle.
template <bool kBroken>
GR_KERNEL(32)
void exited_lane(float* output) {
  output[threadIdx.x] = 1.0f;
  if (kBroken && threadIdx.x == 31) return;
  output[threadIdx.x] = __shfl_down_sync(kFullMask, 1.0f, 1);
}

// A block that does not fill its warp.
template <bool kBroken>
GR_KERNEL(16)
void partial_warp(float* output) {
  output[threadIdx.x] = __shfl_xor_sync(kBroken ? kFullMask : 0xFFFFu, 1.0f, 1);
}

// The halves of a warp make the same call in two places.
template <bool kBroken>
GR_KERNEL(32)
void two_sites(float* output) {
  float value = 1.0f;
  if (kBroken && threadIdx.x < 16) {
    value = __shfl_xor_sync(kFullMask, value, 1);
  } else {
    value = __shfl_xor_sync(kFullMask, value, 1);
  }
  output[threadIdx.x] = value;
}

// The halves of a warp wait for each other under two masks.
template <bool kBroken>
GR_KERNEL(32)
void two_masks(float* output) {
  const unsigned mask = kBroken && threadIdx.x == 31 ? 0xFFFFFFFEu : kFullMask;
  output[threadIdx.x] = __any_sync(mask, 1) != 0 ? 1.0f : 0.0f;
}

// A lane calls for others, but not for itself.
template <bool kBroken>
GR_KERNEL(32)
void own_mask(float* output) {
  const unsigned mask = kBroken && threadIdx.x == 5 ? ~(1u << 5) : kFullMask;
  output[threadIdx.x] = __all_sync(mask, 1) != 0 ? 1.0f : 0.0f;
}

// A lane of the mask reads one outside of it.
template <bool kBroken>
GR_KERNEL(32)
void lane_outside_mask(float* output) {
  output[threadIdx.x] = 1.0f;
  if (threadIdx.x < 16) {
    output[threadIdx.x] = __shfl_sync(0x0000FFFFu, 1.0f, kBroken ? 16 : 15);
  }
}

// A reduction over eight warps, in a block of two.
template <bool kBroken>
GR_KERNEL(64)
void unwritten(float* output) {
  GR_SHARED(Tile, tile);
  if (threadIdx.x % 32 == 0) tile.value[threadIdx.x / 32] = 0.5f;
  __syncthreads();
  float sum = 0.0f;
  for (unsigned warp = 0; warp < (kBroken ? 8 : blockDim.x / 32); ++warp) sum += tile.value[warp];
  output[threadIdx.x] = sum;
}

// Blocks that wait for all others before they go on.
template <bool kBroken>
GR_KERNEL(32)
void spinning_barrier(std::uint32_t* arrived, float* output) {
  if (threadIdx.x == 0) {
    atomic_add(arrived, 1u);
    while (kBroken && atomic_add(arrived, 0u) < gridDim.x) {
    }
  }
  __syncthreads();
  output[threadIdx.x] = 1.0f;
}

// Lane 0 waits for the block, its warp for lane 0.
template <bool kBroken>
GR_KERNEL(64)
void deadlock(float* output) {
  if (!kBroken || threadIdx.x == 0) __syncthreads();
  __syncwarp();
  if (kBroken && threadIdx.x != 0) __syncthreads();
  output[threadIdx.x] = 1.0f;
}

template <bool kBroken>
GR_KERNEL(32)
void assertion(float* output) {
  GR_ASSERT(!kBroken || threadIdx.x != 7);
  output[threadIdx.x] = 1.0f;
}

// More than nvcc allows without asking the driver.
template <bool kBroken>
GR_KERNEL(32)
void shared_limit(float* output) {
  struct Big {
    std::byte byte[(48 << 10) - 64];
  };
  struct Few {
    float value[kBroken ? 17 : 16];
  };
  GR_SHARED(Big, big);
  GR_SHARED(Few, few);
  output[threadIdx.x] = big.byte[threadIdx.x] == std::byte{0xFF} ? 1.0f : few.value[0];
}

// Half of the threads leave before they have waited for the kernel ahead.
template <bool kBroken>
GR_KERNEL(32)
void left_early(float* output) {
  launch_dependents();
  if constexpr (!kBroken) wait_for_dependencies();
  output[threadIdx.x] = 1.0f;
  if (threadIdx.x >= 16) return;
  if constexpr (kBroken) wait_for_dependencies();
}

}  // namespace glimprouter::device::planted
