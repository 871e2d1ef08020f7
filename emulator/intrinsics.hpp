// CUDA's built-in names, for a host compiler. Semantics as in the CUDA C++ Programming Guide and
// the PTX instructions behind them; where those leave behaviour undefined, the emulator aborts.
#pragma once

#include <bit>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include "emulator/rendezvous.hpp"

#define threadIdx ::glimprouter::simt::thread_index()
#define blockIdx ::glimprouter::simt::block_index()
#define blockDim ::glimprouter::simt::block_size()
#define gridDim ::glimprouter::simt::grid_size()

namespace glimprouter::simt {

template <typename T>
concept Shuffled = std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8);

template <Shuffled T>
using BitsOf = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;

// The lanes of a warp in segments of `width`; each reads `source`, or itself where that lies
// outside of what it can reach.
template <Shuffled T>
T shuffle(unsigned mask, T value, unsigned source, bool reachable, const Site& site) {
  const std::uint64_t bits = std::bit_cast<BitsOf<T>>(value);
  const unsigned lane = reachable ? source : lane_index();
  const std::uint64_t result = meet_warp(WarpCall::kShuffle, mask, bits, lane, site);
  return std::bit_cast<T>(static_cast<BitsOf<T>>(result));
}

// First lane of the running lane's segment.
inline unsigned segment(int width, const Site& site) {
  check(width > 0 && width <= 32 && (width & (width - 1)) == 0,
        "the width of a shuffle is a power of two up to 32", site);
  return lane_index() & ~static_cast<unsigned>(width - 1);
}

}  // namespace glimprouter::simt

inline void __syncthreads(glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  glimprouter::simt::meet_block(site);
}

inline void __syncwarp(unsigned mask = 0xFFFFFFFFu,
                       glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  glimprouter::simt::meet_warp(glimprouter::simt::WarpCall::kSync, mask, 0, 0, site);
}

// The order between blocks lies in the ticket here: ThreadSanitizer follows atomics, not fences.
inline void __threadfence() {}
inline void __threadfence_block() {}

template <glimprouter::simt::Shuffled T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  const unsigned first = glimprouter::simt::segment(width, site);
  const unsigned lane = first + (static_cast<unsigned>(source) & static_cast<unsigned>(width - 1));
  return glimprouter::simt::shuffle(mask, value, lane, true, site);
}

template <glimprouter::simt::Shuffled T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance, int width = 32,
                 glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  const unsigned first = glimprouter::simt::segment(width, site);
  const unsigned lane = glimprouter::simt::lane_index();
  distance &= 31;
  return glimprouter::simt::shuffle(mask, value, lane - distance, lane >= first + distance, site);
}

template <glimprouter::simt::Shuffled T>
T __shfl_down_sync(unsigned mask, T value, unsigned distance, int width = 32,
                   glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  const unsigned end = glimprouter::simt::segment(width, site) + static_cast<unsigned>(width);
  const unsigned lane = glimprouter::simt::lane_index() + (distance & 31);
  return glimprouter::simt::shuffle(mask, value, lane, lane < end, site);
}

// A lane may read from its own segment and earlier ones.
template <glimprouter::simt::Shuffled T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  const unsigned end = glimprouter::simt::segment(width, site) + static_cast<unsigned>(width);
  const unsigned lane = glimprouter::simt::lane_index() ^ (static_cast<unsigned>(lane_mask) & 31);
  return glimprouter::simt::shuffle(mask, value, lane, lane < end, site);
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  return static_cast<unsigned>(glimprouter::simt::meet_warp(glimprouter::simt::WarpCall::kBallot,
                                                            mask, predicate != 0 ? 1 : 0, 0, site));
}

inline int __any_sync(unsigned mask, int predicate,
                      glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  return __ballot_sync(mask, predicate, site) != 0 ? 1 : 0;
}

inline int __all_sync(unsigned mask, int predicate,
                      glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  return __ballot_sync(mask, predicate, site) == mask ? 1 : 0;
}

// Exactly unsigned: a signed or a wider argument means another instruction.
template <std::same_as<unsigned> T>
unsigned __reduce_add_sync(unsigned mask, T value,
                           glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  return static_cast<unsigned>(
      glimprouter::simt::meet_warp(glimprouter::simt::WarpCall::kAdd, mask, value, 0, site));
}

template <std::same_as<unsigned> T>
unsigned __reduce_min_sync(unsigned mask, T value,
                           glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  return static_cast<unsigned>(
      glimprouter::simt::meet_warp(glimprouter::simt::WarpCall::kMin, mask, value, 0, site));
}

template <std::same_as<unsigned> T>
unsigned __reduce_max_sync(unsigned mask, T value,
                           glimprouter::simt::Site site = glimprouter::simt::Site::current()) {
  return static_cast<unsigned>(
      glimprouter::simt::meet_warp(glimprouter::simt::WarpCall::kMax, mask, value, 0, site));
}

inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __clzll(long long value) {
  return std::countl_zero(static_cast<unsigned long long>(value));
}
// 1 for the lowest bit; 0 when none is set.
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline unsigned __brev(unsigned value) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (value >> bit & 1) << (31 - bit);
  return reversed;
}
inline unsigned long long __brevll(unsigned long long value) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(value))) << 32 |
         __brev(static_cast<unsigned>(value >> 32));
}
