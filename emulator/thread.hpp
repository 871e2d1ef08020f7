// A CUDA thread as the emulator sees it. Nothing here is visible to ThreadSanitizer: only the
// kernel's own accesses are.
#pragma once

#include <cstdint>
#include <source_location>

#include "emulator/fiber.hpp"
#include "emulator/grid.hpp"

namespace glimprouter::simt {

using Site = std::source_location;

inline constexpr unsigned kLanes = 32;

// The calls that the lanes of a warp make together.
enum class WarpCall : std::uint8_t { kSync, kShuffle, kBallot, kAdd, kMin, kMax };

struct Shape {
  Dim3 block_index;
  Dim3 block_size;
  Dim3 grid_size;
};

struct Thread {
  enum class State : std::uint8_t { kReady, kAtBarrier, kInWarpCall, kReturned };

  const Shape* shape = nullptr;
  Fiber* fiber = nullptr;
  unsigned number = 0;  // in the block
  State state = State::kReady;
  Site site;  // of the call it waits in, or made last

  // Its part in a warp call, and what came out.
  WarpCall call = WarpCall::kSync;
  unsigned mask = 0;
  unsigned source_lane = 0;
  std::uint64_t value = 0;
  std::uint64_t result = 0;

  unsigned atomics = 0;  // since its last rendezvous
  bool waited = false;   // for the kernels ahead of its own
  char order_tag = 0;    // an address that ThreadSanitizer orders memory by

  unsigned lane() const { return number % kLanes; }
};

// The thread that runs; null outside a kernel.
inline constinit Thread* current = nullptr;

#define GLIMPROUTER_SIMT_UNSEEN __attribute__((no_sanitize("thread"))) inline

GLIMPROUTER_SIMT_UNSEEN Dim3 thread_index() { return {current->number, 0, 0}; }
GLIMPROUTER_SIMT_UNSEEN Dim3 block_index() { return current->shape->block_index; }
GLIMPROUTER_SIMT_UNSEEN Dim3 block_size() { return current->shape->block_size; }
GLIMPROUTER_SIMT_UNSEEN Dim3 grid_size() { return current->shape->grid_size; }
GLIMPROUTER_SIMT_UNSEEN unsigned lane_index() { return current->lane(); }

}  // namespace glimprouter::simt
