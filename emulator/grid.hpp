// Runs a grid of CUDA threads on the CPU: one fiber a thread, one block after the other, all on the
// calling OS thread. Blocks come in shuffled order, and so do the threads of a block between their
// rendezvous. docs/device-testing.md says what this shows and what it cannot.
#pragma once

#include <cstdint>
#include <vector>

namespace glimprouter::simt {

struct Dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
};

struct Grid {
  Dim3 blocks;
  unsigned threads = 1;  // of a block
  // It may start before the kernel ahead has ended: every thread must wait for that one.
  bool programmatic = false;
};

// Calls run_thread(call) once for each thread of the grid; returns when all have returned. Gives
// what a CUDA launch would give: 0, or 9 (cudaErrorInvalidConfiguration) for a shape beyond the
// limits of the machine. Launches of several OS threads run one after the other. A kernel that
// breaks the rules of device.cuh ends the process with a message.
int run_grid(const Grid& grid, void (*run_thread)(const void*), const void* call);

// The order of everything that follows, until the next call. The default is the value of
// GLIMPROUTER_SIMT_SEED, else 1. Each launch after it has another order.
void set_seed(std::uint64_t seed);
std::uint64_t seed();

// 1 to count, or the value of GLIMPROUTER_SIMT_SEED alone where it is set: to repeat a failure.
std::vector<std::uint64_t> seeds_to_try(int count);

}  // namespace glimprouter::simt
